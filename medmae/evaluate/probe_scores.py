"""Measures of predictions that come from several classifiers, one per fold, for many resamplings at once.

Scores of different classifiers need not be comparable, so pairs (area under the ROC curve, concordance) are formed
inside folds only. Classes and numbers are comparable, so accuracies and errors are taken over all cases. Sorting in
place of pairs keeps thousands of samples affordable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from .scores import Measure, average_precision
from .survival import comparable, concordance

Weights = Float[np.ndarray, "r n"]


def pairs_in_order(
    score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weights: Weights
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Weight of the pairs (positive, negative) in which the positive one scores higher, ties as half, and of all."""
    order = np.argsort(score, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(score[order])) + 1]  # one group per distinct score
    w, p = weights[:, order], positive[order]
    above = np.add.reduceat(w * p, first, axis=1)
    below = np.add.reduceat(w * ~p, first, axis=1)
    good = (above * (below.cumsum(1) - 0.5 * below)).sum(1)
    return good, above.sum(1) * below.sum(1)


def class_scores(
    probability: Float[np.ndarray, "n c"], truth: Int[np.ndarray, " n"], fold: Int[np.ndarray, " n"]
) -> Measure:
    """``auc`` and ``ap`` (means over the classes that occur, one against the rest; of the last class where there are
    two), ``balanced_accuracy`` (mean recall of the classes that occur) and ``accuracy``. NaN where it cannot be told.
    """
    classes = probability.shape[1]
    asked = [1] if classes == 2 else [c for c in range(classes) if (truth == c).any()]
    right = (probability.argmax(1) == truth).astype(float)
    parts = [np.flatnonzero(fold == f) for f in np.unique(fold)]

    def measure(weights: Weights) -> dict[str, Float[np.ndarray, " r"]]:
        auc, ap, recall = [], [], []
        for c in asked:
            found = [pairs_in_order(probability[p, c], truth[p] == c, weights[:, p]) for p in parts]
            auc.append(_ratio(np.sum([g for g, _ in found], axis=0), np.sum([t for _, t in found], axis=0)))
            ap.append(average_precision(probability[:, c], truth == c, weights))
            ap[-1] = np.where(np.isnan(auc[-1]), np.nan, ap[-1])
        for c in np.unique(truth):
            mine = truth == c
            recall.append(_ratio(weights[:, mine] @ right[mine], weights[:, mine].sum(1)))
        return {
            "auc": _mean(auc),
            "ap": _mean(ap),
            "balanced_accuracy": np.mean(recall, axis=0),
            "accuracy": _ratio(weights @ right, weights.sum(1)),
        }

    return measure


def value_scores(guess: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"]) -> Measure:
    """``r2`` (1 - squared error over that of the cases' own mean; below 0 is worse than the mean), ``mae`` in units of
    the truth, and ``spearman``, the correlation of the ranks (those among all cases, whatever is drawn again)."""
    ranks = _ranks(guess), _ranks(truth)

    def measure(weights: Weights) -> dict[str, Float[np.ndarray, " r"]]:
        total = weights.sum(1)
        mean = _ratio(weights @ truth, total)
        spread = (weights * np.square(truth[None] - mean[:, None])).sum(1)
        error = weights @ np.square(guess - truth)
        spread[spread <= 1e-12 * np.maximum(1e-30, np.square(mean) * total)] = 0.0
        return {
            "r2": 1 - _ratio(error, spread),
            "mae": _ratio(weights @ np.abs(guess - truth), total),
            "spearman": _correlation(*ranks, weights),
        }

    return measure


def survival_scores(
    risk: Float[np.ndarray, " n"],
    time: Float[np.ndarray, " n"],
    event: Bool[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
) -> Measure:
    """``c_index``, Harrell's concordance over the pairs of the same fold."""
    pairs = comparable(time, event) & (fold[:, None] == fold[None])
    return lambda weights: {"c_index": concordance(risk, pairs, weights)}


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place.reshape(-1)]


def _correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], weights: Weights) -> Float[np.ndarray, " r"]:
    total = weights.sum(1)
    da = a[None] - _ratio(weights @ a, total)[:, None]
    db = b[None] - _ratio(weights @ b, total)[:, None]
    scale = np.sqrt((weights * da * da).sum(1) * (weights * db * db).sum(1))
    return _ratio((weights * da * db).sum(1), scale)


def _ratio(above: Float[np.ndarray, " r"], below: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """Their quotient; NaN where there is nothing below."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _mean(values: Sequence[Float[np.ndarray, " r"]]) -> Float[np.ndarray, " r"]:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    return np.divide(
        np.where(known, stacked, 0.0).sum(0), known.sum(0), out=np.full(stacked.shape[1], np.nan), where=known.any(0)
    )
