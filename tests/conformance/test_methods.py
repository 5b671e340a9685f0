"""Every method of the package holds every check of the conformance suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medmae import find
from medmae.testing import CHECKS, compare_golden, exemption

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OWN_PROCESS = ("no_graph_breaks",)  # the shape checks of the test session cannot be compiled


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in OWN_PROCESS])
@pytest.mark.parametrize("method", find.names())
def test_method_conforms(method: str, check: str) -> None:
    found = find.find(method)
    reason = exemption(found, check)
    if reason is not None:
        pytest.skip(f"exempt: {reason}")
    CHECKS[check](found)


def test_methods_conform_without_shape_checks() -> None:
    options = [option for check in OWN_PROCESS for option in ("--check", check)]
    command = [sys.executable, "-m", "medmae.testing", *find.names(), *options]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.parametrize("method", find.names())
def test_recipes_and_encoder_keys_are_golden(method: str) -> None:
    found = find.find(method)
    compare_golden(found, GOLDEN)


@pytest.mark.parametrize("method", [found.name for found in find.all() if found.card.status == "faithful"])
def test_what_is_called_faithful_has_a_parity_test(method: str) -> None:
    parity = Path(__file__).resolve().parents[1] / "parity"
    assert any(f'find("{method}")' in path.read_text("utf-8") for path in parity.glob("test_*.py"))


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(find.names())
