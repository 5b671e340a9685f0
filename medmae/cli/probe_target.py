"""What a probe is asked to tell, whatever the data say it with: a column of a table, a folder, or a toy's class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .feature_encoder import VOLUME, Items

if TYPE_CHECKING:
    import numpy as np

    from medmae.transfer.probing import ProbeResult

LABEL = "label"
MANY = 10
"""Distinct numbers in a column of a CSV from which on it is no list of classes."""


@dataclass(frozen=True)
class Goal:
    """A target and its value for every case that has one.

    Attributes:
        kind: ``class``, ``value`` or ``survival``.
        name: what tables call it.
        truth: key of the case -> class, number, or (time, event).
    """

    kind: str
    name: str
    truth: Mapping[str, Any]

    def words(self, key: str) -> list[object]:
        """The truth as cells of a table."""
        found = self.truth[key]
        return [found[0], int(found[1])] if self.kind == "survival" else [found]

    @property
    def columns(self) -> list[str]:
        """Names of these cells."""
        return ["true_time", "true_event"] if self.kind == "survival" else ["truth"]

    def probes(self, kind: str) -> tuple[str, ...]:
        """The probes that can be asked for it; UsageError where there is none."""
        wanted = ("linear", "knn") if kind == "both" else (kind,)
        possible = tuple(name for name in wanted if name != "knn" or self.kind != "survival")
        if not possible:
            raise UsageError("neighbors cannot tell survival, where times are censored: use --kind linear")
        return possible

    def run(
        self,
        probe: str,
        values: np.ndarray,
        keys: Sequence[str],
        subjects: Sequence[str],
        *,
        folds: int,
        seed: int,
        parts: Sequence[str] | None,
        k: int,
    ) -> ProbeResult:
        """Probe features of the cases ``keys``; ``parts`` is used in place of folds where it is given."""
        import numpy as np

        from medmae.transfer.probing import cox_probe, knn_probe, linear_probe, ridge_probe

        more: dict[str, Any] = {"folds": max(folds, 2), "seed": seed, "parts": parts}
        truth = [self.truth[key] for key in keys]
        if self.kind == "survival":
            time, event = [float(t) for t, _ in truth], [bool(e) for _, e in truth]
            return cox_probe(values, time, event, list(subjects), **more)
        labels: Any = np.array(truth, dtype=np.float64) if self.kind == "value" else truth
        if probe == "knn":
            return knn_probe(values, labels, list(subjects), k=k, **more)
        learn: Any = ridge_probe if self.kind == "value" else linear_probe
        found: ProbeResult = learn(values, labels, list(subjects), **more)
        return found


def goal_of(items: Items, *, target: str | None, time: str | None, event: str | None) -> Goal:
    """What ``--target``, or ``--time`` and ``--event``, mean of these data.

    Raises:
        UsageError: options that do not belong together, or a column of another kind.
        DataError: no such column, no case with a value, or a value that is no number.
    """
    if (time is None) != (event is None) or (target is not None and time is not None):
        raise UsageError("give --target (a class or a number), or --time and --event together (survival)")
    if items.kind != VOLUME:
        if time is not None:
            raise UsageError("--time and --event are for cohorts with a clinical table")
        return _of_samples(items, target or LABEL)
    if target is None and time is None:
        raise UsageError("give --target (a column of the table), or --time and --event together (survival)")
    from medmae.data.targets import read_outcomes

    spec = items.source.spec
    if time is not None and event is not None:
        found = read_outcomes(items.cases, spec, columns={"time": time, "event": event})
        pairs = {key: (outcome["time"], bool(outcome["event"])) for key, outcome in found.items()}
        return Goal("survival", f"{time}, {event}", pairs)
    assert target is not None
    kinds = spec.table.columns if spec.table is not None else {}
    role = "value" if kinds.get(target) in ("number", "time") else "class"
    found = read_outcomes(items.cases, spec, columns={role: target})
    return Goal(role, target, {key: outcome[role] for key, outcome in found.items()})


def _of_samples(items: Items, target: str) -> Goal:
    """The class that folders (or a column ``label``) say, or another column of a CSV."""
    if target == LABEL:
        known = {s.key: s.label for s in items.cases if s.label is not None}
        if not known:
            raise DataError(
                "no sample has a class: put the files of each class in a folder of its own, or name a column of a CSV "
                "with --target"
            )
        return Goal("class", LABEL, known)
    columns = sorted({name for s in items.cases for name in s.extra if name != "toy"})
    if target not in columns:
        has = f"there are {', '.join([LABEL, *columns])}" if columns else f"the data have {LABEL} only"
        raise DataError(f"the data have no column {target!r}: {has}")
    texts = {s.key: str(s.extra.get(target) or "").strip() for s in items.cases}
    texts = {key: text for key, text in texts.items() if text.lower() not in ("", "na", "n/a", "nan", "none", "?")}
    if not texts:
        raise DataError(f"none of {len(items.cases)} sample(s) has a value in the column {target}")
    numbers = {key: _number(text) for key, text in texts.items()}
    if len(set(texts.values())) <= MANY or any(value is None for value in numbers.values()):
        return Goal("class", target, texts)
    if strange := [key for key, value in numbers.items() if not math.isfinite(float(value or 0.0))]:
        raise DataError(
            f"{len(strange)} value(s) of the column {target} are not finite ({strange[0]}: {texts[strange[0]]})"
        )
    return Goal("value", target, numbers)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
