"""Two models on the same patients: which one is better, and is that more than chance.

Patients differ far more than models do, so two means with their own intervals say little about the difference. Here
every patient is compared with himself. Patients are drawn again, with all their cases, because two scans of a patient
are no two witnesses. What one patient adds to a mean is compared directly; areas and concordances belong to a whole
cohort, so there the metric of both models is taken anew from the same drawn patients.

Many subsets of sequences mean many chances to be lucky: p values are corrected (Holm, 1979) over all subsets and
targets of a metric; the mean over the subsets is a family of its own. A model is called better or worse only where
the interval leaves out zero and the corrected p is below 1 - level. With fewer than six patients neither test can get
there, whatever they show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from .scores import Measure, percentiles, resampled
from .statistics import Interval

Verdict = Literal["better", "worse", "higher", "lower", "not surely different"]
UNSURE: Verdict = "not surely different"
ALL = "all"
HIGHER = ("psnr", "ssim", "r2", "dice", "nsd", "auc", "ap", "balanced_accuracy", "accuracy", "c_index", "pearson",
          "spearman")  # fmt: skip
LOWER = ("mae", "mse", "rmse", "nrmse", "hd95", "absolute_error", "squared_error", "nll", "brier")
ENDINGS = ("_label", "_folds")
EXACT = 100
"""Values up to which the signed-rank test is exact."""


@dataclass(frozen=True)
class Measured:
    """One number of one case.

    Attributes:
        case: its code.
        subject: whose case it is.
        subset: the sequences as one word, ``t1n+t2w``.
        target: class, region, sequence or column.
        metric: what was measured.
        value: NaN where it could not be.
        method: ``model`` or the name of a baseline.
    """

    case: str
    subject: str
    subset: str
    target: str
    metric: str
    value: float
    method: str = "model"


@dataclass(frozen=True)
class TwoScored:
    """Predictions of two models for the same cases, given the same subset of sequences.

    Attributes:
        subset: the sequences as one word, ``t1n+t2w``.
        cases: rows of the cohort that both predicted.
        first: metrics of the first model on these cases.
        second: of the second one.
        left_out: cases that only one of them predicted.
    """

    subset: str
    cases: Int[np.ndarray, " n"]
    first: Measure
    second: Measure
    left_out: int = 0


@dataclass(frozen=True)
class Difference:
    """The first model next to the second.

    Attributes:
        subset: the sequences as one word, or "all": the mean over the subsets.
        target: class, region, sequence or column.
        metric: what was measured.
        subjects: to whom the compared cases belong.
        left_out: cases that one of the models has no number for.
        first: the first model's mean or metric on the compared cases.
        second: the second one's.
        interval: first minus second, over ``interval.cases`` cases; bounds over subjects.
        p: two-sided; see :func:`compare_measured` and :func:`compare_scored`.
        p_holm: corrected for the number of comparisons.
        verdict: on the first model. "higher" and "lower" where nobody said which is better.
    """

    subset: str
    target: str
    metric: str
    subjects: int
    left_out: int
    first: float
    second: float
    interval: Interval
    p: float
    p_holm: float = float("nan")
    verdict: Verdict = UNSURE


def compare_measured(
    first: Iterable[Measured], second: Iterable[Measured], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> list[Difference]:
    """Metrics that every case has: mean difference, its bootstrap interval over subjects, Wilcoxon's signed rank.

    The test sees each subject once, with the mean difference of its cases. Differences of zero are ranked and then
    dropped (Pratt, 1959); where all are zero, p is 1. For "all" a case counts once, with its mean over the subsets
    that both models have a number for. Raises ValueError where a case was measured twice.
    """
    mine, other, subject = _by_key(first), _by_key(second), {}
    for rows in (*other.values(), *mine.values()):
        subject.update({case: row.subject for case, row in rows.items()})
    pairs: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}
    left_out: dict[tuple[str, str, str], int] = {}
    over_all: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    lost: dict[tuple[str, str], set[str]] = {}
    for key in sorted(mine.keys() & other.keys()):
        _, target, metric = key
        cases = mine[key].keys() | other[key].keys()
        both = {case: (mine[key][case].value, other[key][case].value) for case in mine[key].keys() & other[key].keys()}
        pairs[key] = {case: pair for case, pair in both.items() if not np.isnan(pair).any()}
        left_out[key] = len(cases) - len(pairs[key])
        for case, pair in pairs[key].items():
            over_all.setdefault((target, metric), {}).setdefault(case, []).append(pair)
        lost.setdefault((target, metric), set()).update(cases)
    for (target, metric), cases_of in over_all.items():
        if len({key[0] for key in pairs if key[1:] == (target, metric)}) > 1:
            key = (ALL, target, metric)
            pairs[key] = {case: (_mean(p[0] for p in v), _mean(p[1] for p in v)) for case, v in cases_of.items()}
            left_out[key] = len(lost[target, metric] - cases_of.keys())
    found = [
        _one(key, pairs[key], subject, left_out=left_out[key], level=level, draws=draws, seed=seed)
        for key in pairs
        if pairs[key]
    ]
    return judged(found, level=level)


def compare_scored(
    parts: Sequence[TwoScored],
    subjects: Sequence[str],
    *,
    strata: Sequence[object],
    target: str,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> list[Difference]:
    """Metrics of a whole cohort: both models' metric from the same drawn subjects, draw by draw.

    Subjects are drawn within strata (class, event), as for the metric itself. p is twice the share of draws in which
    the difference is zero or on the other side, plus one draw for the difference itself: 1 where all are zero, and
    never below 2 / (draws + 1). Nor is it below 2 / 2^subjects, the share of the ways to exchange the two models within
    subjects that any result can have: where few are drawn again, the drawings agree by themselves.

    Args:
        parts: predictions by subset.
        subjects: whose case each row of the cohort is.
        strata: of each row.
        target: what the table calls the target.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    weights = np.concatenate([np.ones((1, len(subjects))), resampled(subjects, strata, draws=draws, seed=seed)])
    owners = np.asarray(subjects)
    found: list[Difference] = []
    every: dict[str, list[tuple[TwoScored, Float[np.ndarray, " r"], Float[np.ndarray, " r"]]]] = {}
    for part in parts:
        drawn = weights[:, part.cases]
        one, two = part.first(drawn), part.second(drawn)
        for metric in [name for name in one if name in two]:
            if np.isnan(one[metric][0]) or np.isnan(two[metric][0]):
                continue
            every.setdefault(metric, []).append((part, one[metric], two[metric]))
            key = (part.subset, target, metric)
            found.append(_drawn(key, one[metric], two[metric], part.cases, owners, part.left_out, level))
    for metric, each in every.items():
        if len(each) > 1:
            firsts, seconds = np.stack([e[1] for e in each]), np.stack([e[2] for e in each])
            known = ~np.isnan(firsts) & ~np.isnan(seconds)
            cases = np.unique(np.concatenate([e[0].cases for e in each]))
            lost = max(e[0].left_out for e in each)
            means = _column_means(firsts, known), _column_means(seconds, known)
            found.append(_drawn((ALL, target, metric), *means, cases, owners, lost, level))
    return judged(found, level=level)


