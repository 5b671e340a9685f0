"""Killed, asked to leave, interrupted: the run that goes on is the run that was never stopped. Real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import toy

from medmae.core.errors import Requeue
from medmae.engine.journal import read_rows
from medmae.engine.state import read_state, states

Launch = Callable[..., "subprocess.Popen[str]"]
OPTIONS: dict[str, Any] = {
    "method": {"dropout": 0.2},
    "source": {"size": 17},
    "train": {
        "steps": 60,
        "accumulate": 2,
        "ema": 0.9,
        "checkpoint_every": 7,
        "validate_every": 5,
        "log_every": 3,
    },
}


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "samples_per_second"} for r in read_rows(folder / "metrics.jsonl")]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return bool(a == b)


def assert_same_run(a: Path, b: Path) -> None:
    assert numbers(a) == numbers(b)
    assert equal(read_state(states(a / "checkpoints")[-1]), read_state(states(b / "checkpoints")[-1]))
    assert equal(torch.load(a / "model" / "weights.pt"), torch.load(b / "model" / "weights.pt"))


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Until ``ready`` or the process has ended."""
    for _ in range(6000):
        if ready() or process.poll() is not None:
            return
        time.sleep(0.01)
    raise TimeoutError


def newest(folder: Path) -> str:
    found = states(folder / "checkpoints")
    return found[-1].name if found else ""


@pytest.mark.slow
def test_kill_minus_nine_at_five_random_points(tmp_path: Path, launch: Launch) -> None:
    toy.train_toy(tmp_path / "whole", **OPTIONS)
    draw = random.Random(3)
    slow = OPTIONS | {"source": OPTIONS["source"] | {"pause": 0.01}, "resume": True}
    for _ in range(5):
        before = newest(tmp_path / "cut")
        process = launch(toy.__file__, tmp_path / "cut", json.dumps(slow))
        wait_for(process, lambda seen=before: newest(tmp_path / "cut") > seen)  # type: ignore[misc]
        time.sleep(draw.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "cut" / "DONE").exists()
    process = launch(toy.__file__, tmp_path / "cut", json.dumps(OPTIONS | {"resume": True}))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_signal_checkpoints_and_says_how_to_go_on(tmp_path: Path, launch: Launch, number: int, code: int) -> None:
    options = OPTIONS | {"train": OPTIONS["train"] | {"checkpoint_every": 0, "log_every": 1}}
    toy.train_toy(tmp_path / "whole", **options)
    slow = options | {"source": options["source"] | {"pause": 0.02}}
    process = launch(toy.__file__, tmp_path / "cut", json.dumps(slow))
    wait_for(process, lambda: len(read_rows(tmp_path / "cut" / "metrics.jsonl")) > 4)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert len(states(tmp_path / "cut" / "checkpoints")) == 1
    assert "Go on with --resume" in (tmp_path / "cut" / "log.txt").read_text()
    toy.train_toy(tmp_path / "cut", **options, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


class Telling(toy.ToySource):
    """Sends SIGTERM in the middle of validation number ``when``."""

    def __init__(self, *, when: int) -> None:
        super().__init__(size=17)
        self.when, self.validations = when, 0

    def validation(self, **more: Any) -> Any:
        self.validations += 1
        for number, batch in enumerate(super().validation(**more)):
            if self.validations == self.when and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


@pytest.mark.parametrize(("when", "step"), [(1, 5), (3, 12)])
def test_signal_in_a_validation_is_heard_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int, step: int
) -> None:
    """The validation is given up, done again after the resume, and nothing is lost; at the last step too."""
    options = OPTIONS | {"train": OPTIONS["train"] | {"steps": 12}}
    toy.train_toy(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(toy, "ToySource", lambda **_: Telling(when=when))
        with pytest.raises(Requeue, match=f"after step {step} of 12"):
            toy.train_toy(tmp_path / "cut", **options)
    toy.train_toy(tmp_path / "cut", **options, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_killed_after_the_validation_that_was_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in a validation, then a kill between its second attempt and the checkpoint: its row stands once."""
    toy.train_toy(tmp_path / "whole", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(toy, "ToySource", lambda **_: Telling(when=1))
        with pytest.raises(Requeue):
            toy.train_toy(tmp_path / "cut", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr("medmae.engine.trainer.write_state", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            toy.train_toy(tmp_path / "cut", **OPTIONS, resume=True)
    toy.train_toy(tmp_path / "cut", **OPTIONS, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_handlers_come_back(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    toy.train_toy(tmp_path / "run")
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
