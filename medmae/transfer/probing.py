"""What frozen features know: simple classifiers on vectors, with patients held out.

A probe says what is in the features, so nothing of it may come from the patients it is tested on: folds are cut by
subject and balanced over outcomes, and the scale of the features, the strength of the penalty and the classifier come
from the training part of each fold alone. Folds depend on names and a seed, so two models are tested on the same
patients and compared on differences.

Features are standardized and divided by the square root of their number, so that one grid of strengths suits all
widths; for neighbors the common mean must go, too, because the features of masked autoencoders share most of their
direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from medmae.core.errors import DataError, UsageError
from medmae.evaluate.label_curve import assign_folds
from medmae.evaluate.scores import Measure, percentiles, resampled
from medmae.evaluate.statistics import Interval

from .probe_tasks import Classes, Survival, Task, Values

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths of the penalty, strong to weak, for features of unit expected length."""
NEIGHBORS, TEMPERATURE = 20, 0.07
"""Of the weighted vote of neighbors (Wu et al., 2018)."""
INNER = 3  # folds in which the strength is chosen


@dataclass(frozen=True)
class ProbeResult:
    """What a probe said of every case that was held out.

    Attributes:
        kind: ``linear`` or ``knn``.
        metric: the one to look at first: auc (or what the strength was chosen by), r2 or c_index.
        classes: names of the columns of ``prediction``; () for values and risks, which have one column.
        prediction: probability of each class, value, or risk (larger is sooner); NaN for cases never tested.
        fold: in which each case was tested; -1 for cases never tested.
        chosen: inverse strength of the penalty in every fold, or number of neighbors.
        measure: scores of the tested cases under weights.
        subjects: of the tested cases.
        strata: of the tested cases, within which subjects are drawn again.
        seed: of folds and intervals.
    """

    kind: str
    metric: str
    classes: tuple[str, ...]
    prediction: Float[np.ndarray, "n k"]
    fold: Int[np.ndarray, " n"]
    chosen: tuple[float, ...]
    measure: Measure
    subjects: tuple[str, ...]
    strata: tuple[object, ...]
    seed: int = 0
    draws: int = 1000

    @property
    def tested(self) -> Bool[np.ndarray, " n"]:
        """Cases that were held out once."""
        return self.fold >= 0

    @cached_property
    def resampled(self) -> dict[str, Float[np.ndarray, " r"]]:
        """Every metric: its value, then its values when subjects are drawn again."""
        weights = resampled(self.subjects, self.strata, draws=self.draws, seed=self.seed)
        return self.measure(np.concatenate([np.ones((1, len(self.subjects))), weights]))

    @property
    def scores(self) -> dict[str, Interval]:
        """Every metric that can be told, with its 95 % bootstrap interval over subjects.

        The classifiers stay as they are: the interval holds for other patients, not for other training sets. Its bounds
        are NaN where no class has two subjects, since every drawing is then the same.
        """
        found = {name: self._interval(values) for name, values in self.resampled.items()}
        return {name: interval for name, interval in found.items() if not np.isnan(interval.mean)}

    def _interval(self, values: Float[np.ndarray, " r"]) -> Interval:
        found = percentiles(values, len(self.subjects), 0.95)
        own = dict(zip(reversed(self.subjects), reversed(self.strata), strict=True))
        if max(Counter(own.values()).values()) > 1:
            return found
        return replace(found, low=float("nan"), high=float("nan"))

    def compare(self, other: ProbeResult) -> dict[str, Interval]:
        """This minus ``other``, metric by metric, on the same resampled subjects.

        Raises:
            ValueError: the two were tested on different cases.
        """
        if not np.array_equal(self.fold, other.fold) or self.subjects != other.subjects:
            raise ValueError("two probes can be compared on the same cases and folds only")
        theirs = other.resampled
        return {
            name: self._interval(values - theirs[name])
            for name, values in self.resampled.items()
            if name in theirs and not np.isnan(values[0] - theirs[name][0])
        }


