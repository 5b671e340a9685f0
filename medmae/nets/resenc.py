"""nnU-Net's U-Nets as encoder and decoder of visible tokens.

A token of a convolutional network is a cube of voxels of one sequence. The encoder paints the visible cubes on an empty
canvas, one channel per sequence, so whatever is hidden or missing is zero before the first convolution sees it. Modules
and their names are those of the stock network: the state of such a method is a state of nnU-Net's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.grid import Grid
from medmae.core.tokens import TokenLayout, Tokens, take

from .build import Architecture
from .encoded import Pyramid


def paint(visible: Tokens, grid: Grid, modalities: int) -> tuple[Float[Tensor, "b m *size"], Bool[Tensor, "b m n"]]:
    """Visible cubes on an empty canvas.

    Args:
        visible: cubes of all sequences; content [b v voxels].
        grid: how one sequence was cut; one value per voxel.
        modalities: number of sequences.

    Returns:
        One channel per sequence, zero wherever nothing is visible; and which cubes of each sequence are visible.
    """
    layout, content = visible.layout, visible.content
    b, total = len(content), layout.total
    marks = torch.zeros(b, total + 1, dtype=torch.bool, device=content.device)
    marks = marks.scatter(1, torch.where(layout.exists, layout.id, total), layout.exists)[:, :total]
    canvas = visible.onto(layout, content.new_zeros(())).content
    image = grid.unpatchify(canvas.reshape(b * modalities, grid.length, grid.content))
    return image.reshape(b, modalities, *grid.size), marks.reshape(b, modalities, grid.length)


class SequenceStem(nn.Module):
    """One stem per sequence, fused by the mean over the sequences that are visible at a voxel.

    The mean keeps the scale whatever the number of sequences, and a sequence that is missing leaves no trace: unlike
    a zero channel of a stacked stem, it does not even pass its bias on.

    Args:
        names: of the sequences.
        stems: a network from one channel to features, for each of them.
        grid: how a sequence is cut.
    """

    def __init__(self, names: Sequence[str], stems: Sequence[nn.Module], grid: Grid) -> None:
        super().__init__()
        self.each = nn.ModuleDict(dict(zip(names, stems, strict=True)))
        self.grid = grid

    def forward(self, image: Float[Tensor, "b m *size"], shown: Bool[Tensor, "b m n"]) -> Float[Tensor, "b c *size"]:
        """Features of the voxels; zero where no sequence is visible."""
        total: Tensor | None = None
        count: Tensor | None = None
        for i, stem in enumerate(self.each.values()):
            here = shown[:, i].reshape(len(image), 1, *self.grid.shape).to(image.dtype)
            for axis, edge in enumerate(self.grid.patch):
                here = here.repeat_interleave(edge, axis + 2)
            y = stem(image[:, i : i + 1]) * here
            total, count = (y, here) if total is None or count is None else (total + y, count + here)
        assert total is not None
        assert count is not None
        return total / count.clamp_min(1)


class CnnEncoder(nn.Module):
    """The encoder of a stock U-Net, dense: hidden cubes are zeros that convolutions see as they see padding.

    Args:
        encoder: the stock encoder.
        names: of the sequences, the channels of the input in this order.
        grid: how each sequence is cut into cubes.
        stems: one for every sequence, in place of the stock stem over all channels.
    """

    def __init__(self, encoder: Any, *, names: Sequence[str], grid: Grid, stems: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.names, self.grid = tuple(names), grid
        self.widths: tuple[int, ...] = tuple(encoder.output_channels)
        self.strides: tuple[tuple[int, ...], ...] = tuple(tuple(stride) for stride in encoder.strides)
        if stems:
            self.stems = SequenceStem(names, stems, grid)
        elif hasattr(encoder, "stem"):
            self.stem = encoder.stem
        self.stages = encoder.stages

    def stacked(self) -> list[tuple[Tensor, int]]:
        """Parameters with one slice per sequence, in order, and the axis of the slices."""
        if hasattr(self, "stems"):
            return []
        first: Any = self.stem if hasattr(self, "stem") else self.stages
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        return [(next(layer.weight for layer in first.modules() if isinstance(layer, kinds)), 1)]

    def features(self, image: Float[Tensor, "b m *size"], shown: Bool[Tensor, "b m n"]) -> tuple[Tensor, ...]:
        """Maps of every level, fine to coarse, of any image; ``shown`` matters to per-sequence stems only."""
        x = image
        if hasattr(self, "stems"):
            x = self.stems(image, shown)
        elif hasattr(self, "stem"):
            x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return tuple(levels)

    def forward(self, visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> Pyramid:
        """Features of what may be seen.

        Args:
            visible: the cubes that may be seen.
            full: layout of the full set; handed through to the decoder.
            tap: ignored: all levels are returned anyway.
        """
        image, shown = paint(visible, self.grid, len(self.names))
        return Pyramid(self.features(image, shown), full, visible)


class CnnDecoder(nn.Module):
    """The decoder of a stock U-Net with one output channel per sequence.

    Args:
        decoder: the stock decoder.
        encoder: whose maps it reads; registered under the stock name too, as nnU-Net does.
    """

    def __init__(self, decoder: Any, *, encoder: CnnEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages, self.transpconvs, self.seg_layers = decoder.stages, decoder.transpconvs, decoder.seg_layers
        for unused in self.seg_layers[:-1]:  # heads of deep supervision: there is no target at lower resolution
            unused.requires_grad_(False)

    def stacked(self) -> list[tuple[Tensor, int]]:
        """Parameters with one slice per sequence, in order, and the axis of the slices."""
        return [(values, 0) for layer in self.seg_layers for values in (layer.weight, layer.bias)]

    def image(self, levels: Sequence[Float[Tensor, "b _ ..."]]) -> Float[Tensor, "b m *size"]:
        """What the network shows for the maps of all levels."""
        x = levels[-1]
        for i, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat([up(x), levels[-(i + 2)]], 1))
        out: Tensor = self.seg_layers[-1](x)
        return out

    def forward(self, pyramid: Pyramid, queries: TokenLayout) -> Shaped[Tensor, "b t voxels"]:
        """The voxels of the cubes that are asked for."""
        return pick(self.image(pyramid.levels), self.encoder.grid, queries)


def stock(
    *, names: Sequence[str], grid: Grid, architecture: Architecture, stem: str = "stacked"
) -> tuple[Any, list[nn.Module]]:
    """A stock U-Net with one output channel per sequence, and the stems of the sequences where each has its own.

    Args:
        names: of the sequences.
        grid: how each sequence is cut into cubes.
        architecture: of the U-Net.
        stem: ``stacked`` (one convolution over all channels, as in nnU-Net) or ``per_modality``.

    Raises:
        UsageError: a size that the network cannot halve often enough, or another stem.
    """
    if stem not in ("stacked", "per_modality"):
        raise UsageError(f"stem must be 'stacked' or 'per_modality', not {stem!r}")
    check_size(grid, architecture)
    channels = len(names) if stem == "stacked" else 1
    network: Any = architecture.build(input_channels=channels, num_classes=len(names))
    if stem == "stacked":
        return network, []
    if not hasattr(network.encoder, "stem"):
        raise UsageError("plain networks have no stem of their own: use stem='stacked'")
    others: list[Any] = [architecture.build(input_channels=1, num_classes=1) for _ in names[1:]]
    return network, [network.encoder.stem, *(other.encoder.stem for other in others)]


def unet(
    *, names: Sequence[str], grid: Grid, architecture: Architecture, stem: str = "stacked"
) -> tuple[CnnEncoder, CnnDecoder]:
    """Encoder and decoder of one stock U-Net, see :func:`stock`."""
    network, stems = stock(names=names, grid=grid, architecture=architecture, stem=stem)
    encoder = CnnEncoder(network.encoder, names=names, grid=grid, stems=stems)
    return encoder, CnnDecoder(network.decoder, encoder=encoder)


def pick(image: Float[Tensor, "b m *size"], grid: Grid, queries: TokenLayout) -> Shaped[Tensor, "b t voxels"]:
    """The cubes of an image, one channel per sequence, that are asked for."""
    b, m = image.shape[:2]
    cubes = grid.patchify(image.reshape(b * m, 1, *grid.size)).reshape(b, m * grid.length, grid.content)
    return take(cubes, queries.id)


def check_size(grid: Grid, architecture: Architecture) -> None:
    """Raise UsageError unless the network can work on windows of this size."""
    strides = architecture.kwargs["strides"]
    if len(grid.size) != len(strides[0]):
        raise UsageError(f"size {grid.size} has {len(grid.size)} axes, the network {len(strides[0])}")
    total = [1] * len(grid.size)
    for stride in strides:
        total = [t * s for t, s in zip(total, stride, strict=True)]
    if any(n % t for n, t in zip(grid.size, total, strict=True)):
        fit = tuple(max(t, n - n % t) for n, t in zip(grid.size, total, strict=True))
        raise UsageError(
            f"size {grid.size} is not a multiple of the network's total stride {tuple(total)}: use, for example, {fit}"
        )
    coarse = [n // t for n, t in zip(grid.size, total, strict=True)]
    if max(coarse) < 2:
        raise UsageError(
            f"size {grid.size} leaves one voxel at the coarsest stage, which instance norm cannot normalize: "
            f"use at least twice the total stride {tuple(total)} on one axis, or fewer stages"
        )
