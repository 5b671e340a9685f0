"""Metrics of a cohort from written predictions, for one model or for several that each saw one fold.

Where every fold has its own model, two areas are honest. The pooled one ranks patients of different models in one
list, so models that are right but calibrated differently look worse than they are. The mean over folds ranks inside
folds only, but small folds make it rough. Both are given: ``auc`` and ``auc_folds``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from .probe_scores import value_scores
from .results import Said
from .scores import Measure, class_measure, survival_measure

FOLDS = "_folds"


def outcomes(said: Sequence[Said], task: str) -> tuple[list[str], list[str], list[str]]:
    """Cases (in a fixed order), the subject of each, and the stratum of each (class or event): see
    ``medmae.evaluate.scores.summarize``."""
    rows = {row.case: row for row in said}
    cases = sorted(rows, key=lambda case: (rows[case].subject, case))
    role = {"classify": "class", "survive": "event"}.get(task)
    strata = ["" if role is None else rows[case].truth[role] for case in cases]
    return cases, [rows[case].subject for case in cases], strata


def measure_of(rows: Sequence[Said], *, task: str, classes: Sequence[str] = ()) -> Measure:
    """The metrics of the task for these rows; with those of the mean over folds where there are several folds."""
    pooled = _measure(rows, task, classes)
    folds: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        folds.setdefault(row.fold, []).append(i)
    if len(folds) < 2:
        return pooled
    parts = [(np.array(own), _measure([rows[i] for i in own], task, classes)) for own in folds.values()]

    def measure(weights: Float[np.ndarray, "r n"]) -> dict[str, Float[np.ndarray, " r"]]:
        found = dict(pooled(weights))
        each = [part(weights[:, own]) for own, part in parts]
        return found | {name + FOLDS: _mean([values[name] for values in each]) for name in found}

    return measure


def by_subset(said: Sequence[Said]) -> Mapping[str, dict[str, Said]]:
    """Subset -> case -> row; small subsets first."""
    found: dict[str, dict[str, Said]] = {}
    for row in sorted(said, key=lambda row: (row.subset.count("+"), row.subset)):
        found.setdefault(row.subset, {})[row.case] = row
    return found


def _measure(rows: Sequence[Said], task: str, classes: Sequence[str]) -> Measure:
    if task == "classify":
        probability = np.array([[row.values[f"probability_{name}"] for name in classes] for row in rows])
        return class_measure(probability, np.array([list(classes).index(row.truth["class"]) for row in rows]))
    if task == "regress":
        guess = np.array([row.values["value"] for row in rows])
        return value_scores(guess, np.array([float(row.truth["value"]) for row in rows]))
    risk = np.array([row.values["risk"] for row in rows])
    time = np.array([float(row.truth["time"]) for row in rows])
    return survival_measure(risk, time, np.array([float(row.truth["event"]) > 0 for row in rows]))


def _mean(values: Sequence[Float[np.ndarray, " r"]]) -> Float[np.ndarray, " r"]:
    """Over folds; those in which nothing can be compared do not count."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(stacked.shape[1], np.nan), where=known.any(0))
