"""Outcomes of the clinical table as entries of batches.

A class is a whole number (-1: not known), everything else a number (NaN: not known); what is not known is out of the
loss. Whatever is fitted to outcomes (names of classes, weights, time bins, scales) is fitted here, from the training
part that the caller passes and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmae.core.errors import DataError, UsageError

from .cohort import Case, Cohort

KINDS = {
    "class": ("class", "event"),
    "time": ("time",),
    "event": ("event",),
    "value": ("number", "time"),
}
"""Role of a target -> kinds of columns that can have it."""

Outcome = Mapping[str, float | str]
"""Role -> value, of one case, all of them known."""


def read_outcomes(cases: Sequence[Case], spec: Any, *, columns: Mapping[str, str]) -> dict[str, Outcome]:
    """The outcomes of the cases that have all of ``columns`` (role -> column), by case key.

    Raises:
        DataError: the spec has no table or no such column, or no case has a value.
        UsageError: a column of another kind than its role needs.
    """
    known = spec.table.columns if spec.table is not None else {}
    for role, column in columns.items():
        if column not in known:
            has = f"its table has {', '.join(known)}" if known else "it names no table"
            raise DataError(
                f"the spec has no column {column!r}: {has}. "
                f"Name a column under table.columns, such as {{{column}: {KINDS[role][0]}}}"
            )
        if known[column] not in KINDS[role]:
            raise UsageError(
                f"the column {column} is a {known[column]}, and {role} needs a {' or '.join(KINDS[role])}: "
                f"choose another column, or declare {column}: {KINDS[role][0]} in the spec"
            )
    found: dict[str, Outcome] = {}
    for case in cases:
        values = {role: case.table.get(column) for role, column in columns.items()}
        if all(value is not None for value in values.values()):
            found[case.key] = {role: _value(role, value) for role, value in values.items()}
    if not found:
        raise DataError(f"none of {len(cases)} case(s) has a value in the column {', '.join(columns.values())}")
    return found


def _value(role: str, value: Any) -> float | str:
    if role == "class":
        return f"{value:g}" if isinstance(value, float) else str(value)
    return float(value)


def with_parts(cohort: Cohort, parts: Mapping[str, str | None]) -> Cohort:
    """The cases named in ``parts`` with the part of the split given there (None: as the split's rule draws it)."""
    kept = tuple(dataclasses.replace(case, split=parts[case.key]) for case in cohort.cases if case.key in parts)
    return dataclasses.replace(cohort, cases=kept)


def class_names(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The classes of training cases, sorted.

    Raises:
        DataError: fewer than two.
    """
    names = tuple(sorted({str(outcome["class"]) for outcome in outcomes}))
    if len(names) < 2:
        what = f"all {len(outcomes)} training case(s) have the class {names[0]!r}" if names else "there are no cases"
        raise DataError(f"{what}: there is nothing to tell apart. Choose another --target or more cases")
    return names


def class_weights(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[float]:
    """Weights that make all classes count alike over the training cases; their mean over the cases is 1."""
    counts = [sum(outcome["class"] == name for outcome in outcomes) for name in names]
    return [len(outcomes) / (len(names) * count) for count in counts]


def time_bins(outcomes: Sequence[Outcome], *, count: int) -> list[float]:
    """Ends of at most ``count`` intervals with equally many events of the training cases in each.

    Raises:
        DataError: no event, or fewer than two distinct times of events.
    """
    times = [float(outcome["time"]) for outcome in outcomes if outcome["event"]]
    check_events(outcomes)
    edges = np.unique(np.quantile([t for t in times if t > 0] or [0.0], np.linspace(0, 1, count + 1)[1:]))
    if len(edges) < 2:
        raise DataError(
            f"{len(times)} event(s) at {len(set(times))} distinct time(s) in the training part: "
            "time bins need at least two. Use more cases"
        )
    return [float(edge) for edge in edges]


def check_events(outcomes: Sequence[Outcome]) -> None:
    """DataError where all are censored: nothing can be learned from the order of nothing."""
    if not any(outcome["event"] for outcome in outcomes):
        raise DataError(
            f"all {len(outcomes)} training case(s) are censored: no event, so there is no survival to learn. "
            "Use more cases, or check which value of the event column means that it happened (1)"
        )


def scale(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Mean and standard deviation of the values of training cases; DataError where they are constant."""
    values = np.array([float(outcome["value"]) for outcome in outcomes])
    if not values.std() > 0:
        raise DataError(f"all {len(values)} training value(s) are {values[0]:g}: there is nothing to learn")
    return float(values.mean()), float(values.std())


class TargetSource:
    """A source of volumes (``VolumeSource``) whose batches also hold outcomes.

    Adds ``target_class`` Int64[b] or ``target_time``, ``target_event``, ``target_value`` Float[b] to every finished
    batch. Cases without an outcome stay, with -1 or NaN.

    Args:
        source: the volumes.
        outcomes: by case key; role -> value.
        classes: names of the classes, in the order of their numbers; a class that is not among them is not known.
    """

    def __init__(self, source: Any, outcomes: Mapping[str, Outcome], *, classes: Sequence[str] = ()) -> None:
        self._source = source
        self.size: int = source.size
        self.sequences: tuple[str, ...] = source.sequences
        keys = list(source.present)
        roles = sorted({role for outcome in outcomes.values() for role in outcome})
        self.rows = {
            f"target_{role}": torch.tensor(
                [_number(role, outcomes.get(key, {}).get(role), classes) for key in keys],
                dtype=torch.int64 if role == "class" else torch.float32,
            )
            for role in roles
        }

    @property
    def validation_size(self) -> int:
        """Number of validation cases."""
        return int(self._source.validation_size)

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """See the source."""
        found: Iterator[Mapping[str, Tensor]] = self._source.train(
            start=start, batch=batch, rank=rank, world=world, seed=seed
        )
        return found

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """See the source."""
        found: Iterator[Mapping[str, Tensor]] = self._source.validation(batch=batch, rank=rank, world=world, seed=seed)
        return found

    def finish(self, batch: Mapping[str, Tensor], *, device: Any, training: bool) -> dict[str, Tensor]:
        """The method's input, with the targets of its samples."""
        done: dict[str, Tensor] = dict(self._source.finish(batch, device=device, training=training))
        index = batch["index"].cpu()
        return {**done, **{name: values[index].to(device) for name, values in self.rows.items()}}

    def describe(self) -> dict[str, Any]:
        """What the source says, and a hash of the outcomes, so that a run is not resumed with others."""
        values = {name: rows.tolist() for name, rows in self.rows.items()}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        return {**self._source.describe(), "targets": digest}


def _number(role: str, value: float | str | None, classes: Sequence[str]) -> float | int:
    if role == "class":
        return list(classes).index(str(value)) if value in classes else -1
    return math.nan if value is None else float(value)