def clustered(
    values: Float[np.ndarray, " n"],
    subjects: Sequence[str],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over cases, with the percentile bootstrap interval over subjects; NaN bounds where there is one subject."""
    if len(set(subjects)) < 2:
        return Interval(float(values.mean()), float("nan"), float("nan"), len(values))
    order = np.lexsort((values, np.asarray(subjects)))  # the same draws in whatever order the cases came
    values, owners = values[order], np.asarray(subjects)[order]
    weights = resampled(owners.tolist(), [0] * len(owners), draws=draws, seed=seed)
    means = (weights @ values) / weights.sum(1)
    return percentiles(np.r_[values.mean(), means], len(values), level)


def signed_rank(values: Float[np.ndarray, " n"]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros after Pratt; 1 where all values are zero.

    Up to ``EXACT`` values it is exact, with ties and zeros, too: all ways to sign the ranks are counted. A normal curve
    would call five equal differences among many zeros sure, though no five of them can be.
    """
    if not values.any():
        return 1.0
    if len(values) > EXACT and int((values != 0).sum()) > EXACT // 4:
        from scipy.stats import wilcoxon

        return float(wilcoxon(np.sort(values), zero_method="pratt").pvalue)
    from scipy.stats import rankdata

    twice = np.round(2 * rankdata(np.abs(values))).astype(np.int64)  # mean ranks of ties are halves
    chance = np.zeros(int(twice[values != 0].sum()) + 1)
    chance[0] = 1.0
    for rank in twice[values != 0].tolist():
        moved = np.zeros_like(chance)
        moved[rank:] = chance[:-rank]
        chance = 0.5 * (chance + moved)
    found = int(twice[values > 0].sum())
    return min(1.0, 2 * min(float(chance[: found + 1].sum()), float(chance[found:].sum())))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays and does not count."""
    known = [i for i, value in enumerate(p) if not np.isnan(value)]
    result, floor = [float("nan")] * len(p), 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p[i])):
        floor = max(floor, min(1.0, (len(known) - rank) * p[i]))
        result[i] = floor
    return result


def judged(found: Iterable[Difference], *, level: float = 0.95) -> list[Difference]:
    """With corrected p and verdict, in a fixed order: by target and metric, small subsets first, "all" last."""
    found = sorted(found, key=lambda d: (d.target, _rank(d.metric), d.subset == ALL, d.subset.count("+"), d.subset))
    families: dict[tuple[str, bool], list[int]] = {}
    for i, difference in enumerate(found):
        families.setdefault((difference.metric, difference.subset == ALL), []).append(i)
    for rows in families.values():
        for i, p in zip(rows, holm([found[i].p for i in rows]), strict=True):
            verdict = _verdict(found[i].metric, found[i].interval, p, level)
            found[i] = replace(found[i], p_holm=p, verdict=verdict)
    return found


def higher_is_better(metric: str) -> bool | None:
    """None where it is not known."""
    for ending in ENDINGS:
        metric = metric.removesuffix(ending)
    return True if metric in HIGHER else False if metric in LOWER else None


def _by_key(rows: Iterable[Measured]) -> dict[tuple[str, str, str], dict[str, Measured]]:
    found: dict[tuple[str, str, str], dict[str, Measured]] = {}
    for row in rows:
        cases = found.setdefault((row.subset, row.target, row.metric), {})
        if row.case in cases:
            raise ValueError(f"case {row.case} has two values of {row.metric} for {row.target} given {row.subset}")
        cases[row.case] = row
    return found


def _one(
    key: tuple[str, str, str],
    pairs: dict[str, tuple[float, float]],
    subject: dict[str, str],
    *,
    left_out: int,
    level: float,
    draws: int,
    seed: int,
) -> Difference:
    """One line of the table from pairs of numbers."""
    cases = sorted(pairs)
    values = np.array([pairs[case] for case in cases], dtype=np.float64)
    owners = [subject[case] for case in cases]
    gain = values[:, 0] - values[:, 1]
    own: dict[str, list[float]] = {}
    for owner, value in zip(owners, gain.tolist(), strict=True):
        own.setdefault(owner, []).append(value)
    p = signed_rank(np.array([np.mean(v) for v in own.values()], dtype=np.float64))
    interval = clustered(gain, owners, level=level, draws=draws, seed=seed)
    means = values.mean(0)
    return Difference(*key, len(own), left_out, float(means[0]), float(means[1]), interval, p)


def _drawn(
    key: tuple[str, str, str],
    one: Float[np.ndarray, " r"],
    two: Float[np.ndarray, " r"],
    cases: Int[np.ndarray, " n"],
    owners: np.ndarray,
    left_out: int,
    level: float,
) -> Difference:
    """One line of the table from the metrics of all drawings."""
    gain = one - two
    known = gain[1:][~np.isnan(gain[1:])]
    aside = min(int((known <= 0).sum()), int((known >= 0).sum()))
    p = min(1.0, 2 * (aside + 1) / (len(known) + 1)) if len(known) else float("nan")
    interval = percentiles(gain, len(cases), level)
    subjects = len(np.unique(owners[cases]))
    p = max(p, 2.0 ** (1 - subjects))
    return Difference(*key, subjects, left_out, float(one[0]), float(two[0]), interval, p)


def _verdict(metric: str, interval: Interval, p: float, level: float) -> Verdict:
    sure = p < 1 - level and (interval.low > 0 or interval.high < 0)
    if not sure:
        return UNSURE
    up, good = interval.mean > 0, higher_is_better(metric)
    if good is None:
        return "higher" if up else "lower"
    return "better" if up == good else "worse"


def _rank(metric: str) -> tuple[int, str]:
    known = [*HIGHER, *LOWER]
    return (known.index(metric) if metric in known else len(known), metric)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _column_means(values: Float[np.ndarray, "k r"], known: Bool[np.ndarray, "k r"]) -> Float[np.ndarray, " r"]:
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(values.shape[1], np.nan), where=known.any(0))
