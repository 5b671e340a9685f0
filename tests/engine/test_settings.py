"""Settings that cannot be meant are refused, all faults at once, with a way out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from medmae.core.errors import UsageError
from medmae.engine.settings import TrainSettings, train_settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 10, "epochs": 1}, "choose one"),
        ({"steps": 0}, "at least 1"),
        ({"batch": 0, "accumulate": 0}, "accumulate = 0"),
        ({"lr": "1e-4"}, "1.0e-4"),
        ({"lr": float("nan")}, "lr"),
        ({"precision": "fp16"}, "fp32, bf16"),
        ({"betas": [0.9]}, "betas"),
        ({"ema": 1.0}, "0.999"),
        ({"clip": 0.0}, "null"),
        ({"device": "gpu"}, "cuda:N"),
        ({"loggers": ["tensorbord"]}, "tensorboard"),
        ({"batch": 2.5}, "not int"),
        ({"decay_all": 1}, "not bool"),
        ({"seed": None}, "needs a value"),
    ],
)
def test_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        train_settings(values)


def test_did_you_mean() -> None:
    with pytest.raises(UsageError, match=r"Did you mean train\.weight_decay"):
        train_settings({"wieght_decay": 0.1})


def test_every() -> None:
    s = TrainSettings(checkpoint_every=7)
    assert [s.every(w, per_epoch=3, total=500) for w in ("validate", "checkpoint", "picture")] == [10, 7, 50]
    assert s.every("validate", per_epoch=1e6, total=500) == 1000
    assert TrainSettings(picture_every=0).every("picture", per_epoch=3, total=500) == 0


def test_lengths() -> None:
    s = TrainSettings(epochs=3, batch=2, accumulate=2)
    assert s.total_steps(size=10, world=1) == 8  # 30 samples in fours
    assert s.total_steps(size=10, world=2) == 4
    assert TrainSettings(steps=5).total_steps(size=10, world=2) == 5


def test_no_torch() -> None:
    code = "import sys, medmae.engine.settings, medmae.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
