"""Two processes on the CPU (gloo, through torchrun) against one process with the doubled batch."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from medmae.engine.distributed import blocks
from medmae.engine.journal import read_rows
from medmae.engine.state import read_state, states

Launch = Callable[..., "subprocess.Popen[str]"]
TRAIN = {"steps": 10, "ema": 0.9, "checkpoint_every": 5, "validate_every": 5}


def torchrun(launch: Launch, folder: Path, options: dict[str, Any]) -> None:
    process = launch(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        toy.__file__,
        folder,
        json.dumps(options),
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def assert_close_runs(a: Path, b: Path) -> None:
    rows = [read_rows(folder / "metrics.jsonl") for folder in (a, b)]
    assert len(rows[0]) == len(rows[1])
    for one, two in zip(*rows, strict=True):
        assert (one["step"], one["split"], one.get("lr")) == (two["step"], two["split"], two.get("lr"))
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    ends = [read_state(states(folder / "checkpoints")[-1]) for folder in (a, b)]
    for part in ("method", "averages"):
        assert ends[0][part].keys() == ends[1][part].keys()
        for name in ends[0][part]:
            torch.testing.assert_close(ends[0][part][name], ends[1][part][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(tmp_path: Path, launch: Launch, parallel: str) -> None:
    whole = {"train": TRAIN | {"batch": 4, "accumulate": 2}, "source": {"validation": 7}}
    toy.train_toy(tmp_path / "one", **whole)
    shared = whole | {"train": whole["train"] | {"batch": 2, "parallel": parallel}}
    torchrun(launch, tmp_path / "two", shared)
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "DONE").exists()
    saved = torch.load(tmp_path / "two" / "model" / "weights.pt", weights_only=True)
    assert type(saved["head.weight"]) is torch.Tensor


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_checkpoints_fit_any_number_of_processes(tmp_path: Path, launch: Launch, parallel: str) -> None:
    """Begun by one process, continued by two."""
    train = TRAIN | {"schedule": "constant", "warmup": 0, "batch": 4}
    toy.train_toy(tmp_path / "whole", train=train)
    toy.train_toy(tmp_path / "run", train=train | {"steps": 5})
    torchrun(launch, tmp_path / "run", {"train": train | {"batch": 2, "parallel": parallel}, "resume": True})
    assert_close_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_complete_checkpoint(tmp_path: Path, launch: Launch) -> None:
    """All processes stop after the same step."""
    options: dict[str, Any] = {"train": TRAIN | {"steps": 400, "checkpoint_every": 0, "log_every": 1}}
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, toy.__file__, tmp_path / "run"]
    process = launch(*arguments, json.dumps(options | {"source": {"pause": 0.05}}))
    for _ in range(3000):
        if process.poll() is not None or len(read_rows(tmp_path / "run" / "metrics.jsonl")) > 10:
            break
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=60)
    (path,) = states(tmp_path / "run" / "checkpoints")
    rows = [r for r in read_rows(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"]
    assert read_state(path)["step"] == rows[-1]["step"]
    assert "Go on with --resume" in (tmp_path / "run" / "log.txt").read_text()


def test_blocks_are_found() -> None:
    method = toy.make_toy()
    assert blocks(method) == list(method.body)[::-1]
