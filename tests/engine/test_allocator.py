"""Freed memory stays in the process, and what the user has chosen is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from medmae.engine.allocator import keep_freed_memory
import torch
said = keep_freed_memory() if sys.argv[1] == "keep" else ""
def work():
    torch.empty(16 << 20).fill_(1.0)  # 64 MB
for _ in range(20):  # the heap settles after a few
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, said)
"""


def run(mode: str, **more: str) -> tuple[int, str]:
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], env=clean | more, capture_output=True, text=True, check=True
    )
    faults, _, said = out.stdout.strip().partition(" ")
    return int(faults), said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_page_faults_stop() -> None:
    default, _ = run("default")
    kept, said = run("keep")
    if "glibc" not in said:
        pytest.skip(said)
    assert "keeps" in said
    assert default > 40_000
    assert kept < default / 10


def test_the_users_choice_is_left_alone() -> None:
    assert "MALLOC_TRIM_THRESHOLD_" in run("keep", MALLOC_TRIM_THRESHOLD_="1000000")[1]
