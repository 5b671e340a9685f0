"""How long ``medmae --help`` takes, and what importing each room costs and brings in.

    python benchmarks/startup.py [--runs N]

Every figure is the median of fresh processes. The last column lists the heavy guests that an import brings along;
a room should bring only those it is the door for.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "monai",
    "SimpleITK",
    "torchio",
    "accelerate",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "nibabel",
    "blosc2",
    "pydantic",
)
COMMANDS = (("--help",), ("--version",), ("pretrain", "--help"), ("reconstruct", "--help"), ("methods",))
MODULES = (
    "medmae",
    "medmae.find",
    "medmae.config",
    "medmae.data.spec",
    "medmae.data.cohort",
    "medmae.core.tokens",
    "medmae.nets.vit",
    "medmae.volume.bm_mae",
    "medmae.checkpoint",
    "medmae.engine",
    "medmae.convert.bm_mae",
)


def median_seconds(command: list[str], runs: int) -> float:
    """Wall-clock time of a whole process.

    Raises:
        RuntimeError: it does not end well.
    """
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return statistics.median(times[1:])  # the first fills the disk cache


def guests(module: str) -> str:
    """Heavy packages that are loaded after importing ``module``."""
    code = f"import sys, {module}; print(' '.join(h for h in {HEAVY!r} if h in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "none"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    empty = median_seconds([sys.executable, "-c", "pass"], runs)
    print(f"An empty Python process takes {empty:.2f} s, which is part of every figure.\n")
    print("| command | seconds |\n|---|---:|")
    for arguments in COMMANDS:
        seconds = median_seconds([sys.executable, "-m", "medmae", *arguments], runs)
        print(
            f"| `medmae {' '.join(arguments)}` | {seconds:.2f} |",
            flush=True,
        )
    print("\n| import | seconds | heavy packages loaded |\n|---|---:|---|")
    for module in MODULES:
        seconds = median_seconds([sys.executable, "-c", f"import {module}"], runs)
        print(
            f"| `{module}` | {seconds:.2f} | {guests(module)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