def linear_probe(
    features: Float[np.ndarray, "n d"],
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    parts: Sequence[str | None] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    metric: str = "auc",
) -> ProbeResult:
    """Classes by logistic regression, balanced over classes.

    Args:
        features: one row per case.
        labels: class of every case.
        groups: subject of every case; one subject's cases are never on both sides.
        folds: at most so many, fewer where a class has fewer subjects.
        seed: of folds and intervals.
        parts: ``train``, ``val`` or ``test`` for every case, in place of folds: learned from the first, the strength
            chosen on the second where there is one, tested on the third.
        strengths: inverse strengths of the penalty to choose from, strong to weak.
        metric: by which it is chosen, on folds of the training cases: auc, ap, balanced_accuracy or accuracy.

    Raises:
        DataError: features that are not finite, one class only, a class with a single subject, or an empty part.
        UsageError: options that cannot be meant.
    """
    if metric not in ("auc", "ap", "balanced_accuracy", "accuracy"):
        raise UsageError(f"a linear probe cannot be chosen by {metric!r}")
    return _probe("linear", features, Classes(labels, metric), groups, folds, seed, parts, tuple(strengths))


def ridge_probe(
    features: Float[np.ndarray, "n d"],
    values: Sequence[float] | Float[np.ndarray, " n"],
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    parts: Sequence[str | None] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
    """Numbers by ridge regression; see :func:`linear_probe`. Folds are balanced over ranges of the value."""
    return _probe("linear", features, Values(values), groups, folds, seed, parts, tuple(strengths))


def cox_probe(
    features: Float[np.ndarray, "n d"],
    time: Sequence[float] | Float[np.ndarray, " n"],
    event: Sequence[bool] | Bool[np.ndarray, " n"],
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    parts: Sequence[str | None] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
    """Risks by a Cox model with an L2 penalty; see :func:`linear_probe`. Folds are balanced over events."""
    return _probe("linear", features, Survival(time, event), groups, folds, seed, parts, tuple(strengths))


def knn_probe(
    features: Float[np.ndarray, "n d"],
    labels: Sequence[str] | Float[np.ndarray, " n"],
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    parts: Sequence[str | None] | None = None,
    k: int = NEIGHBORS,
) -> ProbeResult:
    """Classes (or numbers, where ``labels`` is an array of floats) by a vote of the ``k`` nearest training cases.

    Near is the cosine of standardized features; a vote weighs ``exp(cosine / 0.07)``. Where there are fewer than ``2
    k`` training cases, half of them vote. Other arguments and errors as in :func:`linear_probe`.
    """
    if k < 1:
        raise UsageError(f"{k} neighbors: at least 1")
    numbers = isinstance(labels, np.ndarray) and labels.dtype.kind == "f"
    task: Task = Values(labels) if numbers else Classes([str(v) for v in labels], "auc")  # type: ignore[arg-type]
    return _probe("knn", features, task, groups, folds, seed, parts, (float(k),))


def _probe(
    kind: str,
    features: Float[np.ndarray, "n d"],
    task: Task,
    subjects: Sequence[str],
    folds: int,
    seed: int,
    parts: Sequence[str | None] | None,
    choices: tuple[float, ...],
) -> ProbeResult:
    """Test every case once (or those of the test part) with what the other cases teach."""
    n = len(features)
    if len(subjects) != n or len(task.blocks()) != n or (parts is not None and len(parts) != n):
        raise DataError(f"{n} rows of features, {len(subjects)} subjects, {len(task.blocks())} outcomes: not as many")
    if bad := int((~np.isfinite(features)).any(1).sum()):
        raise DataError(f"the features of {bad} of {n} case(s) are not finite")
    if folds < 2 or not choices:
        raise UsageError(f"{folds} fold(s): at least 2 are needed")
    x = features.astype(np.float64)
    who = np.array(subjects, dtype=object)
    if parts is None:
        strata = task.strata(subjects, folds)
        names = task.classes or tuple(str(s) for s in range(int(strata.max(initial=-1)) + 1))
        if isinstance(task, Classes) and strata is not task.truth:  # subjects of several classes
            there, strata = np.unique(strata, return_inverse=True)
            names = tuple(str(s) for s in there)
        fold = assign_folds(strata, subjects, classes=names, folds=folds, seed=seed)
        rounds: list[tuple[Any, Any, Any]] = [
            (np.flatnonzero(fold != f), None, np.flatnonzero(fold == f)) for f in range(int(fold.max()) + 1)
        ]
    else:
        own = [np.flatnonzero([p == part for p in parts]) for part in ("train", "val", "test")]
        if not len(own[0]) or not len(own[2]):
            raise DataError(f"{len(own[0])} training and {len(own[2])} test case(s): a probe needs both")
        if isinstance(task, Classes) and len(found := sorted({task.classes[c] for c in task.truth[own[0]]})) < 2:
            raise DataError(
                f"all {len(own[0])} training case(s) have the class {found[0]!r}: there is nothing to learn apart. "
                "Choose another split, or folds"
            )
        fold = np.where([p == "test" for p in parts], 0, -1)
        rounds = [(own[0], own[1] if len(own[1]) else None, own[2])]
    prediction: np.ndarray = np.full((n, max(1, len(task.classes))), np.nan)
    chosen: list[float] = []
    for train, validation, test in rounds:
        if kind == "knn":
            k = min(int(choices[0]), max(1, len(train) // 2))
            prediction[test] = _neighbors(x, task, train, test, k)
            chosen.append(float(k))
            continue
        chosen.append(_choose(x, task, who, train, validation, choices, seed))
        prediction[test] = _learned(x, task, train, test, chosen[-1])
    tested = np.flatnonzero(fold >= 0)
    held = tested.tolist()
    blocks = task.blocks()
    return ProbeResult(
        kind=kind,
        metric=task.metric,
        classes=task.classes,
        prediction=prediction,
        fold=fold.astype(np.int64),
        chosen=tuple(chosen),
        measure=task.scores(prediction[tested], tested, fold[tested]),
        subjects=tuple(str(subjects[i]) for i in held),
        strata=tuple(blocks[i] for i in held),
        seed=seed,
    )


def _choose(x: Any, task: Task, who: Any, train: Any, validation: Any, choices: tuple[float, ...], seed: int) -> float:
    """The strongest penalty among the best, on the validation cases or on folds of the training cases."""
    if len(choices) == 1:
        return choices[0]
    if validation is not None:
        rounds = [(train, validation)]
    else:
        own = [str(s) for s in who[train]]
        found_here, strata = np.unique(task.strata(who.tolist(), INNER)[train], return_inverse=True)
        label = [str(s) for s in found_here]
        try:
            fold = assign_folds(strata.reshape(-1), own, classes=label, folds=INNER, seed=seed + 1)
        except DataError:  # too few to hold any out
            return choices[len(choices) // 2]
        rounds = [(train[fold != f], train[fold == f]) for f in range(int(fold.max()) + 1)]
    rows = np.concatenate([held for _, held in rounds])
    inner = np.concatenate([np.full(len(held), f) for f, (_, held) in enumerate(rounds)])
    found = []
    for strength in choices:
        guess = np.concatenate([_learned(x, task, mine, held, strength) for mine, held in rounds])
        value = float(task.scores(guess, rows, inner)(np.ones((1, len(rows))))[task.metric][0])
        found.append(-np.inf if np.isnan(value) else value)
    if not np.isfinite(max(found)):
        return choices[len(choices) // 2]
    return choices[next(i for i, value in enumerate(found) if value >= max(found) - 1e-9)]


def _scaled(x: Any, train: Any, rows: Any) -> Any:
    """Rows of features on the scale of the training cases; dimensions that are constant there become 0."""
    mean, std = x[train].mean(0), x[train].std(0)
    live = std > 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return np.where(live, (x[rows] - mean) / np.where(live, std, 1.0), 0.0) / np.sqrt(x.shape[1])


def _learned(x: Any, task: Task, train: Any, test: Any, strength: float) -> Any:
    return task.linear(_scaled(x, train, train), _scaled(x, train, test), train, strength)


def _neighbors(x: Any, task: Task, train: Any, test: Any, k: int) -> Any:
    """Votes of the ``k`` training cases that are nearest to each test case."""
    old, new = _unit(_scaled(x, train, train)), _unit(_scaled(x, train, test))
    alike = new @ old.T
    near = np.argsort(-alike, axis=1, kind="stable")[:, :k]
    weight = np.exp((np.take_along_axis(alike, near, 1) - 1) / TEMPERATURE)
    share = np.zeros_like(alike)
    np.put_along_axis(share, near, weight / weight.sum(1, keepdims=True), 1)
    return task.vote(share, train)


def _unit(rows: Any) -> Any:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
