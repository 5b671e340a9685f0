"""What an encoder says of a patient when everything is visible, and the ways to make one vector of it.

Places count by their share of the foreground, or of a region of interest: small lesions drown in a mean over the brain.
A sequence that is missing has no places, so it leaves no trace but its absence, whatever the batch holds besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from medmae.core.errors import CheckpointError, UsageError
from medmae.core.grid import Grid
from medmae.nets.contrast import weighted_mean
from medmae.nets.encoded import Encoded, Pyramid

POOLS = ("mean", "cls", "modality", "mean_max")


@dataclass(frozen=True)
class Features:
    """Features of every place of a batch.

    Attributes:
        values: one vector per token (or cell of a map), exactly zero where missing.
        weight: what each counts, zero where missing; no row is all zero.
        modality: sequence of each token; None where a place stands for all sequences at once.
        prefix: vectors that stand for no place ([CLS], registers); may be none.
        encoded: what the encoder gave, for decoders.
        sequences: number of sequences that tokens may be of.
    """

    values: Float[Tensor, "b n d"]
    weight: Float[Tensor, "b n"]
    modality: Int[Tensor, "b n"] | None
    prefix: Float[Tensor, "b k d"]
    encoded: Encoded | Pyramid
    sequences: int = 1

    def pooled(self, how: str = "mean") -> Float[Tensor, "b p"]:
        """One vector per sample, as long as :func:`pooled_width` says.

        Args:
            how: ``mean`` over places; ``cls``, the first prefix token; ``modality``, the mean over the sequences that
                are there of their means, so that each counts alike; ``mean_max``, the mean and behind it the largest
                value over the places that count at all, which finds what only one place shows.

        Raises:
            UsageError: there is no such pooling.
            CheckpointError: the encoder has no [CLS] token, or no tokens per sequence.
        """
        if how == "mean":
            return weighted_mean(self.values, self.weight)
        if how == "mean_max":
            counts = (self.weight > 0) | (self.weight.amax(1, keepdim=True) <= 0)  # all, where none does
            largest = self.values.masked_fill(~counts[..., None], -torch.inf).amax(1)
            return torch.cat([weighted_mean(self.values, self.weight), largest], -1)
        if how == "cls":
            if not self.prefix.shape[1]:
                raise CheckpointError("this encoder has no [CLS] token: choose another pooling, such as mean")
            return self.prefix[:, 0].float()
        if how != "modality":
            raise UsageError(f"pooling {how!r} is not known; it is one of {', '.join(POOLS)}")
        means = self.by_modality()
        there = (~means.isnan().any(-1)).float()
        return weighted_mean(means.nan_to_num(), there)

    def by_modality(self) -> Float[Tensor, "b m d"]:
        """One vector per sample and sequence; NaN where a sequence is missing.

        Raises:
            CheckpointError: the encoder joins all sequences before it has places.
        """
        if self.modality is None:
            raise CheckpointError("this encoder joins the sequences: it has no features per sequence, choose mean")
        found = []
        for index in range(self.sequences):
            weight = self.weight * (self.modality == index)
            mean = weighted_mean(self.values, weight)
            found.append(mean.where(weight.sum(1, keepdim=True) > 0, torch.nan))
        return torch.stack(found, 1)


def pooled_width(width: int, how: str) -> int:
    """How long a vector is that ``how`` makes of places with ``width`` features.

    ``mean_max`` is for clouds: Point-MAE's classifier reads the largest value over groups, beside a [CLS] token that it
    adds for fine-tuning. Frozen features have no such token, and the mean stands in its place.
    """
    return 2 * width if how == "mean_max" else width


def gather(
    encoded: Encoded | Pyramid,
    *,
    grid: Grid | None,
    counts: Shaped[Tensor, "b 1 *size"] | None,
    layer: int | None = None,
) -> Features:
    """Features of what an encoder gave.

    Args:
        encoded: with everything visible.
        grid: of the tokenizer; None where tokens do not lie on one (groups of points).
        counts: share of every voxel that counts; where nothing of a sample counts, all its places do. Without a grid
            what counts is what the tokenizer says.
        layer: block of a transformer (it must have been tapped) or level of a pyramid in place of the last.
    """
    if isinstance(encoded, Pyramid):
        level = encoded.dense()[-1 if layer is None else layer]
        values = level.flatten(2).mT.float()
        weight = values.new_ones(values.shape[:2])
        if counts is not None:
            shrink: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[level.ndim - 2]
            weight = _or_all(shrink(counts.float(), level.shape[2:]).flatten(1), weight)
        return Features(values, weight, None, values[:, :0], encoded)
    layout, content, prefix = encoded.tokens.layout, encoded.tokens.content, encoded.prefix
    if layer is not None:
        content, prefix = encoded.taps[layer], encoded.tap_prefix.get(layer, prefix[:, :0])
    exists = layout.exists.float()
    weight = exists
    if grid is None:
        weight = exists if layout.weight is None else _or_all(exists * layout.weight, exists)
        values = content.float().masked_fill(exists[..., None] == 0, 0.0)
        return Features(values, weight, layout.modality, prefix.float(), encoded)
    if counts is not None:
        place = layout.id.clamp_min(0) % grid.length
        weight = _or_all(exists * grid.share(counts).gather(1, place), exists)
    joined = layout.total == grid.length  # one token per place, whatever the number of sequences
    values = content.float().masked_fill(exists[..., None] == 0, 0.0)
    modality = None if joined else layout.modality
    return Features(values, weight, modality, prefix.float(), encoded, layout.total // grid.length)


def _or_all(weight: Float[Tensor, "b n"], everything: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """``everything`` in the rows of ``weight`` that are zero."""
    return torch.where(weight.sum(1, keepdim=True) > 0, weight, everything)
