"""Rates per parameter, and stopping when nothing gets better: both survive a resume exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy import Toy, ToySource, make_toy, save_toy

from medmae.core.errors import UsageError
from medmae.core.pace import STEADY, Pace
from medmae.engine.optimizer import parameter_groups
from medmae.engine.settings import TrainSettings
from medmae.engine.state import read_state, states
from medmae.engine.trainer import pretrain

WAITS = Pace(0.5, ((0.0, 0.0), (0.5, 0.0), (0.75, 1.0)))


class Paced(Toy):
    """The first layer waits for half of the run, and then learns at half the rate."""

    def pace(self, name: str) -> Pace:
        return WAITS if name.startswith("inner.") else STEADY


def train(folder: Path, *, method: Toy | None = None, resume: bool = False, said: list[str] | None = None, **values):
    torch.manual_seed(0)
    toy = method or Paced()
    settings = TrainSettings(**({"steps": 12, "batch": 2, "device": "cpu", "lr": 0.01, "validate_every": 2} | values))
    result = pretrain(
        toy, ToySource(), settings, folder=folder, recipe={"method": {"name": "toy"}}, save_model=save_toy,
        say=(said if said is not None else []).append, resume=resume,
    )  # fmt: skip
    return result, toy


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_state(states(folder / "checkpoints")[-1])["method"]


def test_groups_by_pace_and_decay() -> None:
    groups = parameter_groups(Paced(), weight_decay=0.1)
    assert [(g["pace"], g["weight_decay"]) for g in groups] == [
        (STEADY, 0.1), (STEADY, 0.0), (WAITS, 0.1), (WAITS, 0.0)
    ]  # fmt: skip
    assert sum(len(g["params"]) for g in groups) == len([p for p in Paced().parameters() if p.requires_grad])
    assert len(parameter_groups(make_toy(), weight_decay=0.1)) == 2


def test_a_layer_that_waits_does_not_move_and_then_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Paced()
    train(tmp_path / "run", checkpoint_every=6, keep=9, patience=None)
    early, late = (read_state(path)["method"] for path in states(tmp_path / "run" / "checkpoints"))
    assert torch.equal(early["inner.weight"], first.inner.weight)
    assert torch.equal(early["inner.bias"], first.inner.bias)
    assert not torch.equal(early["head.weight"], first.head.weight)
    assert not torch.equal(late["inner.weight"], first.inner.weight)


class Interrupt(Exception):
    """Stops a run where a test wants it."""


def interrupted(folder: Path, *, at: int, **values) -> None:
    class Stops(Paced):
        def after_step(self) -> None:
            super().after_step()
            if int(self.steps) == at:
                raise Interrupt

    with pytest.raises(Interrupt):
        train(folder, method=Stops(), **values)


def test_resuming_inside_a_wait_is_exact(tmp_path: Path) -> None:
    train(tmp_path / "whole", checkpoint_every=3)
    torch.manual_seed(0)
    interrupted(tmp_path / "parts", at=8, checkpoint_every=3)
    train(tmp_path / "parts", resume=True, checkpoint_every=3)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_length_of_a_paced_run_is_part_of_it(tmp_path: Path) -> None:
    elastic = {"schedule": "constant", "warmup": 0, "checkpoint_every": 4}
    train(tmp_path / "plain", method=make_toy(), steps=4, **elastic)
    train(tmp_path / "plain", method=make_toy(), steps=8, resume=True, **elastic)
    train(tmp_path / "paced", steps=4, **elastic)
    with pytest.raises(UsageError, match="steps"):
        train(tmp_path / "paced", steps=8, resume=True, **elastic)


def test_it_stops_early_and_stays_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    # A rate this high makes every step worse than the first ones.
    hopeless = {"steps": 400, "patience": 3, "lr": 5.0, "clip": None, "warmup": 0}
    result, _ = train(tmp_path / "run", said=said, **hopeless)
    done = json.loads((tmp_path / "run" / "DONE").read_text())
    assert result.steps == done["best_step"] + 3 * 2 < 400
    assert any("stopped early" in line for line in said)
    assert read_state(states(tmp_path / "run" / "checkpoints")[-1])["step"] == result.steps
    again, _ = train(tmp_path / "run", resume=True, said=said, **hopeless)
    assert again.steps == result.steps
    assert "already complete" in said[-1]
    longer, _ = train(tmp_path / "run", resume=True, **{**hopeless, "patience": 4})
    assert longer.steps > result.steps


def test_patience_is_a_number_of_validations() -> None:
    with pytest.raises(UsageError, match="patience"):
        TrainSettings(patience=0)
    settings = TrainSettings(patience=2)
    assert settings.given_up(best_step=10, validated=30, every=10)
    assert not settings.given_up(best_step=20, validated=30, every=10)
    assert not settings.given_up(best_step=0, validated=30, every=10)  # nothing was validated
    assert not TrainSettings().given_up(best_step=10, validated=90, every=10)
