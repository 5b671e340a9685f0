"""nnU-Net's U-Net as a sparse autoencoder: the encoder computes on visible cubes, the decoder where it has to.

The modules, their names and their weights are those of the stock network; what is added is one vector per stage that
stands where nothing was visible, and a convolution that lets visible features spread into it (S3D, SparK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.grid import Grid
from medmae.core.tokens import TokenLayout, Tokens
from medmae.nets.build import Architecture
from medmae.nets.encoded import Pyramid
from medmae.nets.resenc import CnnDecoder, CnnEncoder, paint, pick, stock

from .blocks import Blocks
from .cells import Cells, Scale
from .execution import Execution, Masked
from .walk import check, decode, encode, walk

EXECUTIONS = ("block", "masked")
DENSIFY = ("conv", "norm_conv", "token")


@dataclass(frozen=True)
class SparsePyramid(Pyramid):
    """Features of the visible cubes at several resolutions, in the form of the execution that made them.

    Attributes:
        features: with their scales, fine to coarse; ``levels`` is empty, :meth:`dense` makes the maps.
        execution: knows what is visible.
    """

    features: tuple[tuple[Tensor, Scale], ...]
    execution: Execution

    def dense(self) -> tuple[Float[Tensor, "b _ ..."], ...]:
        """Whole maps, zero at hidden voxels."""
        return tuple(self.execution.dense(x, scale) for x, scale in self.features)


def cells_of(layout: TokenLayout, grid: Grid) -> Bool[Tensor, "b ..."]:
    """The cubes that tokens stand at, in whatever sequence."""
    b = len(layout.id)
    column = torch.where(layout.exists, layout.id % grid.length, grid.length)
    marks = torch.zeros(b, grid.length + 1, dtype=torch.bool, device=layout.id.device)
    return marks.scatter(1, column, layout.exists)[:, : grid.length].reshape(b, *grid.shape)


def rows_of(visible: Tokens, cells: Cells, grid: Grid, modalities: int) -> Float[Tensor, "r m"]:
    """Tokens as rows of voxels, one column per sequence; zero where a sequence is missing. No map is made."""
    layout, content = visible.layout, visible.content
    level = cells.level((1,) * len(grid.size))
    place = level.index().flatten(1).to(content.device)
    slot = place.gather(1, layout.id.clamp_min(0) % grid.length).masked_fill(~layout.exists, level.blocks)
    canvas = content.new_zeros(level.blocks + 1, modalities, grid.content)
    canvas = canvas.index_put((slot, layout.modality), content)[:-1]
    return canvas.transpose(1, 2).reshape(-1, modalities)


class SparseEncoder(CnnEncoder):
    """The encoder of a stock U-Net over visible cubes alone: hidden voxels enter neither values nor statistics.

    Args:
        encoder: the stock encoder.
        names: of the sequences, the channels of the input in this order.
        grid: how each sequence is cut into cubes.
        stems: one for every sequence, in place of the stock stem over all channels.
        execution: ``block`` computes on rows of visible voxels; ``masked`` on whole maps times the mask. They are one
            function. Under ``torch.compile`` it is ``masked`` that is compiled, as its shapes do not depend on the
            mask.

    Attributes:
        recompute: keep the input of every stage only, and compute the rest again in the backward pass.

    Raises:
        UsageError: a layer that has no sparse form, or another execution.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        names: Sequence[str],
        grid: Grid,
        stems: Sequence[nn.Module] = (),
        execution: str = "block",
    ) -> None:
        super().__init__(encoder, names=names, grid=grid, stems=stems)
        if execution not in EXECUTIONS:
            raise UsageError(f"execution must be one of {', '.join(EXECUTIONS)}, not {execution!r}")
        check(self)
        self.execution, self.recompute = execution, False

    def _start(self, visible: Tokens) -> tuple[Execution, Tensor]:
        """An execution over the visible cubes, and the input in its form."""
        cells = Cells(cells_of(visible.layout, self.grid), self.grid.patch)
        block = self.execution == "block" and not torch.compiler.is_compiling()
        if block and cells.level((1,) * len(self.grid.size)).blocks:  # where no cube is visible there are no rows
            return Blocks(cells), rows_of(visible, cells, self.grid, len(self.names))
        return Masked(cells), paint(visible, self.grid, len(self.names))[0]

    def forward(self, visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> SparsePyramid:
        """Features of what may be seen.

        Args:
            visible: the cubes that may be seen.
            full: layout of the full set; handed through to the decoder.
            tap: ignored: all levels are returned anyway.
        """
        execution, x = self._start(visible)
        stages: list[Any] = list(self.stages)
        if hasattr(self, "stems"):
            x = self._fuse(execution, x, visible)
        elif hasattr(self, "stem"):
            stages[0] = nn.Sequential(self.stem, stages[0])
        features = encode(execution, stages, x, recompute=self.recompute)
        return SparsePyramid((), full, visible, tuple(features), execution)

    def _fuse(self, execution: Execution, x: Tensor, visible: Tokens) -> Tensor:
        """Mean of the stems of the sequences that are visible at a voxel."""
        one = (1,) * len(self.grid.size)
        shown = paint(visible, self.grid, len(self.names))[1]
        total: Tensor | float = 0.0
        count: Tensor | float = 0.0
        for i, stem in enumerate(self.stems.each.values()):
            cells = Cells(shown[:, i].reshape(-1, *self.grid.shape), self.grid.patch)
            here = execution.restrict(cells.mask(one).to(x.dtype), one)
            total = total + walk(execution, stem, x[:, i : i + 1], one)[0] * here
            count = count + here
        assert isinstance(total, Tensor)
        assert isinstance(count, Tensor)
        return total / count.clamp_min(1)


class Densify(nn.Module):
    """Fills what is hidden, so that an ordinary decoder can go on.

    Args:
        width: channels of the stage.
        kernel: of the convolution over the filled map.
        kind: ``token`` (fill with a learned vector), ``conv`` (then a convolution: S3D), or ``norm_conv`` (instance
            norm over what is visible before both: SparK).
    """

    def __init__(self, width: int, kernel: tuple[int, ...], *, kind: str) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
        norm: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(kernel) - 1]
        self.norm = norm(width, affine=True) if kind == "norm_conv" else None
        padding = tuple(k // 2 for k in kernel)
        self.conv = None if kind == "token" else convolution(width, width, kernel, padding=padding)

    def forward(self, x: Tensor, scale: Scale, *, seen: Execution, onto: Execution) -> Tensor:
        """Features over the cubes of ``onto``, from those over the cubes of ``seen``."""
        if self.norm is not None:
            x = seen.norm(x, self.norm, scale)
        filled = seen.spread(x, self.token, scale, onto)
        return filled if self.conv is None else onto.conv(filled, self.conv, scale)


class SparseDecoder(CnnDecoder):
    """The decoder of a stock U-Net, over all cubes or over the visible ones and those that are asked for.

    Args:
        decoder: the stock decoder.
        encoder: whose features it reads.
        kernels: kernel edges of every encoder stage.
        densify: see :class:`Densify`; the finest stage gets the vector alone.
        everywhere: decode all cubes, as published. Otherwise cubes that are neither visible nor asked for do not
            exist: they are zeros to a convolution and are in no statistic.

    Attributes:
        recompute: as in the encoder.

    Raises:
        UsageError: a layer that has no sparse form, or another way to densify.
    """

    def __init__(
        self,
        decoder: Any,
        *,
        encoder: SparseEncoder,
        kernels: Sequence[Sequence[int]],
        densify: str = "conv",
        everywhere: bool = True,
    ) -> None:
        super().__init__(decoder, encoder=encoder)
        if densify not in DENSIFY:
            raise UsageError(f"densify must be one of {', '.join(DENSIFY)}, not {densify!r}")
        check(self.stages, self.transpconvs)
        self.stages = nn.Sequential(*self.stages)  # walked over and never called: nothing to shard one by one
        self.everywhere, self.recompute = everywhere, False
        self.densify = nn.ModuleList(
            Densify(width, tuple(kernel), kind=densify if i else "token")
            for i, (width, kernel) in enumerate(zip(encoder.widths, kernels, strict=True))
        )

    def _onto(self, seen: Execution, queries: TokenLayout) -> Execution:
        """An execution over the cubes that are decoded."""
        if self.everywhere:
            return Masked(seen.cells.all())
        cells = Cells(seen.cells.visible | cells_of(queries, self.encoder.grid), seen.cells.block)
        return Blocks(cells) if isinstance(seen, Blocks) else Masked(cells)

    def forward(self, pyramid: Pyramid, queries: TokenLayout) -> Shaped[Tensor, "b t voxels"]:
        """The voxels of the cubes that are asked for."""
        assert isinstance(pyramid, SparsePyramid)
        seen = pyramid.execution
        onto = self._onto(seen, queries)
        skips = [
            (densify(x, scale, seen=seen, onto=onto), scale)
            for densify, (x, scale) in zip(self.densify, pyramid.features, strict=True)
        ]
        one = skips[0][1]
        ups: list[Any] = list(self.transpconvs)
        x = decode(onto, list(self.stages), ups, skips, recompute=self.recompute)
        out = onto.conv(x, self.seg_layers[-1], one)
        grid = self.encoder.grid
        if not isinstance(onto, Blocks):
            return pick(out, grid, queries)
        level = onto.cells.level(one)
        slot = level.index().flatten(1).to(out.device).gather(1, queries.id.clamp_min(0) % grid.length)
        found: Tensor = out.view(level.blocks, level.volume, -1)[slot.clamp_max(level.blocks - 1), :, queries.modality]
        return found


def sparse_unet(
    *,
    names: Sequence[str],
    grid: Grid,
    architecture: Architecture,
    stem: str = "stacked",
    execution: str = "block",
    densify: str = "conv",
    everywhere: bool = True,
) -> tuple[SparseEncoder, SparseDecoder]:
    """Encoder and decoder of one stock U-Net, with one input and one output channel per sequence.

    Args:
        names: of the sequences.
        grid: how each sequence is cut into cubes.
        architecture: of the U-Net.
        stem: ``stacked`` or ``per_modality``, as in :func:`medmae.nets.resenc.stock`.
        execution: see :class:`SparseEncoder`.
        densify: see :class:`Densify`.
        everywhere: see :class:`SparseDecoder`.

    Raises:
        UsageError: a size, a cube, a layer or an option that does not fit.
    """
    network, stems = stock(names=names, grid=grid, architecture=architecture, stem=stem)
    encoder = SparseEncoder(network.encoder, names=names, grid=grid, stems=stems, execution=execution)
    scale = (1,) * len(grid.size)
    for stride in encoder.strides:  # cubes that do not nest with the maps are refused now, not in the first step
        scale = tuple(s * t for s, t in zip(scale, stride, strict=True))
        Cells(torch.ones(1, *grid.shape, dtype=torch.bool), grid.patch).mask(scale)
    kernels = architecture.kwargs["kernel_sizes"]
    decoder = SparseDecoder(network.decoder, encoder=encoder, kernels=kernels, densify=densify, everywhere=everywhere)
    if len(grid.size) == 3:  # rows have the channel as their fastest axis, and so do kernels that meet them
        decoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # it holds the encoder too
    return encoder, decoder
