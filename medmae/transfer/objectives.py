"""What a fine-tuned model is asked for: how far off the raw numbers are, and what they mean.

A target that is not known (class -1, any other NaN) enters neither the loss nor its denominator. Whatever is fitted
to outcomes (class weights, time bins, scales) is fitted on training cases before, and is part of the recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.tokens import Batch

CLASS, TIME, EVENT, VALUE = "target_class", "target_time", "target_event", "target_value"
"""Entries of a batch: Int64[b] (-1: not known); Float[b] (NaN: not known)."""


class Objective(nn.Module, ABC):
    """A loss and a reading of raw numbers.

    Attributes:
        outputs: numbers it wants from a head.
        batch_size: smallest batch that gives a gradient.
        hides: it asks for sequences that are there but hidden, so some always have to be hidden; what a patient has is
            then the entry ``had`` of the batch, Bool[b m].
    """

    outputs: int = 1
    batch_size: int = 1
    hides: bool = False

    @abstractmethod
    def forward(self, raw: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses."""

    def completed(self, raw: Any, batch: Batch) -> Any:
        """What a head says together with what needs no head; the default is the former alone."""
        return raw

    def start(self) -> Float[Tensor, " outputs"]:
        """Raw numbers that say what is known before any image is seen; heads begin there."""
        return torch.zeros(self.outputs)

    def agree(self, raw: Any, target: Any) -> Float[Tensor, ""]:
        """How far the raw numbers are from those of a teacher; the default is the mean squared difference."""
        return F.mse_loss(raw.float(), target.float())

    @abstractmethod
    def read(self, raw: Tensor) -> dict[str, Tensor]:
        """What the raw numbers say, by name; first axis is the samples."""


class Classes(Objective):
    """One of several classes, by cross-entropy.

    Args:
        count: number of classes.
        weights: of the classes in the loss, best with mean 1 over the training cases; None weighs all alike. They are
            not normalized inside a batch, where they would cancel out.
        smoothing: of the labels, in [0, 1).

    Raises:
        ValueError: fewer than two classes, or another number of weights.
    """

    weights: Tensor

    def __init__(
        self, *, count: int, weights: Sequence[float | int] | None = None, smoothing: float | int = 0.0
    ) -> None:
        super().__init__()
        if count < 2 or (weights is not None and len(weights) != count):
            raise ValueError(f"{count} classes with {weights} as weights: at least two, and one weight for each")
        self.outputs, self.smoothing = count, smoothing
        values = torch.tensor([1.0] * count if weights is None else [float(w) for w in weights])
        self.register_buffer("weights", values)

    def forward(self, raw: Float[Tensor, "b classes"], batch: Batch) -> dict[str, Tensor]:
        """``cross_entropy``, mean over the samples whose class is known."""
        truth = batch[CLASS].long()
        known = truth >= 0
        each = F.cross_entropy(
            raw.float(), truth.clamp_min(0), weight=self.weights, reduction="none", label_smoothing=self.smoothing
        )
        return {"cross_entropy": _mean(each, known)}

    def agree(self, raw: Float[Tensor, "b classes"], target: Float[Tensor, "b classes"]) -> Float[Tensor, ""]:
        """Cross-entropy with the probabilities of a teacher."""
        return F.cross_entropy(raw.float(), target.float().softmax(-1))

    def read(self, raw: Float[Tensor, "b classes"]) -> dict[str, Tensor]:
        """``probability`` [b classes]."""
        return {"probability": raw.float().softmax(-1)}


class Cox(Objective):
    """Proportional hazards: the negative partial log-likelihood of the batch (Cox, 1972; ties after Efron, 1977).

    The batch is all that an event is compared with, so batches must be large; see :class:`Hazards` for small ones.
    """

    batch_size = 2

    def forward(self, raw: Float[Tensor, "b 1"], batch: Batch) -> dict[str, Tensor]:
        """``cox``, mean over the events of the batch."""
        time, event = batch[TIME].float(), batch[EVENT].float()
        known = ~(time.isnan() | event.isnan())
        score = raw.float()[:, 0]
        loss = partial_likelihood(score[known], time[known], event[known] > 0)
        return {"cox": loss + 0 * score.sum()}

    def read(self, raw: Float[Tensor, "b 1"]) -> dict[str, Tensor]:
        """``risk`` [b]: logarithm of the hazard ratio; larger is sooner."""
        return {"risk": raw.float()[:, 0]}


