"""How much frozen features are worth when labels are few.

The same patients are tested whatever the number of labels: they are cut into folds once, by subject and class, as a
function of a seed and their names. Each fold is predicted by a logistic regression on the labels of the others, of
which a fraction is drawn several times; a draw at a smaller fraction is part of the same draw at a larger one. Folds
and draws are the same for all models, so that models are compared on differences.

Features are standardized with those of all training patients, labeled or not, and divided by the square root of
their number: features need no labels, and with few of them nothing else is stable. Classes are balanced by weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from medmae.core.errors import DataError, UsageError

from .statistics import Interval

METRICS = ("auc", "balanced_accuracy")
INVERSE_STRENGTH = 10.0
"""``C`` of the logistic regression, for features of unit expected length."""


@dataclass(frozen=True)
class Measurement:
    """One model, one draw of labels, one fold; AUC is the mean over classes of one against the rest."""

    model: str
    fraction: float
    draw: int
    fold: int
    labeled: int
    auc: float
    balanced_accuracy: float


@dataclass(frozen=True)
class Point:
    """One entry of the summary.

    Attributes:
        labeled: labeled cases a classifier learned from, mean over folds.
        interval: of the metric; over cases and draws of labels.
        gain: of the first model's value minus this one's, on the same cases and draws; None for the first model.
    """

    model: str
    fraction: float
    metric: str
    labeled: float
    interval: Interval
    gain: Interval | None = None


@dataclass(frozen=True)
class Curve:
    """Everything that was measured; ``folds`` is the number of folds there were cases for."""

    measurements: tuple[Measurement, ...]
    points: tuple[Point, ...]
    folds: int
    classes: tuple[str, ...]


def label_curve(
    features: Mapping[str, Float[np.ndarray, "n _"]],
    labels: Sequence[str],
    subjects: Sequence[str],
    *,
    fractions: Sequence[float | int],
    draws: int = 10,
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
    replicates: int = 1000,
) -> Curve:
    """Measure every model at every fraction of the labels.

    Args:
        features: by model, one row per case; models are compared with the first one.
        labels: class of every case.
        subjects: whose case it is; one subject's cases are never on both sides.
        fractions: shares of the training labels, in (0, 1]; at least one subject per class is always labeled.
        draws: of labels at every fraction below 1.
        folds: at most so many; fewer where a class has fewer subjects.
        seed: of folds, draws and intervals.
        level: of the intervals.
        replicates: of the bootstrap.

    Raises:
        UsageError: fractions, draws or folds that cannot be meant.
        DataError: fewer than two classes, a class with one subject only, or features that are not finite.
    """
    shares = sorted({float(f) for f in fractions})
    if not shares or not all(0 < f <= 1 for f in shares):
        raise UsageError(f"fractions must be in (0, 1], not {', '.join(f'{f:g}' for f in fractions) or 'none'}")
    if draws < 1 or folds < 2 or replicates < 1 or not 0 < level < 1:
        raise UsageError(f"draws ({draws}) must be at least 1, folds ({folds}) at least 2")
    classes = tuple(sorted(set(labels)))
    truth = np.array([classes.index(label) for label in labels])
    fold = assign_folds(truth, subjects, classes=classes, folds=folds, seed=seed)
    for name, values in features.items():
        bad = int((~np.isfinite(values)).any(1).sum())
        if bad or len(values) != len(truth):
            raise DataError(f"the features that {name} gives are not finite for {bad} of {len(truth)} case(s)")
    weights = _resampled(truth, subjects, replicates=replicates, seed=seed)
    measurements: list[Measurement] = []
    points: list[Point] = []
    for share in shares:
        count = 1 if share == 1 else draws
        chosen = _labeled(truth, subjects, fold, share=share, draws=count, seed=seed)
        picks = np.random.default_rng([seed, 2]).integers(0, count, (replicates, count))
        first: dict[str, np.ndarray] = {}
        for name, values in features.items():
            scores = np.stack([_predict(values, truth, fold, chosen[k], classes=len(classes)) for k in range(count)])
            measurements += _measured(name, share, scores, truth, fold, chosen)
            whole = _replicate(scores, truth, fold, np.ones((1, len(truth))), np.arange(count)[None])
            drawn = _replicate(scores, truth, fold, weights, picks)
            for metric in METRICS:
                apart = None
                if metric in first:
                    apart = _interval(first[metric] - np.r_[whole[metric], drawn[metric]], len(truth), level)
                else:
                    first[metric] = np.r_[whole[metric], drawn[metric]]
                labeled = float(np.mean([chosen[:, f].sum(1) for f in range(int(fold.max()) + 1)]))
                found = _interval(np.r_[whole[metric], drawn[metric]], len(truth), level)
                points.append(Point(name, share, metric, labeled, found, apart))
    return Curve(tuple(measurements), tuple(points), int(fold.max()) + 1, classes)


def assign_folds(
    truth: Int[np.ndarray, " n"], subjects: Sequence[str], *, classes: Sequence[str], folds: int, seed: int
) -> Int[np.ndarray, " n"]:
    """The fold of every case: by subject, balanced over classes, whatever the order of the cases.

    Raises DataError where there are fewer than two classes, or a class with a single subject.
    """
    if len(classes) < 2:
        what = f"all {len(truth)} case(s) have the class {classes[0]!r}" if classes else "no case has a class"
        raise DataError(f"{what}: there is nothing to tell apart. Choose another --target or more cases")
    own = dict(zip(reversed(subjects), reversed(truth.tolist()), strict=True))  # the class of a subject's first case
    members = {
        c: sorted((s for s, k in own.items() if k == c), key=lambda name: _rank(seed, name))
        for c in range(len(classes))
    }
    if small := [f"{classes[c]} ({len(found)})" for c, found in members.items() if len(found) < 2]:
        raise DataError(
            f"too few subjects of class {', '.join(small)}: one to learn from and one to test on are needed. "
            "Use more cases (--split all) or another --target"
        )
    folds = min(folds, *(len(found) for found in members.values()))
    place: dict[str, int] = {}
    for found in members.values():
        for name in found:  # going on where the last class ended keeps the folds equally large
            place[name] = len(place) % folds
    return np.array([place[name] for name in subjects])


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).hexdigest()


def _labeled(
    truth: Int[np.ndarray, " n"],
    subjects: Sequence[str],
    fold: Int[np.ndarray, " n"],
    *,
    share: float,
    draws: int,
    seed: int,
) -> Bool[np.ndarray, "draws folds n"]:
    """Who is labeled in each draw, for each fold that is tested: the first of a random order of each class."""
    own = dict(zip(reversed(subjects), reversed(truth.tolist()), strict=True))
    where = dict(zip(subjects, fold.tolist(), strict=True))
    names = sorted(own, key=lambda name: _rank(seed, name))
    chosen = np.zeros((draws, int(fold.max()) + 1, len(truth)), bool)
    for draw in range(draws):
        for tested in range(chosen.shape[1]):
            order = np.random.default_rng([seed, 1, draw, tested]).permutation(len(names))
            taken: set[str] = set()
            for c in set(own.values()):
                pool = [names[i] for i in order if own[names[i]] == c and where[names[i]] != tested]
                taken |= set(pool[: max(1, round(share * len(pool)))])
            chosen[draw, tested] = [name in taken for name in subjects]
    return chosen


def _predict(
    values: Float[np.ndarray, "n d"],
    truth: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    chosen: Bool[np.ndarray, "folds n"],
    *,
    classes: int,
) -> Float[np.ndarray, "n classes"]:
    """Probability of every class, of every case, from the labels of the other folds."""
    from sklearn.linear_model import LogisticRegression

    scores = np.zeros((len(truth), classes))
    for tested, labeled in enumerate(chosen):
        others = fold != tested
        mean, std = values[others].mean(0), values[others].std(0)
        scaled = (values - mean) / np.where(std > 1e-12, std, 1.0) / np.sqrt(values.shape[1])
        model: Any = LogisticRegression(C=INVERSE_STRENGTH, class_weight="balanced", max_iter=5000)
        model.fit(scaled[labeled].astype(np.float64), truth[labeled])
        scores[np.ix_(~others, model.classes_)] = model.predict_proba(scaled[~others].astype(np.float64))
    return scores


def _resampled(
    truth: Int[np.ndarray, " n"], subjects: Sequence[str], *, replicates: int, seed: int
) -> Float[np.ndarray, "r n"]:
    """How often every case occurs when subjects are drawn again, within each class."""
    rng = np.random.default_rng([seed, 3])
    own = dict(zip(reversed(subjects), reversed(truth.tolist()), strict=True))
    column = {name: i for i, name in enumerate(own)}
    times = np.zeros((replicates, len(own)))
    for c in sorted(set(own.values())):
        mine = [column[name] for name, k in own.items() if k == c]
        times[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), replicates)
    return times[:, [column[name] for name in subjects]]


def _replicate(
    scores: Float[np.ndarray, "draws n classes"],
    truth: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    picks: Int[np.ndarray, "r k"],
) -> dict[str, Float[np.ndarray, " r"]]:
    """Both metrics for every replicate: cases weighed by a row of ``weights``, draws taken as in ``picks``.

    AUC is taken inside folds, because scores of different classifiers need not be comparable; recall over all of them.
    """
    classes = scores.shape[-1]
    inside = [fold == f for f in range(int(fold.max()) + 1)]
    auc = np.stack([_known_mean([_auc(s, truth, part, weights) for part in inside]) for s in scores])
    right = scores.argmax(-1) == truth
    recalls = []
    for c in range(classes):
        mine = truth == c
        recalls.append((weights[:, mine] @ right[:, mine].T.astype(float)).T / weights[:, mine].sum(1))
    balanced = np.mean(recalls, 0)
    rows = np.arange(len(picks))[:, None]
    return {"auc": auc[picks, rows].mean(1), "balanced_accuracy": balanced[picks, rows].mean(1)}


def _auc(
    scores: Float[np.ndarray, "n classes"],
    truth: Int[np.ndarray, " n"],
    inside: Bool[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
) -> Float[np.ndarray, " r"]:
    """Mean over classes of the share of pairs (one of the class, one of the rest) in the right order; ties count half.

    NaN where a replicate has no such pair.
    """
    found = []
    for c in range(scores.shape[1]):
        one, rest = inside & (truth == c), inside & (truth != c)
        gap = scores[one, c][:, None] - scores[rest, c][None]
        order = (gap > 0) + 0.5 * (gap == 0)
        mine, others = weights[:, one], weights[:, rest]
        pairs = mine.sum(1) * others.sum(1)
        good = ((mine @ order) * others).sum(1)
        found.append(np.divide(good, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    return _known_mean(found)


def _known_mean(values: Sequence[Float[np.ndarray, " r"]]) -> Float[np.ndarray, " r"]:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(stacked.shape[1], np.nan), where=known.any(0))


def _measured(
    name: str,
    share: float,
    scores: Float[np.ndarray, "draws n classes"],
    truth: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    chosen: Bool[np.ndarray, "draws folds n"],
) -> list[Measurement]:
    """One row per draw and fold."""
    once = np.ones((1, len(truth)))
    rows = []
    for draw, found in enumerate(scores):
        right = found.argmax(-1) == truth
        for tested in range(chosen.shape[1]):
            inside = fold == tested
            recalls = [right[inside & (truth == c)].mean() for c in np.unique(truth[inside])]
            auc = float(_auc(found, truth, inside, once)[0])
            labeled = int(chosen[draw, tested].sum())
            rows.append(Measurement(name, share, draw, tested, labeled, auc, float(np.mean(recalls))))
    return rows


def _interval(values: Float[np.ndarray, " r"], cases: int, level: float) -> Interval:
    """The first value, with the quantiles of the others."""
    low, high = np.nanquantile(values[1:], ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values[0]), float(low), float(high), cases)
