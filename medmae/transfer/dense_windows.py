"""Whole volumes through a network that answers for every voxel of a window: MONAI's sliding windows, blended.

Windows overlap and count less towards their borders, where a network has seen the least, so that no seam is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medmae.core.errors import CheckpointError, UsageError
from medmae.core.tokens import Batch


@torch.no_grad()
def dense_over_windows(
    run: Callable[[Batch], Float[Tensor, "b c *window"]],
    images: Mapping[str, Float[Tensor, "*size"]],
    foreground: Bool[Tensor, "*size"],
    *,
    names: Sequence[str],
    size: Sequence[int],
    spacing: Sequence[float | int],
    device: torch.device,
    batch_size: int = 1,
    overlap: float = 0.5,
) -> Float[Tensor, c * size]:
    """What ``run`` answers for every voxel of a volume, float32 on the CPU.

    Args:
        run: takes a batch of windows, gives one answer per voxel.
        images: normalized volumes by sequence; those not in ``names`` are ignored.
        foreground: voxels that count.
        names: sequences of the batch.
        size: voxels per axis of a window; smaller volumes are padded with zeros.
        spacing: millimeters per voxel.
        device: where ``run`` wants its batches.
        batch_size: windows per batch.
        overlap: share of a window that the next one covers again, per axis, in [0, 1).

    Raises:
        CheckpointError: none of ``images`` is in ``names``.
        UsageError: an overlap that cannot be meant.
    """
    from monai.inferers import sliding_window_inference

    given = [name for name in names if name in images]
    if not given:
        raise CheckpointError(f"the model knows {', '.join(names)}, and the case has {', '.join(images) or 'nothing'}")
    if not 0 <= overlap < 1:
        raise UsageError(f"--overlap must be at least 0 and below 1, not {overlap}")
    # Said only where something is missing, so that nobody has to look on the device.
    present = None if len(given) == len(names) else torch.tensor([name in given for name in names], device=device)

    def answer(windows: Float[Tensor, "b channels *window"]) -> Float[Tensor, "b c *window"]:
        b = len(windows)
        blank = windows.new_zeros(b, 1, *windows.shape[2:])
        batch = {name: windows[:, given.index(name), None] if name in given else blank for name in names}
        batch["foreground"] = windows[:, -1:]
        batch["spacing"] = windows.new_tensor([list(spacing)] * b)
        if present is not None:
            batch["present"] = present.expand(b, -1)
        return run(batch).float()

    whole = torch.stack([*(images[name].float() for name in given), foreground.float()])[None]
    found = sliding_window_inference(
        whole, tuple(size), batch_size, answer,
        overlap=overlap, mode="gaussian", sw_device=device, device=torch.device("cpu"),
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found[0]
