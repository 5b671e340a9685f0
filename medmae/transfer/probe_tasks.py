"""What a probe is to tell: one of several classes, a number, or survival; and how each is learned from vectors.

Losses are convex and solved to the end, so a probe has no learning rate, no random start and nothing to tune but the
strength of its penalty.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medmae.core.errors import DataError, UsageError
from medmae.evaluate.probe_scores import class_scores, survival_scores, value_scores
from medmae.evaluate.scores import Measure


@runtime_checkable
class Task(Protocol):
    """What is to be told of cases; ``rows`` are indices of cases."""

    classes: tuple[str, ...]
    metric: str

    def strata(self, subjects: Sequence[str], folds: int) -> Int[np.ndarray, " n"]:
        """By which folds are balanced."""
        ...

    def blocks(self) -> tuple[object, ...]:
        """Within which subjects are drawn again, one entry per case."""
        ...

    def linear(self, x: Any, new: Any, rows: Any, strength: float) -> Any:
        """What a linear model that learned from ``x``, the features of ``rows``, says of ``new``: [m k]."""
        ...

    def vote(self, share: Any, rows: Any) -> Any:
        """What neighbors among ``rows`` say, whose votes weigh ``share`` [m n]: [m k]."""
        ...

    def scores(self, prediction: Any, rows: Any, fold: Any) -> Measure:
        """How good the predictions [m k] of ``rows`` are."""
        ...


class Classes:
    """One of several classes."""

    def __init__(self, labels: Sequence[str], metric: str) -> None:
        self.classes = tuple(sorted(set(labels)))
        self.truth = np.array([self.classes.index(label) for label in labels], dtype=np.int64)
        self.metric = metric

    def strata(self, subjects: Sequence[str], folds: int) -> Int[np.ndarray, " n"]:
        """See :class:`Task`. A subject with cases of several classes stands for the one that fewest subjects show."""
        showing = [{s for s, t in zip(subjects, self.truth, strict=True) if t == c} for c in range(len(self.classes))]
        if sum(map(len, showing)) == len(set(subjects)) or min(map(len, showing), default=0) < 2:
            return self.truth
        place = {s: c for c in sorted(range(len(showing)), key=lambda c: -len(showing[c])) for s in sorted(showing[c])}
        sizes = Counter(place.values())
        most = max(sizes, key=lambda c: sizes[c])
        place = {s: c if sizes[c] > 1 else most for s, c in place.items()}
        if len(set(place.values())) == 1:  # all show all: any two halves are as balanced
            place = {s: i % 2 for i, s in enumerate(sorted(place))}
        return np.array([place[s] for s in subjects], dtype=np.int64)

    def blocks(self) -> tuple[object, ...]:
        """See :class:`Task`."""
        return tuple(self.truth.tolist())

    def linear(self, x: Any, new: Any, rows: Any, strength: float) -> Any:
        """See :class:`Task`."""
        from sklearn.linear_model import LogisticRegression

        if len(set(self.truth[rows].tolist())) < 2:  # in a part of the training cases, where the penalty is chosen
            return np.tile(np.eye(len(self.classes))[self.truth[rows[0]]], (len(new), 1))
        model: Any = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: a weak penalty that is slow is not chosen by chance
            model.fit(x, self.truth[rows])
        found = np.zeros((len(new), len(self.classes)))
        found[:, model.classes_] = model.predict_proba(new)
        return found

    def vote(self, share: Any, rows: Any) -> Any:
        """See :class:`Task`."""
        return share @ np.eye(len(self.classes))[self.truth[rows]]

    def scores(self, prediction: Any, rows: Any, fold: Any) -> Measure:
        """See :class:`Task`."""
        return class_scores(prediction, self.truth[rows], fold)


class Values:
    """A number."""

    classes: tuple[str, ...] = ()
    metric = "r2"

    def __init__(self, values: Sequence[float] | Float[np.ndarray, " n"]) -> None:
        self.truth = np.asarray(values, dtype=np.float64)
        if not np.isfinite(self.truth).all():
            raise DataError(f"{int((~np.isfinite(self.truth)).sum())} of {len(self.truth)} values are not finite")
        if len(self.truth) and bool((self.truth == self.truth[0]).all()):
            raise DataError(f"all {len(self.truth)} case(s) have the value {self.truth[0]:g}: nothing to tell apart")

    def strata(self, subjects: Sequence[str], folds: int) -> Int[np.ndarray, " n"]:
        """See :class:`Task`."""
        return ranges(self.truth, subjects, folds)

    def blocks(self) -> tuple[object, ...]:
        """See :class:`Task`."""
        return ("",) * len(self.truth)

    def linear(self, x: Any, new: Any, rows: Any, strength: float) -> Any:
        """See :class:`Task`."""
        from sklearn.linear_model import Ridge

        y = self.truth[rows]
        scale = y.std() or 1.0
        model = Ridge(alpha=1 / strength).fit(x, (y - y.mean()) / scale)
        return (model.predict(new) * scale + y.mean())[:, None]

    def vote(self, share: Any, rows: Any) -> Any:
        """See :class:`Task`."""
        return (share @ self.truth[rows])[:, None]

    def scores(self, prediction: Any, rows: Any, fold: Any) -> Measure:
        """See :class:`Task`."""
        return value_scores(prediction[:, 0], self.truth[rows])


class Survival:
    """A time, and whether the event happened then."""

    classes: tuple[str, ...] = ()
    metric = "c_index"

    def __init__(
        self,
        time: Sequence[float] | Float[np.ndarray, " n"],
        event: Sequence[bool] | Bool[np.ndarray, " n"],
    ) -> None:
        self.time, self.event = np.asarray(time, dtype=np.float64), np.asarray(event).astype(bool)
        if len(self.time) != len(self.event) or not np.isfinite(self.time).all():
            raise DataError("times must be finite, and each needs an event")
        if not self.event.any():
            raise DataError(f"all {len(self.time)} case(s) are censored: no pair can be compared")

    def strata(self, subjects: Sequence[str], folds: int) -> Int[np.ndarray, " n"]:
        """See :class:`Task`."""
        own = dict(zip(reversed(subjects), self.event.tolist()[::-1], strict=True))
        if min(sum(own.values()), len(own) - sum(own.values())) >= 2:
            return self.event.astype(np.int64)
        return ranges(self.time, subjects, folds)

    def blocks(self) -> tuple[object, ...]:
        """See :class:`Task`."""
        return tuple(self.event.tolist())

    def linear(self, x: Any, new: Any, rows: Any, strength: float) -> Any:
        """See :class:`Task`."""
        return (new @ cox_weights(x, self.time[rows], self.event[rows], strength=strength))[:, None]

    def vote(self, share: Any, rows: Any) -> Any:
        """See :class:`Task`."""
        raise UsageError("neighbors cannot tell survival, where times are censored: use the linear probe")

    def scores(self, prediction: Any, rows: Any, fold: Any) -> Measure:
        """See :class:`Task`."""
        return survival_scores(prediction[:, 0], self.time[rows], self.event[rows], fold)


def ranges(values: Any, subjects: Sequence[str], folds: int) -> Int[np.ndarray, " n"]:
    """Ranges of the value of a subject's first case, equally many subjects in each, enough in each for the folds."""
    own = dict(zip(reversed(subjects), np.asarray(values).tolist()[::-1], strict=True))
    if len(own) < 4:
        raise DataError(f"{len(own)} subject(s) are too few to hold any out: at least 4 are needed")
    count = max(2, min(5, len(own) // folds))
    order = sorted(own, key=lambda name: (own[name], name))
    place = {name: i * count // len(order) for i, name in enumerate(order)}
    return np.array([place[name] for name in subjects], dtype=np.int64)


def cox_weights(
    x: Float[np.ndarray, "n d"], time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"], *, strength: float
) -> Float[np.ndarray, " d"]:
    """Weights of a Cox model, where the negative partial log-likelihood plus ``|w|^2 / (2 strength)`` is least."""
    from scipy.optimize import minimize

    loss = _efron(x, time, event)

    def both(w: Float[np.ndarray, " d"]) -> tuple[float, Float[np.ndarray, " d"]]:
        weights = torch.from_numpy(w.copy()).requires_grad_()
        total = loss(weights) + 0.5 / strength * weights.square().sum()
        (slope,) = torch.autograd.grad(total, weights)
        return float(total.detach()), slope.numpy()

    found: np.ndarray = minimize(both, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found


def _efron(
    x: Float[np.ndarray, "n d"], time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"]
) -> Callable[[Tensor], Tensor]:
    """The sum over events that :func:`medmae.transfer.objectives.partial_likelihood` is the mean of, without a loop
    over times and in double precision, as a function of the weights."""
    order = np.argsort(-time, kind="stable")
    rows, when, happened = torch.from_numpy(x[order].astype(np.float64)), time[order], event[order]
    here = np.flatnonzero(happened)
    last = np.searchsorted(-when, -when[here], side="right") - 1  # the last who is at risk then
    _, group, count = np.unique(when[here], return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    step = np.zeros(len(here))
    for g in np.flatnonzero(count > 1):
        step[group == g] = np.arange(count[g]) / count[g]
    at, of, until, share = (torch.from_numpy(v) for v in (here, group, last, step))

    def loss(weights: Tensor) -> Tensor:
        score = rows @ weights
        high = score.detach().cummax(0).values[until]  # of those at risk: no sum is zero
        risk = torch.logcumsumexp(score, 0)[until] - high
        tied = torch.zeros(len(count), dtype=score.dtype).index_add(0, of, (score[at] - high).exp())
        return (torch.log(risk.exp() - share * tied[of]) + high - score[at]).sum()

    return loss
