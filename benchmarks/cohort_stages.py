"""What the benchmarks on the synthetic cohort share: the cohort, one pre-training, and commands that are not run twice.

Every stage leaves its folder behind; one that is complete is not made again, so a benchmark that was interrupted goes
on where it was, and two benchmarks use the same pre-trained model.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CASES = {"train": 40, "val": 6, "test": 20}
SPACING = 2.0
WINDOW, PATCH = [48, 48, 48], [8, 8, 8]
NETWORK = ("--method", "bm_mae", "--scale", "tiny", "--set", f"method.size={WINDOW}", "--set", f"method.patch={PATCH}",
           "--set", "method.decoder_width=96")  # fmt: skip
PRETRAINING = {"steps": 3000, "batch": 4, "lr": 1e-3, "repeat": 2}


def medmae(*words: object, log: Path, seconds: dict[str, float] | None = None, name: str = "") -> None:
    """Run a command of this toolkit in a process of its own with one thread; what it says goes to ``log``."""
    began = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "medmae", *(str(word) for word in words)],
            stdout=stream, stderr=stream, env={**os.environ, **threads}, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"medmae {' '.join(str(w) for w in words)} ended with {done.returncode}; see {log}")
    if seconds is not None:
        seconds[name] = time.perf_counter() - began


def cohort(work: Path, *, quick: bool = False) -> Path:
    """The spec of the synthetic cohort: 40 patients to train, 6 to validate, 20 to test, seed 0."""
    parts = {"train": 4, "val": 2, "test": 3} if quick else CASES
    total = sum(parts.values())
    spec = work / "cohort" / "spec.yaml"
    if not spec.exists():
        spacing = 4.0 if quick else SPACING
        medmae("data", "synthesize", "--out", work / "cohort", "--cases", total, "--spacing", spacing, "--seed", 0,
               log=work / "cohort.log")  # fmt: skip
    shown = work / "cohort" / "shown.yaml"
    shares = f"val: {parts['val'] / total:.3f}, test: {parts['test'] / total:.3f}"
    shown.write_text(spec.read_text(encoding="utf-8").replace("val: 0.1, test: 0.1", shares), encoding="utf-8")
    return shown


def pretrained(work: Path, spec: Path, *, quick: bool = False) -> Path:
    """The run folder of a BM-MAE that was pre-trained on the training part, without labels."""
    run = work / "pre"
    if not (run / "DONE").exists():
        steps = 4 if quick else PRETRAINING["steps"]
        medmae("pretrain", *NETWORK, "--data", spec, "--set", f"train.lr={PRETRAINING['lr']}", "--set",
               "train.validate_every=200", "--set",
               f"data.repeat={PRETRAINING['repeat']}", "--set", f"data.cache={work / 'cache'}", "--batch",
               PRETRAINING["batch"], "--steps", steps, "--seed", 0, "--workers", 0, "--out", run, "--resume",
               log=work / "pre.log")  # fmt: skip
    return run


def several(jobs: int, tasks: Sequence[Any]) -> None:
    """Call every task, ``jobs`` at a time; the first failure ends it all."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()


def summary(folder: Path) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """(method, target, given, metric) -> interval, of the results of an evaluation."""
    read = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {(e.get("method", "model"), e["target"], e["given"], e["metric"]): e for e in read["summary"]}


def machine() -> str:
    """Where and when it was measured."""
    import torch

    return f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
