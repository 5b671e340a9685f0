"""Whole volumes through a network that sees one window at a time.

Windows cover the volume evenly, each counts by its share of the foreground, and what the network says of them is
averaged. Training sees one window of a patient, prediction sees all of the patient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medmae.core.errors import CheckpointError
from medmae.core.tokens import Batch, without_trivial_masks


def over_windows(
    run: Callable[[Batch], Tensor],
    images: Mapping[str, Float[Tensor, "*size"]],
    foreground: Bool[Tensor, "*size"],
    *,
    names: Sequence[str],
    size: Sequence[int],
    spacing: Sequence[float | int],
    device: torch.device,
    batch_size: int = 1,
) -> Tensor:
    """The mean of what ``run`` answers to the windows of a volume, weighed by their foreground, float32 on the CPU.

    Args:
        run: takes a batch of windows, gives one answer per window, [b ...].
        images: normalized volumes by sequence; those not in ``names`` are ignored.
        foreground: voxels that count; windows without any are not looked at.
        names: sequences of the batch.
        size: voxels per axis of a window; smaller volumes are padded with zeros.
        spacing: millimeters per voxel.
        device: where ``run`` wants its batches.
        batch_size: windows per batch.

    Raises:
        CheckpointError: none of ``images`` is in ``names``.
    """
    given = [name for name in names if name in images]
    if not given:
        raise CheckpointError(f"the model knows {', '.join(names)}, and the case has {', '.join(images) or 'nothing'}")
    padded = {name: _padded(images[name].float(), size) for name in given}
    inside = _padded(foreground.float(), size)
    windows = [window for window in _cover(inside.shape, size) if bool(inside[window].any())]
    windows = windows or list(_cover(inside.shape, size))
    total: Tensor | None = None
    for first in range(0, len(windows), batch_size):
        chosen = windows[first : first + batch_size]
        batch = {
            name: torch.stack([padded[name][window] for window in chosen])[:, None]
            if name in padded
            else torch.zeros(len(chosen), 1, *size)
            for name in names
        }
        batch["foreground"] = torch.stack([inside[window] for window in chosen])[:, None]
        batch["spacing"] = torch.tensor([list(spacing)] * len(chosen), dtype=torch.float32)
        batch["present"] = torch.tensor([[name in padded for name in names]] * len(chosen))
        weight = batch["foreground"].flatten(1).sum(1).clamp_min(1e-6).double()
        found = run({k: v.to(device) for k, v in without_trivial_masks(batch).items()}).double().cpu()
        part = torch.tensordot(weight, found, dims=1)
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
