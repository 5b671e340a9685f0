"""Cutting regular grids into tokens, and putting them back.

The cut has no parameters: embedding belongs to the encoder, so hidden patches are never embedded. Everything is n-D and
per axis, so that images, clips and anisotropic volumes use the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from .tokens import Batch, TokenLayout, Tokens


@dataclass(frozen=True)
class Grid:
    """An n-D array of ``channels`` values per voxel, cut into non-overlapping patches.

    Attributes:
        size: voxels per axis.
        patch: voxels per axis of one patch; each must divide the size.
        channels: values per voxel.

    Raises:
        ValueError: the numbers of axes differ, or a patch does not divide the size.
    """

    size: tuple[int, ...]
    patch: tuple[int, ...]
    channels: int = 1

    def __post_init__(self) -> None:
        if len(self.size) != len(self.patch):
            raise ValueError(f"size {self.size} and patch {self.patch} have different numbers of axes")
        if not all(isinstance(n, int) for n in (*self.size, *self.patch, self.channels)):
            raise ValueError(f"size {self.size}, patch {self.patch} and channels {self.channels} must be whole numbers")
        if min(*self.size, *self.patch, self.channels) < 1:
            raise ValueError(f"size {self.size}, patch {self.patch} and channels {self.channels} must be positive")
        if any(s % p for s, p in zip(self.size, self.patch, strict=True)):
            fit = tuple(max(p, s - s % p) for s, p in zip(self.size, self.patch, strict=True))
            raise ValueError(
                f"size {self.size} is not a multiple of patch {self.patch}: crop or pad, for example to {fit}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Patches per axis."""
        return tuple(s // p for s, p in zip(self.size, self.patch, strict=True))

    @property
    def length(self) -> int:
        """Number of patches."""
        return math.prod(self.shape)

    @property
    def content(self) -> int:
        """Number of values in one patch."""
        return math.prod(self.patch) * self.channels

    def patchify(self, image: Shaped[Tensor, "b c *size"]) -> Shaped[Tensor, "b n what"]:
        """Patches in row-major order of the grid; inside a patch the order is (axis 1, axis 2, ..., channel)."""
        if tuple(image.shape[1:]) != (self.channels, *self.size):
            raise ValueError(f"expected an image of shape {(self.channels, *self.size)}, got {tuple(image.shape[1:])}")
        k = len(self.size)
        split = [x for s, p in zip(self.shape, self.patch, strict=True) for x in (s, p)]
        x = image.reshape(len(image), self.channels, *split)
        order = [0, *range(2, 2 * k + 2, 2), *range(3, 2 * k + 2, 2), 1]
        return x.permute(order).reshape(len(image), self.length, self.content)

    def unpatchify(self, patches: Shaped[Tensor, "b n what"]) -> Shaped[Tensor, "b c *size"]:
        """The inverse of :meth:`patchify`, exactly."""
        k = len(self.size)
        x = patches.reshape(len(patches), *self.shape, *self.patch, self.channels)
        order = [0, 2 * k + 1, *(axis for i in range(k) for axis in (1 + i, 1 + k + i))]
        return x.permute(order).reshape(len(patches), self.channels, *self.size)

    def share(self, mask: Shaped[Tensor, "b 1 *size"]) -> Float[Tensor, "b n"]:
        """Mean of a voxel-wise weight or mask in every patch."""
        return Grid(self.size, self.patch).patchify(mask).float().mean(-1)

    def indices(self, device: torch.device | None = None) -> Float[Tensor, "n p"]:
        """Grid index of every patch, row-major."""
        axes = [torch.arange(s, device=device, dtype=torch.float32) for s in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(self.shape))


RESERVED = ("present", "foreground", "spacing", "key")
"""Entries of a batch that are no images."""


def _check_names(names: tuple[str, ...]) -> None:
    """Names that can be entries of a batch and of a checkpoint, each once."""
    if not names:
        raise ValueError("no sequences: name at least one")
    if len(set(names)) < len(names):
        raise ValueError(f"a sequence is named twice: {', '.join(names)}")
    # Parameters are kept by these names in dictionaries of modules, which have attributes of their own.
    own = {*RESERVED, "", *dir(nn.ModuleDict), *dir(nn.ParameterDict)}
    taken = [name for name in names if name in own or "." in name]
    if taken:
        raise ValueError(f"{taken[0]!r} cannot name a sequence: it is reserved, empty or has a dot; rename it")


class ModalityGrid(nn.Module):
    """The tokenizer of several aligned images (MRI sequences, channels, views) on one grid.

    Reads from a batch: every name in ``names`` as Float[b c *size], zero-filled where absent, and, where given,
    ``present`` Bool[b m] (columns in the order of ``names``; left out when everything is present), ``foreground``
    [b 1 *size] (share of each voxel that counts), ``spacing`` Float[b p] (millimeters per voxel).
    Writes the tokens of name 0 first, then those of name 1, and so on: the order of the batch does not matter.

    Args:
        names: entries of the batch, in the order of the modality index.
        grid: how each of them is cut.
        coords: ``grid`` (patch index) or ``mm`` (patch center in units of ``unit`` millimeters, from the first patch).
        unit: millimeters per coordinate step when ``coords="mm"``.
    """

    def __init__(self, names: Sequence[str], grid: Grid, *, coords: str = "grid", unit: float = 16.0) -> None:
        super().__init__()
        if coords not in ("grid", "mm"):
            raise ValueError(f"coords must be 'grid' or 'mm', not {coords!r}")
        _check_names(tuple(names))
        self.names, self.grid, self.coords, self.unit = tuple(names), grid, coords, unit

    @property
    def entries(self) -> dict[str, tuple[int, ...]]:
        """What is read from a batch: every name, and the shape of one sample of it."""
        return dict.fromkeys(self.names, (self.grid.channels, *self.grid.size))

    def voxels(self, marks: Bool[Tensor, "b n"]) -> dict[str, Bool[Tensor, "b c ..."]]:
        """A mark on tokens as marks on the values of the batch that they hold, by name."""
        parts = torch.split(marks, self.grid.length, 1)
        return {
            name: self.grid.unpatchify(part[..., None].expand(-1, -1, self.grid.content))
            for name, part in zip(self.names, parts, strict=True)
        }

    def forward(self, batch: Batch) -> Tokens:
        """All tokens of a batch: content [b m*length content].

        Raises:
            KeyError: a name is not in the batch and the batch does not say that it is absent.
        """
        images = [batch[name] if name in batch else self._absent(batch, i) for i, name in enumerate(self.names)]
        content = torch.cat([self.grid.patchify(image) for image in images], 1)
        layout = self.layout(batch, like=content)
        if layout.ragged:  # whatever a missing image holds, NaN too, it holds nothing from here on
            content = content.masked_fill(~layout.exists[..., None], 0)
        return Tokens(layout, content)

    def layout(self, batch: Batch, *, like: Tensor) -> TokenLayout:
        """The layout alone; ``like`` tells batch size and device."""
        b, m, n = len(like), len(self.names), self.grid.length
        device = like.device
        column = torch.arange(m * n, device=device).expand(b, -1)
        present = batch.get("present")
        if present is not None:
            if present.shape != (b, m):
                raise ValueError(f"present has shape {tuple(present.shape)}, expected {(b, m)} for {self.names}")
            column = torch.where(present.repeat_interleave(n, 1), column, -1)
        coords = self.grid.indices(device).expand(b, -1, -1)
        if self.coords == "mm":
            if "spacing" not in batch:
                raise ValueError("coords='mm' needs the batch entry 'spacing' (millimeters per voxel)")
            step = torch.tensor(self.grid.patch, device=device, dtype=torch.float32)
            coords = coords * (batch["spacing"].float() * step / self.unit)[:, None]
        weight = self.grid.share(batch["foreground"]).repeat(1, m) if "foreground" in batch else None
        modality = torch.arange(m, device=device).repeat_interleave(n).expand(b, -1)
        return TokenLayout(column, coords.repeat(1, m, 1), modality, weight, m * n, ragged=present is not None)

    def counts(self, batch: Batch) -> Float[Tensor, "b n what"] | None:
        """Which values of every token count: those in the foreground; None where the batch has none."""
        if "foreground" not in batch:
            return None
        inside = Grid(self.grid.size, self.grid.patch).patchify((batch["foreground"] > 0).float())
        return inside.repeat_interleave(self.grid.channels, -1).repeat(1, len(self.names), 1)

    def _absent(self, batch: Batch, index: int) -> Tensor:
        """A blank image for a name that the batch leaves out and marks as not present."""
        present = batch.get("present")
        known = [name for name in self.names if name in batch]
        if present is None or bool(present[:, index].any()) or not known:
            raise KeyError(
                f"the batch has no {self.names[index]!r} (it has {sorted(batch)}) and does not mark it as not present"
            )
        like = batch[known[0]]
        return like.new_zeros(len(like), *self.entries[self.names[index]])
