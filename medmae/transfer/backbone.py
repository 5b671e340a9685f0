"""A pre-trained encoder with everything visible: features per place, one vector per patient.

Transformers have a vector per token, convolutional networks one per cell of a map; both are read in the same way.
Sequences that are missing leave no trace but their absence, as in pre-training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.errors import CheckpointError, UsageError
from medmae.core.tokens import Batch
from medmae.nets.encoded import Encoded, Pyramid

from .pooling import Features, gather
from .windows import over_windows

_LEVEL = re.compile(r"(?:^|\.)(?:stages|blocks)\.(?:blocks\.)?(\d+)\.")


class Backbone(nn.Module):
    """The tokenizer and encoder of a method; what else it needed for pre-training is left behind.

    Args:
        method: any method with a tokenizer and an encoder: of volumes, images, clips, points or sound.
        layer: block of a transformer (from 0) or level of a convolutional network (from fine) that is read in place of
            the last one.
        frozen: never trained, and always in evaluation mode.

    Attributes:
        taps: further blocks of a transformer whose features are handed on; who needs them sets them.

    Raises:
        CheckpointError: the method has no such parts.
        UsageError: there is no such layer.
    """

    def __init__(self, method: nn.Module, *, layer: int | None = None, frozen: bool = False) -> None:
        super().__init__()
        tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
        if tokenizer is None or encoder is None:
            raise CheckpointError(f"{type(method).__name__} has no tokenizer and encoder to take features from")
        self.tokenizer: Any = tokenizer
        self.encoder = encoder
        self.layer, self.frozen = layer, frozen
        self.taps: tuple[int, ...] = ()
        self.sequences: tuple[str, ...] = tuple(tokenizer.names)
        levels = max((n for name, _ in encoder.named_parameters() if (n := _level(name)) is not None), default=-1) + 1
        if layer is not None and not 0 <= layer < levels:
            raise UsageError(f"layer {layer}: this encoder has layers 0 to {levels - 1}")
        self.levels = levels
        if frozen:
            self.requires_grad_(False)

    @property
    def width(self) -> int:
        """Features per place."""
        widths = getattr(self.encoder, "widths", None)
        found: Any = widths[-1 if self.layer is None else self.layer] if widths else self.encoder.width
        return int(found)

    def train(self, mode: bool = True) -> Backbone:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def depth(self, name: str) -> int:
        """How deep the parameter ``name`` of this module lies: 0 for embeddings, 1 for the first block, and so on."""
        level = _level(name)
        if level is not None:
            return level + 1
        return self.levels if name.startswith("encoder.norm") else 0

    def forward(self, batch: Batch, *, region: str | None = None) -> Features:
        """Features of every place.

        Args:
            batch: what the tokenizer reads, with any subset of its sequences marked as ``present``.
            region: entry of the batch, [b 1 *size], whose share decides what a place counts; else ``foreground``.

        Raises:
            CheckpointError: the encoder gives no features.
            UsageError: the batch has no such region.
        """
        if region is not None and region not in batch:
            raise UsageError(f"the batch has no region {region!r}")
        tap = self.taps if self.layer is None else (*self.taps, self.layer)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.tokenizer(batch)
            encoded = self.encoder(tokens, tokens.layout, tap)
        if not isinstance(encoded, Encoded | Pyramid):
            raise CheckpointError(f"{type(self.encoder).__name__} gives a {type(encoded).__name__}: no features")
        counts = batch.get(region or "foreground")
        if region is not None and "foreground" in batch:  # where the region is empty, the foreground counts
            empty = ~counts.flatten(1).any(1).reshape(-1, *(1,) * (counts.ndim - 1))  # type: ignore[union-attr]
            counts = torch.where(empty, batch["foreground"].float(), counts.float())  # type: ignore[union-attr]
        return gather(encoded, grid=getattr(self.tokenizer, "grid", None), counts=counts, layer=self.layer)


def _level(name: str) -> int | None:
    """The block or stage that a parameter belongs to."""
    found = _LEVEL.search(name)
    return None if found is None else int(found.group(1))


def features(method: nn.Module, batch: Batch, *, pool: str = "mean") -> Float[Tensor, "b d"]:
    """One vector per sample.

    Args:
        method: any method with a tokenizer and an encoder, or a :class:`Backbone`.
        batch: what the method reads, with any subset of its sequences marked as ``present``.
        pool: see :meth:`medmae.transfer.pooling.Features.pooled`.

    Raises:
        CheckpointError: the method has no such parts.
    """
    backbone = method if isinstance(method, Backbone) else Backbone(method)
    found: Features = backbone(batch)
    return found.pooled(pool)


@torch.no_grad()
def volume_features(
    method: nn.Module,
    images: Mapping[str, Float[Tensor, "*size"]],
    foreground: Bool[Tensor, "*size"],
    *,
    spacing: Sequence[float | int],
    batch_size: int = 1,
    pool: str = "mean",
) -> Float[Tensor, " d"]:
    """One vector for a volume of any size: the mean over windows that cover it, weighed by their foreground.

    Args:
        method: with a tokenizer on one grid, on any device; its mode is not changed.
        images: normalized volumes by sequence; those the method does not know are ignored.
        foreground: voxels that count.
        spacing: millimeters per voxel.
        batch_size: windows per forward pass.
        pool: see :meth:`medmae.transfer.pooling.Features.pooled`.

    Raises:
        CheckpointError: the method has no encoder of volumes, or knows none of the sequences.
    """
    grid = getattr(getattr(method, "tokenizer", None), "grid", None)
    if grid is None or len(grid.size) != foreground.ndim or grid.channels != 1:
        raise CheckpointError(f"{type(method).__name__} has no encoder of windows with {foreground.ndim} axes")
    return over_windows(
        lambda batch: features(method, batch, pool=pool),
        images,
        foreground,
        names=tuple(method.sequences),  # type: ignore[arg-type]
        size=grid.size,
        spacing=spacing,
        device=next(method.parameters()).device,
        batch_size=batch_size,
    )
