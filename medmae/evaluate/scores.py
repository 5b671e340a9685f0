"""How good predictions of a table are, with intervals over patients: classes and survival.

A cohort gives one number, not one per case, so the interval comes from drawing patients again and taking the number
anew; all cases of a patient are drawn together. Subsets of sequences share the draws, so that their mean has an
interval too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from .statistics import Cell, Interval
from .survival import comparable, concordance

Measure = Callable[[Float[np.ndarray, "r n"]], dict[str, Float[np.ndarray, " r"]]]
"""Weights of the cases, one row per resampling -> metric -> values."""


@dataclass(frozen=True)
class Scored:
    """Predictions of one subset of sequences.

    Attributes:
        subset: the sequences as one word, ``t1n+t2w``.
        cases: rows of the cohort that were predicted.
        measure: the metrics of these cases.
    """

    subset: str
    cases: Int[np.ndarray, " n"]
    measure: Measure


def average_precision(
    score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """Area under the precision-recall curve, in steps (no interpolation); NaN without positives."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # one threshold per distinct score
    found = (weights * positive)[:, order].cumsum(1)[:, last]
    taken = weights[:, order].cumsum(1)[:, last]
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    area = (np.diff(found, axis=1, prepend=0) * precision).sum(1)
    return np.divide(area, found[:, -1], out=np.full(len(weights), np.nan), where=found[:, -1] > 0)


def class_measure(probability: Float[np.ndarray, "n c"], truth: Int[np.ndarray, " n"]) -> Measure:
    """``auc`` and ``ap`` (means over classes, one against the rest; of the last class where there are two), and
    ``balanced_accuracy`` (mean recall of the classes that occur). NaN where cases of one class are left, or where a
    class that occurs was not drawn."""
    classes = probability.shape[1]
    asked = [1] if classes == 2 else range(classes)
    right = probability.argmax(1) == truth

    def measure(weights: Float[np.ndarray, "r n"]) -> dict[str, Float[np.ndarray, " r"]]:
        auc, ap, recall = [], [], []
        for c in asked:
            positive = truth == c
            auc.append(concordance(probability[:, c], positive[:, None] & ~positive[None], weights))
            ap.append(average_precision(probability[:, c], positive, weights).copy())
            ap[-1][np.isnan(auc[-1])] = np.nan
        for c in np.unique(truth):
            total = weights[:, truth == c].sum(1)
            hits = weights[:, (truth == c) & right].sum(1)
            recall.append(np.divide(hits, total, out=np.full(len(weights), np.nan), where=total > 0))
        balanced = np.mean(recall, 0) if len(recall) > 1 else np.full(len(weights), np.nan)
        return {"auc": _mean(auc), "ap": _mean(ap), "balanced_accuracy": balanced}

    return measure


def survival_measure(
    risk: Float[np.ndarray, " n"], time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"]
) -> Measure:
    """``c_index``, Harrell's concordance."""
    pairs = comparable(time, event)
    return lambda weights: {"c_index": concordance(risk, pairs, weights)}


def summarize(
    parts: Sequence[Scored],
    subjects: Sequence[str],
    *,
    strata: Sequence[object],
    target: str,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> list[Cell]:
    """Every metric of every subset, and its mean over the subsets ("all"), with bootstrap intervals over subjects.

    Args:
        parts: predictions by subset.
        subjects: whose case each row of the cohort is.
        strata: of each row (class, event); subjects are drawn again within the stratum of their first case.
        target: what the table calls the target.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    weights = np.concatenate([np.ones((1, len(subjects))), resampled(subjects, strata, draws=draws, seed=seed)])
    found: dict[str, list[np.ndarray]] = {}
    cells: list[Cell] = []
    for part in parts:
        for metric, values in part.measure(weights[:, part.cases]).items():
            found.setdefault(metric, []).append(values)
            interval = percentiles(values, len(part.cases), level)
            cells.append(Cell("model", target, part.subset, metric, interval))
    if len(parts) > 1:
        for metric, each in found.items():
            cases = len({int(row) for part in parts for row in part.cases})
            cells.append(Cell("model", target, "all", metric, percentiles(_mean(each), cases, level)))
    return [cell for cell in cells if not np.isnan(cell.interval.mean)]


def percentiles(values: Float[np.ndarray, " r"], cases: int, level: float) -> Interval:
    """The first value, with the quantiles of the others, NaN left out: an interval over resamplings."""
    known = values[1:][~np.isnan(values[1:])]
    if not len(known):
        return Interval(float(values[0]), float("nan"), float("nan"), cases)
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values[0]), float(low), float(high), cases)


def _mean(values: Sequence[Float[np.ndarray, " r"]]) -> Float[np.ndarray, " r"]:
    """Mean over the first axis of what is not NaN."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(stacked.shape[1], np.nan), where=known.any(0))


def resampled(subjects: Sequence[str], strata: Sequence[object], *, draws: int, seed: int) -> Float[np.ndarray, "r n"]:
    """How often every case occurs when subjects are drawn again, within strata."""
    rng = np.random.default_rng([seed, 5])
    own: Mapping[str, object] = dict(zip(reversed(subjects), reversed(strata), strict=True))
    column = {name: i for i, name in enumerate(own)}
    times = np.zeros((draws, len(own)))
    for stratum in sorted(set(own.values()), key=str):
        mine = [column[name] for name, value in own.items() if value == stratum]
        times[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), draws)
    return times[:, [column[name] for name in subjects]]
