"""What a segmentation is asked for: every voxel's regions or its class, by Dice and cross-entropy.

Regions may overlap (the enhancing part of a tumor belongs to its core), so each is a question of its own, a sigmoid;
classes exclude one another, a softmax. Dice is taken over the whole batch, so that a window without a tumor does not
turn one false voxel into a total failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from medmae.core.tokens import Batch

from .objectives import Objective

LABEL = "label"
"""Entry of a batch: Int64[b 1 *size], class of every voxel; below 0: not known."""


class Segments(Objective):
    """Regions or classes of every voxel: the mean of soft Dice loss and cross-entropy.

    Args:
        names: of the regions or classes, without the background.
        values: for each of them, the values in the label that it unites.
        exclusive: classes that exclude one another, with a background channel in front; else regions that may overlap.
        weights: of the names in both losses, best with mean 1; None weighs all alike. Rare ones deserve more.
        ignore: value in the label whose voxels count for nothing.
        dice: share of the Dice loss, in [0, 1]; the rest is cross-entropy.
        prevalence: share of voxels of each name in training, from which the scores begin; None is 0.02 each.

    Raises:
        ValueError: lists that do not belong together.
    """

    weights: Tensor

    def __init__(
        self,
        *,
        names: Sequence[str],
        values: Sequence[Sequence[int]],
        exclusive: bool = False,
        weights: Sequence[float | int] | None = None,
        ignore: int | None = None,
        dice: float | int = 0.5,
        prevalence: Sequence[float | int] | None = None,
    ) -> None:
        super().__init__()
        if not names or len(names) != len(values) or not all(values):
            raise ValueError(f"{len(names)} name(s) with values {list(values)}: each needs at least one")
        for what, given in (("weights", weights), ("prevalence", prevalence)):
            if given is not None and len(given) != len(names):
                raise ValueError(f"{what} {list(given)}: one for each of {', '.join(names)}")
        if not 0 <= dice <= 1:
            raise ValueError(f"the share of the Dice loss is in [0, 1], not {dice}")
        self.names, self.values, self.exclusive, self.dice = tuple(names), [list(v) for v in values], exclusive, dice
        self.ignore, self.outputs = ignore, len(names) + exclusive
        scale = [1.0] * len(names) if weights is None else [float(w) for w in weights]
        self.register_buffer("weights", torch.tensor([1.0] * exclusive + scale))
        self.prevalence = [0.02] * len(names) if prevalence is None else [float(p) for p in prevalence]

    def forward(self, raw: Any, batch: Batch) -> dict[str, Tensor]:
        """``dice`` and ``cross_entropy``; of several scales, weighed by 1, 1/2, 1/4, ... as in nnU-Net.

        Args:
            raw: scores [b outputs *size], or a list of them, the finest first.
            batch: with ``label``.
        """
        truth, known = self._truth(batch[LABEL])
        scales = [raw] if isinstance(raw, Tensor) else list(raw)
        shares = [0.5**i for i in range(len(scales))]
        dice = cross = truth.new_zeros(())
        for scores, share in zip(scales, shares, strict=True):
            size = scores.shape[2:]
            here = truth if truth.shape[2:] == size else F.interpolate(truth, size=size, mode="nearest")
            where = known if known.shape[2:] == size else F.interpolate(known, size=size, mode="nearest")
            part = share / sum(shares)
            dice = dice + part * self._dice(self._probability(scores), here, where)
            cross = cross + part * self._cross(scores.float(), here, where)
        return {"dice": self.dice * dice, "cross_entropy": (1 - self.dice) * cross}

    def agree(self, raw: Any, target: Any) -> Float[Tensor, ""]:
        """Cross-entropy with what a teacher says, at the finest scale."""
        mine, theirs = (found if isinstance(found, Tensor) else found[0] for found in (raw, target))
        if self.exclusive:
            return F.cross_entropy(mine.float(), theirs.float().softmax(1))
        return F.binary_cross_entropy_with_logits(mine.float(), theirs.float().sigmoid())

    def start(self) -> Float[Tensor, " outputs"]:
        """Scores that say how frequent each name is."""
        rates = torch.tensor([min(max(p, 1e-4), 0.9) for p in self.prevalence])
        if not self.exclusive:
            return (rates / (1 - rates)).log()
        return torch.cat([(1 - rates.sum()).clamp_min(1e-4)[None], rates]).log()

    def read(self, raw: Float[Tensor, "b outputs *size"]) -> dict[str, Tensor]:
        """``probability`` [b names *size], without the background."""
        found = self._probability(raw)
        return {"probability": found[:, 1:] if self.exclusive else found}

    def _probability(self, raw: Tensor) -> Tensor:
        return raw.float().softmax(1) if self.exclusive else raw.float().sigmoid()

    def _truth(
        self, label: Int[Tensor, "b 1 *size"]
    ) -> tuple[Float[Tensor, "b outputs *size"], Float[Tensor, "b 1 *size"]]:
        """One channel per output, and which voxels are known."""
        channels = [torch.isin(label, label.new_tensor(values)).float() for values in self.values]
        truth = torch.cat(channels, 1)
        if self.exclusive:
            truth = torch.cat([1 - truth.amax(1, keepdim=True), truth], 1)
        known = label >= 0 if self.ignore is None else (label >= 0) & (label != self.ignore)
        return truth, known.float()

    def _dice(self, probability: Tensor, truth: Tensor, known: Tensor) -> Tensor:
        axes = (0, *range(2, truth.ndim))
        both = (probability * truth * known).sum(axes)
        total = ((probability + truth) * known).sum(axes)
        each = 1 - (2 * both + 1e-5) / (total + 1e-5)
        first = int(self.exclusive)  # of no use for the background
        weights = self.weights[first:]
        return (each[first:] * weights).sum() / weights.sum()

    def _cross(self, raw: Tensor, truth: Tensor, known: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (truth.ndim - 2))
        if self.exclusive:
            each = -(raw.log_softmax(1) * truth * self.weights.view(shape)).sum(1, keepdim=True)
        else:
            each = F.binary_cross_entropy_with_logits(raw, truth, reduction="none") * self.weights.view(shape)
        return (each * known).sum() / (known.sum() * each.shape[1]).clamp_min(1)