def partial_likelihood(
    score: Float[Tensor, " n"], time: Float[Tensor, " n"], event: Bool[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Negative partial log-likelihood per event, ties after Efron; zero without events."""
    if not bool(event.any()):
        return score.sum() * 0
    total = score.new_zeros(())
    for moment in time[event].unique():
        here = event & (time == moment)
        count = int(here.sum())
        high = score[time >= moment].max().detach()  # whoever is at risk then: no sum is zero
        at_risk, tied = (score[time >= moment] - high).exp().sum(), (score[here] - high).exp().sum()
        step = torch.arange(count, device=score.device) / count
        total = total + torch.log(at_risk - step * tied).sum() + count * high - score[here].sum()
    return total / event.sum()


class Hazards(Objective):
    """Survival in discrete time: the probability of the event in each interval for those who reached it.

    A censored patient is known to have survived the intervals that ended before; an event counts in its own interval
    (Brown, 1975; Gensheimer and Narasimhan, 2019). Samples do not need one another, so any batch will do.

    Args:
        edges: ends of the intervals in units of the time, increasing; the first interval begins at 0. Events after the
            last edge count in the last interval.

    Raises:
        ValueError: fewer than two edges, or edges out of order.
    """

    edges: Tensor

    def __init__(self, *, edges: Sequence[float | int]) -> None:
        super().__init__()
        if len(edges) < 2 or list(edges) != sorted(set(edges)) or edges[0] <= 0:
            raise ValueError(f"edges {list(edges)}: at least two, above 0 and increasing")
        self.outputs = len(edges)
        self.register_buffer("edges", torch.tensor([float(edge) for edge in edges]))

    def forward(self, raw: Float[Tensor, "b bins"], batch: Batch) -> dict[str, Tensor]:
        """``hazard``, negative log-likelihood, mean over the samples whose outcome is known."""
        time, event = batch[TIME].float(), batch[EVENT].float()
        known = ~(time.isnan() | event.isnan())
        time, happened = time.nan_to_num(), (event == 1)[:, None]
        bins = torch.arange(self.outputs, device=raw.device)
        own = torch.searchsorted(self.edges, time[:, None].contiguous()).clamp_max(self.outputs - 1)
        inside = (bins == own) & happened
        survived = torch.where(happened, bins < own, self.edges <= time[:, None])
        raw = raw.float()
        each = F.softplus(raw) * survived + F.softplus(-raw) * inside
        return {"hazard": _mean(each.sum(-1), known)}

    def start(self) -> Float[Tensor, " outputs"]:
        """Equally many events in every interval: hazards 1/n, 1/(n-1), ..., and the last one high."""
        left = torch.arange(self.outputs - 1, -1, -1, dtype=torch.float32)
        return -left.clamp_min(0.2).log()

    def read(self, raw: Float[Tensor, "b bins"]) -> dict[str, Tensor]:
        """``survival`` [b bins]: probability to reach each edge; ``expected`` [b]: mean time up to the last edge;
        ``risk`` [b]: the share of that time that is expected to be lost, in [0, 1]; larger is sooner.
        """
        survival = F.logsigmoid(-raw.float()).cumsum(-1).exp()
        start = torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], 1)
        length = torch.diff(self.edges, prepend=self.edges.new_zeros(1))
        expected = (0.5 * (start + survival) * length).sum(-1)
        return {"risk": 1 - expected / self.edges[-1], "expected": expected, "survival": survival}


class Regression(Objective):
    """One number, by smooth L1 of the standardized value.

    Args:
        mean: of the training cases.
        std: of the training cases, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: float | int = 0.0, std: float | int = 1.0) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"std {std} must be above 0: a constant value cannot be learned")
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, raw: Float[Tensor, "b 1"], batch: Batch) -> dict[str, Tensor]:
        """``regression``, mean over the samples whose value is known."""
        truth = batch[VALUE].float()
        known = ~truth.isnan()
        scaled = (truth.nan_to_num() - self.mean) / self.std
        return {"regression": _mean(F.smooth_l1_loss(raw.float()[:, 0], scaled, reduction="none"), known)}

    def read(self, raw: Float[Tensor, "b 1"]) -> dict[str, Tensor]:
        """``value`` [b] in the units of the table."""
        return {"value": raw.float()[:, 0] * self.std + self.mean}


def _mean(each: Float[Tensor, " b"], known: Bool[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean over the known ones; zero, with a gradient of zero, without any."""
    return torch.where(known, each, each * 0).sum() / known.sum().clamp_min(1)
