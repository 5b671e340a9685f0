"""The visible voxels only: rows of features, cube after cube."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medmae.nets.kernels import linear

from .cells import Cells, Level, Scale
from .convolution import as_rows, convolve
from .execution import Execution, over, stride_of, times
from .normalization import normalize_rows


class Blocks:
    """Rows of the visible voxels, [r c], ordered by sample, cube and voxel; nothing is computed for others.

    Args:
        cells: what is visible.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def conv(self, x: Tensor, conv: Any, scale: Scale) -> Tensor:
        """The convolution of a map that is zero at hidden voxels, at visible voxels."""
        x, weight, bias = _as_autocast(x, conv.weight, conv.bias)
        before, after = self.cells.level(scale), self.cells.level(times(scale, conv.stride))
        return convolve(
            x, weight, bias, before=before, after=after, stride=tuple(conv.stride), padding=tuple(conv.padding)
        )

    def norm(self, x: Tensor, norm: Any, scale: Scale) -> Tensor:
        """Statistics of what is visible."""
        return normalize_rows(x, self.cells.level(scale).counts, norm.weight, norm.bias, eps=norm.eps)

    def pool(self, x: Tensor, pool: Any, scale: Scale) -> Tensor:
        """Pooling whose window is its stride."""
        before, stride = self.cells.level(scale), stride_of(pool, len(scale))
        after = self.cells.level(times(scale, stride))
        inner = [e // s for e, s in zip(before.edge, stride, strict=True)]
        if before.shape == after.shape:
            split = [n for pair in zip(inner, stride, strict=True) for n in pair]
            windows = x.view(before.blocks, *split, x.shape[1])
            axes = list(range(2, 2 * len(stride) + 1, 2))
        else:
            taps = after.taps(before, stride, stride, (0,) * len(stride))
            padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
            windows, axes = padded.index_select(0, taps.rows.flatten()).view(*taps.rows.shape, x.shape[1]), [1]
        is_max = type(pool).__name__.startswith("Max")
        return (windows.amax(axes) if is_max else windows.mean(axes)).reshape(after.rows, x.shape[1])

    def transposed(self, x: Tensor, conv: Any, scale: Scale) -> Tensor:
        """Every row becomes the voxels under it, by one matrix product."""
        x, weight, bias = _as_autocast(x, conv.weight, conv.bias)
        stride = tuple(conv.stride)
        before, after = self.cells.level(scale), self.cells.level(over(scale, stride))
        width, window = weight.shape[1], math.prod(stride)
        y = linear(x, weight.movedim(1, -1).reshape(len(weight), window * width).t())
        if before.shape == after.shape:  # voxel by voxel inside each cube
            d = len(stride)
            order = [0, *(axis for i in range(d) for axis in (1 + i, 1 + d + i)), 2 * d + 1]
            y = y.view(before.blocks, *before.edge, *stride, width).permute(order).reshape(after.rows, width)
        else:  # a coarse voxel may have hidden children
            at = after.places()
            part = torch.tensor((1, *stride), device=x.device)
            parent, child = torch.div(at, part, rounding_mode="floor"), at % part
            table = before.lookup((0,) * len(stride))
            row = table.view(-1)[(parent * torch.tensor(table.stride(), device=x.device)).sum(1)]
            for axis, s in enumerate(stride):
                row = row * s + child[:, axis + 1]
            y = y.view(before.rows * window, width).index_select(0, row)
        return y if bias is None else y + bias

    def dense(self, x: Tensor, scale: Scale) -> Float[Tensor, "b c *size"]:
        """The rows put back on a map of zeros."""
        return place(x, x.new_zeros(x.shape[1]), self.cells.level(scale))

    def spread(self, x: Tensor, token: Float[Tensor, " c"], scale: Scale, onto: Execution) -> Tensor:
        """The token, and the rows over it."""
        here = self.cells.level(scale)
        if not isinstance(onto, Blocks):
            return onto.restrict(place(x, token.to(x.dtype), here), scale)
        there = onto.cells.level(scale)
        slots = there.index().flatten()[here.ids.cpu()].to(x.device)
        canvas = token.to(x.dtype).repeat(there.volume).expand(there.blocks, -1)
        return canvas.index_copy(0, slots, x.view(here.blocks, here.volume * x.shape[1])).view(-1, x.shape[1])

    def restrict(self, x: Float[Tensor, "b c *size"], scale: Scale) -> Tensor:
        """The visible voxels of a map as rows."""
        return as_rows(cubes(x, self.cells.level(scale)))


def cubes(x: Float[Tensor, "b c *size"], level: Level) -> Float[Tensor, "n c *edge"]:
    """The visible cubes of a map."""
    d = len(level.edge)
    split = [n for pair in zip(level.shape, level.edge, strict=True) for n in pair]
    order = [0, *range(2, 2 * d + 2, 2), *range(3, 2 * d + 2, 2), 1]
    whole = x.reshape(*x.shape[:2], *split).permute(order).flatten(0, d)
    return whole.index_select(0, level.ids).movedim(-1, 1)


def place(x: Float[Tensor, "r c"], background: Float[Tensor, " c"], level: Level) -> Float[Tensor, "b c *size"]:
    """Rows on a whole map, with one vector wherever there is no row; channels-last in memory."""
    placed: Tensor = _Place.apply(x, background, level)  # type: ignore[no-untyped-call]
    return placed.movedim(-1, 1)


class _Place(torch.autograd.Function):
    """One write of the map, and one of the visible cubes; backward one read of each.

    Left to autograd, a copy, a permutation and their gradients pass over the whole map seven times, and at full
    resolution that is a good part of a step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, background: Tensor, level: Level) -> Tensor:
        whole = background.expand(level.samples, *level.size, -1).contiguous()
        ctx.level, ctx.where = level, torch.unravel_index(level.ids, (level.samples, *level.shape))
        _by_cube(whole, level)[ctx.where] = x.view(level.blocks, *level.edge, x.shape[1])
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        level, whole = ctx.level, grads[0].contiguous()
        rows = _by_cube(whole, level)[ctx.where].reshape(level.rows, whole.shape[-1])
        if not ctx.needs_input_grad[1]:
            return rows, None, None
        return rows, whole.flatten(0, -2).sum(0) - rows.sum(0), None


def _by_cube(whole: Float[Tensor, "b *size c"], level: Level) -> Float[Tensor, "b *shape_edge c"]:
    """A view of a map with axes for the cubes before those of the voxels inside."""
    d = len(level.edge)
    split = [n for pair in zip(level.shape, level.edge, strict=True) for n in pair]
    order = [0, *range(1, 2 * d + 1, 2), *range(2, 2 * d + 2, 2), 2 * d + 1]
    return whole.view(level.samples, *split, whole.shape[-1]).permute(order)


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Operands of a convolution in the type that autocast asks for, as the stock layers get them."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
