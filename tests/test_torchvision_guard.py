"""The guard in its three cases, each in a process of its own because torch's operator table is global."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Fails exactly like the real one does when its compiled operators cannot be loaded.
NEEDS_OPERATORS = """
import torch
for name in ("nms", "qnms"):
    @torch.library.register_fake(f"torchvision::{name}")
    def fake(dets, scores, iou_threshold):
        return dets
ready = True
"""
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError(name)
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torchvision" else find(name, package)
sys.meta_path.insert(0, Hidden())
"""
REPORT = """
import sys
from medmae.torchvision_guard import guard
first = guard()
clean = not any(name.partition(".")[0] == "torchvision" for name in sys.modules)
second = guard()
try:
    import torchvision
    ready = getattr(torchvision, "ready", None)
except Exception as error:
    ready = type(error).__name__
import torch
print(first, second, clean, ready, hasattr(torch.ops.torchvision, "nms"))
"""


def run(code: str, *paths: Path) -> list[str]:
    """Run ``code`` in a new interpreter with ``paths`` first; the words it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, REPOSITORY))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def package(folder: Path, source: str) -> Path:
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(source, encoding="utf-8")
    return folder


def test_native_is_left_alone(tmp_path: Path) -> None:
    path = package(tmp_path, "ready = True\n")
    assert run(REPORT, path) == ["native", "native", "True", "True", "False"]


def test_native_when_already_imported(tmp_path: Path) -> None:
    path = package(tmp_path, "ready = True\n")
    assert run("import torchvision\n" + REPORT, path) == ["native", "native", "False", "True", "False"]


@pytest.mark.parametrize("library", [None, "_C.so"])
def test_broken_is_guarded_and_then_imports(tmp_path: Path, library: str | None) -> None:
    path = package(tmp_path, NEEDS_OPERATORS)
    if library:
        (path / "torchvision" / library).write_bytes(b"compiled for another torch")
    assert run(REPORT, path) == ["guarded", "guarded", "True", "True", "True"]


def test_broken_stays_broken_without_the_guard(tmp_path: Path) -> None:
    path = package(tmp_path, NEEDS_OPERATORS)
    code = "try:\n    import torchvision\nexcept RuntimeError as error:\n    print('nms' in str(error))"
    assert run(code, path) == ["True"]


def test_guard_after_a_failed_import(tmp_path: Path) -> None:
    path = package(tmp_path, NEEDS_OPERATORS)
    code = "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n" + REPORT
    assert run(code, path) == ["guarded", "guarded", "True", "True", "True"]


def test_absent_changes_nothing() -> None:
    assert run(HIDE + REPORT) == ["absent", "absent", "True", "ModuleNotFoundError", "False"]


def test_the_installed_torchvision_imports() -> None:
    code = "from medmae.torchvision_guard import guard\nif guard() != 'absent':\n    import torchvision\nprint(guard())"
    assert run(code)[0] in {"native", "guarded", "absent"}
