"""Outcomes of the table: read, fitted on what is given, and delivered with the right samples."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medmae.core.errors import DataError, UsageError
from medmae.data import targets
from medmae.data.cohort import Case

SPEC = SimpleNamespace(
    table=SimpleNamespace(columns={"idh": "class", "days": "time", "dead": "event", "age": "number"})
)


def case(key: str, **table: float | str | None) -> Case:
    return Case(key, key, {"t1n": Path(f"{key}.nii.gz")}, table=table)


CASES = (
    case("a", idh="wt", days=10.0, dead=1.0, age=50.0),
    case("b", idh="mut", days=None, dead=1.0, age=60.0),
    case("c", idh=None, days=30.0, dead=0.0, age=None),
)


def test_cases_without_all_columns_have_no_outcome() -> None:
    assert targets.read_outcomes(CASES, SPEC, columns={"class": "idh"}) == {"a": {"class": "wt"}, "b": {"class": "mut"}}
    found = targets.read_outcomes(CASES, SPEC, columns={"time": "days", "event": "dead"})
    assert found == {"a": {"time": 10.0, "event": 1.0}, "c": {"time": 30.0, "event": 0.0}}
    assert targets.read_outcomes(CASES, SPEC, columns={"class": "dead"})["c"] == {"class": "0"}


def test_columns_that_cannot_be_meant() -> None:
    with pytest.raises(DataError, match=r"no column 'grade'.*idh, days, dead, age"):
        targets.read_outcomes(CASES, SPEC, columns={"class": "grade"})
    with pytest.raises(UsageError, match="days is a time, and class needs a class or event"):
        targets.read_outcomes(CASES, SPEC, columns={"class": "days"})
    with pytest.raises(DataError, match="names no table"):
        targets.read_outcomes(CASES, SimpleNamespace(table=None), columns={"class": "idh"})
    with pytest.raises(DataError, match="none of 1 case"):
        targets.read_outcomes(CASES[2:], SPEC, columns={"class": "idh"})


def test_what_is_fitted() -> None:
    mine = [{"class": name} for name in ("wt", "wt", "wt", "mut")]
    assert targets.class_names(mine) == ("mut", "wt")
    weights = targets.class_weights(mine, ("mut", "wt"))
    assert weights == [2.0, pytest.approx(2 / 3)]
    assert np.mean([weights[0], *[weights[1]] * 3]) == pytest.approx(1)
    with pytest.raises(DataError, match="all 3 training"):
        targets.class_names(mine[:3])
    outcomes = [{"time": float(t), "event": float(t != 100)} for t in (1, 2, 3, 4, 5, 6, 7, 8, 100)]
    assert targets.time_bins(outcomes, count=4) == pytest.approx([2.75, 4.5, 6.25, 8.0])  # the censored one is not in
    with pytest.raises(DataError, match="censored"):
        targets.time_bins([{"time": 1.0, "event": 0.0}], count=4)
    with pytest.raises(DataError, match="distinct"):
        targets.time_bins([{"time": 5.0, "event": 1.0}] * 3, count=4)
    assert targets.scale([{"value": 1.0}, {"value": 3.0}]) == (2.0, 1.0)
    with pytest.raises(DataError, match="nothing to learn"):
        targets.scale([{"value": 1.0}] * 2)


class Volumes:
    """Stands for a ``VolumeSource``: batches hold rows."""

    size, sequences, validation_size = 2, ("t1n",), 1

    def __init__(self) -> None:
        self.present = {key: frozenset({"t1n"}) for key in "cab"}

    def finish(self, batch, *, device, training):
        return {"t1n": torch.zeros(len(batch["index"]), 1), "index": batch["index"].to(device)}

    def describe(self):
        return {"sequences": ["t1n"]}


def test_every_sample_gets_its_own_target() -> None:
    outcomes = targets.read_outcomes(CASES, SPEC, columns={"class": "idh"})
    source = targets.TargetSource(Volumes(), outcomes, classes=("mut", "wt"))
    batch = source.finish({"index": torch.tensor([2, 0, 1, 1])}, device="cpu", training=True)
    assert batch["target_class"].tolist() == [0, -1, 1, 1]
    assert (source.size, source.validation_size) == (2, 1)
    times = targets.read_outcomes(CASES, SPEC, columns={"time": "days", "event": "dead"})
    found = targets.TargetSource(Volumes(), times).finish({"index": torch.tensor([2, 1])}, device="cpu", training=False)
    assert math.isnan(found["target_time"][0])
    assert found["target_time"][1] == 10
    other = targets.TargetSource(Volumes(), {**outcomes, "a": {"class": "mut"}}, classes=("mut", "wt"))
    assert other.describe()["targets"] != source.describe()["targets"]
    unknown = targets.TargetSource(Volumes(), outcomes, classes=("wt", "other"))
    assert unknown.rows["target_class"].tolist() == [-1, 0, -1]
