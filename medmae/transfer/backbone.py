"""One vector per patient from any pre-trained encoder, with everything visible.

Transformers give the mean of their tokens, convolutional networks the mean of their deepest map; places count by their
share of foreground. Sequences that are missing leave no trace but their absence, as in pre-training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.errors import CheckpointError
from medmae.core.tokens import Batch, without_trivial_masks
from medmae.nets.contrast import pooled, weighted_mean
from medmae.nets.encoded import Encoded, Pyramid


def features(method: nn.Module, batch: Batch) -> Float[Tensor, "b d"]:
    """One vector per sample.

    Args:
        method: any method with a tokenizer and an encoder.
        batch: what the method reads, with any subset of its sequences marked as ``present``.

    Raises:
        CheckpointError: the method has no such parts.
    """
    tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if tokenizer is None or encoder is None:
        raise CheckpointError(f"{type(method).__name__} has no tokenizer and encoder to take features from")
    tokens = tokenizer(batch)
    encoded = encoder(tokens, tokens.layout)
    if isinstance(encoded, Pyramid):
        return pooled(encoded.dense()[-1], batch.get("foreground"))
    if not isinstance(encoded, Encoded):
        raise CheckpointError(f"the encoder of {type(method).__name__} gives a {type(encoded).__name__}: no features")
    layout = encoded.tokens.layout
    exists = layout.exists.float()
    weight = exists if layout.weight is None else exists * layout.weight
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, exists)
    content = encoded.tokens.content.float().masked_fill(exists[..., None] == 0, 0.0)
    return weighted_mean(content, weight)


@torch.no_grad()
def volume_features(
    method: nn.Module,
    images: Mapping[str, Float[Tensor, "*size"]],
    foreground: Bool[Tensor, "*size"],
    *,
    spacing: Sequence[float | int],
    batch_size: int = 1,
) -> Float[Tensor, " d"]:
    """One vector for a volume of any size: the mean over windows that cover it, weighed by their foreground.

    Args:
        method: with a tokenizer on one grid, on any device; its mode is not changed.
        images: normalized volumes by sequence; those the method does not know are ignored.
        foreground: voxels that count.
        spacing: millimeters per voxel.
        batch_size: windows per forward pass.

    Raises:
        CheckpointError: the method has no encoder of volumes, or knows none of the sequences.
    """
    grid = getattr(getattr(method, "tokenizer", None), "grid", None)
    if grid is None or len(grid.size) != foreground.ndim or grid.channels != 1:
        raise CheckpointError(f"{type(method).__name__} has no encoder of windows with {foreground.ndim} axes")
    names: tuple[str, ...] = tuple(method.sequences)  # type: ignore[arg-type]
    given = [name for name in names if name in images]
    if not given:
        raise CheckpointError(f"the model knows {', '.join(names)}, and the case has {', '.join(images) or 'nothing'}")
    device = next(method.parameters()).device
    padded = {name: _padded(images[name].float(), grid.size) for name in given}
    inside = _padded(foreground.float(), grid.size)
    windows = [window for window in _cover(inside.shape, grid.size) if bool(inside[window].any())]
    windows = windows or list(_cover(inside.shape, grid.size))
    total: Tensor | None = None
    for first in range(0, len(windows), batch_size):
        chosen = windows[first : first + batch_size]
        batch = {
            name: torch.stack([padded[name][window] for window in chosen])[:, None]
            if name in padded
            else torch.zeros(len(chosen), 1, *grid.size)
            for name in names
        }
        batch["foreground"] = torch.stack([inside[window] for window in chosen])[:, None]
        batch["spacing"] = torch.tensor([list(spacing)] * len(chosen), dtype=torch.float32)
        batch["present"] = torch.tensor([[name in padded for name in names]] * len(chosen))
        weight = batch["foreground"].flatten(1).sum(1).clamp_min(1e-6)
        found = features(method, {k: v.to(device) for k, v in without_trivial_masks(batch).items()})
        part = (found.double().cpu() * weight.double()[:, None]).sum(0)
        total = part if total is None else total + part
    assert total is not None  # there is always a window
    share = sum(float(inside[window].sum().clamp_min(1e-6)) for window in windows)
    return (total / share).float()


def _padded(volume: Float[Tensor, "*size"], size: Sequence[int]) -> Float[Tensor, "*padded"]:
    """The volume with zeros around it on axes that are shorter than a window."""
    lack = [max(0, s - n) for n, s in zip(volume.shape, size, strict=True)]
    return F.pad(volume, [part for n in reversed(lack) for part in (n // 2, n - n // 2)])


def _cover(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """As few windows as cover a volume, evenly spread on every axis."""
    axes = []
    for n, s in zip(shape, size, strict=True):
        count = math.ceil(n / s)
        starts = [round(i * (n - s) / (count - 1)) for i in range(count)] if count > 1 else [0]
        axes.append([slice(start, start + s) for start in starts])
    return itertools.product(*axes)
