"""What the trainer is told, and how it travels."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from medmae.core.errors import UsageError
from medmae.transfer.nnunet.settings import CHECKPOINT_VARIABLE, VARIABLE, Settings


def test_settings_go_through_the_environment_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, "other.pth")
    given = Settings(checkpoint="mine", epochs=3, modality_dropout=0.2, channels=("t1n", "t2f"))
    with given.in_environment():
        assert Settings.from_environment() == given  # the argument comes before the variable
    assert os.environ.get(VARIABLE) is None
    assert Settings.from_environment() == Settings(checkpoint="other.pth")


def test_from_scratch_overrules_the_variable() -> None:
    environment = {VARIABLE: json.dumps({"from_scratch": True}), CHECKPOINT_VARIABLE: "other.pth"}
    assert Settings.from_environment(environment).checkpoint is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cosine"}, "there is sawtooth, warmup, scratch"),
        ({"epochs": 0}, "epochs is 0"),
        ({"validation_iterations": -1}, "validation-iterations is -1"),
        ({"layer_decay": 0.0}, "layer-decay"),
        ({"modality_dropout": 1.5}, r"modality-dropout is 1.5, which must lie in \[0, 1\]"),
        ({"learning_rate": 0.0}, "learning-rate"),
        ({"warmup_epochs": -1}, "warmup-epochs"),
        ({"from_scratch": True, "checkpoint": "a"}, "exclude one another"),
        ({"speed": 3}, "unknown setting"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.from_dict(values)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_unreadable_variable(text: str) -> None:
    with pytest.raises(UsageError, match=VARIABLE):
        Settings.from_environment({VARIABLE: text})


def test_resuming_keeps_what_it_began_with() -> None:
    saved = Settings(checkpoint="a", schedule="sawtooth", learning_rate=1e-3, epochs=10, modality_dropout=0.3)
    resumed = Settings(epochs=20, schedule="sawtooth").resumed_from(saved)
    assert resumed == Settings(checkpoint="a", schedule="sawtooth", learning_rate=1e-3, epochs=20, modality_dropout=0.3)
    with pytest.raises(UsageError, match="began with schedule sawtooth, and cannot go on with warmup"):
        Settings(schedule="warmup").resumed_from(saved)
    with pytest.raises(UsageError, match="layer decay"):
        Settings(layer_decay=0.7).resumed_from(saved)
