"""Convolutions over rows of visible voxels, exactly as if the rest of the map were zero.

Two ways, which give the same numbers. Where cubes are large, each gets a rim from its visible neighbors (zeros where
there is none) and all of them go through one ordinary convolution without padding. Where few voxels of a cube are
left, so that a rim would outweigh it, the voxels that every output reads are gathered side by side and one matrix
product does the rest. Tiles and gathered voxels are made again for the backward pass: what is kept is the rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medmae.nets.kernels import linear, product

from .cells import Halo, Level

SMALLEST_TILE = 8
"""Edge of the cubes from which tiles beat gathered voxels, as measured on a CPU with ResEnc-L."""

Ints = tuple[int, ...]


def convolve(
    x: Float[Tensor, "r i"],
    weight: Float[Tensor, "o i *k"],
    bias: Float[Tensor, " o"] | None,
    *,
    before: Level,
    after: Level,
    stride: Ints,
    padding: Ints,
) -> Float[Tensor, "q o"]:
    """A convolution from the rows of one level to those of another (the same where the stride is 1).

    Args:
        x: features of the visible voxels.
        weight: kernel.
        bias: added to every row.
        before: the level of ``x``.
        after: the level of the result.
        stride: of the convolution.
        padding: of the convolution.
    """
    kernel = tuple(weight.shape[2:])
    if math.prod(kernel) == 1 and math.prod(stride) == 1:
        return linear(x, weight.flatten(1), bias)
    if _tiles_fit(before, after, kernel, stride, padding):
        return _Tiles.apply(x, weight, bias, before, after, stride, padding)  # type: ignore[no-untyped-call]
    taps = after.taps(before, kernel, stride, padding)
    return _Gathered.apply(x, weight, bias, taps.rows, taps.back)  # type: ignore[no-untyped-call]


def _tiles_fit(before: Level, after: Level, kernel: Ints, stride: Ints, padding: Ints) -> bool:
    same_cubes = before.shape == after.shape and all(
        e == o * s for e, o, s in zip(before.edge, after.edge, stride, strict=True)
    )
    rims = all(
        k == 2 * p + 1 and p <= e and (s == 1 or 1 <= p < s)
        for k, p, s, e in zip(kernel, padding, stride, after.edge, strict=True)
        if (k, s) != (1, 1)
    )
    return same_cubes and rims and after.volume >= SMALLEST_TILE ** len(kernel)


def cut(x: Float[Tensor, "r c"], halo: Halo) -> Float[Tensor, "n c *size"]:
    """Tiles with their rims; in memory the channel is the fastest axis, as the rows have it."""
    tiles = x.index_select(0, halo.rows)
    if len(halo.holes):
        tiles.index_fill_(0, halo.holes, 0)
    return tiles.view(len(tiles) // math.prod(halo.size), *halo.size, x.shape[1]).movedim(-1, 1)


def as_tiles(x: Float[Tensor, "r c"], level: Level) -> Float[Tensor, "n c *edge"]:
    """Rows as cubes without a rim; a view."""
    return x.view(level.blocks, *level.edge, x.shape[1]).movedim(-1, 1)


def as_rows(tiles: Float[Tensor, "n c *edge"]) -> Float[Tensor, "r c"]:
    """Cubes without a rim as rows."""
    return tiles.movedim(1, -1).flatten(0, -2)


class _Tiles(torch.autograd.Function):
    """A convolution without padding over tiles whose rims come from their neighbors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        before: Level,
        after: Level,
        stride: Ints,
        padding: Ints,
    ) -> Tensor:
        kernel = tuple(weight.shape[2:])
        high = tuple(k - p - s for k, p, s in zip(kernel, padding, stride, strict=True))
        ctx.halo, ctx.levels = before.halo(padding, high), (before, after)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        ctx.save_for_backward(x, weight)
        y = torch.convolution(
            cut(x, ctx.halo), weight, bias, stride, [0] * len(kernel), [1] * len(kernel), False, [0] * len(kernel), 1
        )
        return as_rows(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (before, after), grad = ctx.levels, grad.contiguous()
        d = weight.ndim - 2
        zeros, ones = [0] * d, [1] * d
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            # Whoever reads voxel i: output (i + p - k) / s. A stride of 1 reads one rim; a larger one reads the voxel
            # after the cube, and none before it.
            low = tuple(p if s == 1 else 0 for p, s in zip(ctx.padding, ctx.stride, strict=True))
            high = tuple(p if s == 1 else 1 for p, s in zip(ctx.padding, ctx.stride, strict=True))
            tiles = cut(grad, after.halo(low, high))
            if all(s == 1 for s in ctx.stride):
                turned = weight.flip(*range(2, d + 2)).transpose(0, 1)
                y = torch.convolution(tiles, turned, None, ones, zeros, ones, False, zeros, 1)
            else:
                y = torch.convolution(tiles, weight, None, ctx.stride, ctx.padding, ones, True, zeros, 1)
                for axis, (lo, s, e) in enumerate(zip(low, ctx.stride, before.edge, strict=True)):
                    y = y.narrow(axis + 2, lo * s, e)
            for_x = as_rows(y)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            tiles = cut(x, ctx.halo)
            sizes = [weight.shape[0]] if ctx.biased else None
            _, for_weight, for_bias = torch.ops.aten.convolution_backward(
                as_tiles(grad, after), tiles, weight, sizes, ctx.stride, zeros, ones, False, zeros, 1,
                [False, True, ctx.biased],
            )  # fmt: skip
        return for_x, for_weight, for_bias, None, None, None, None


class _Gathered(torch.autograd.Function):
    """The voxels that every output reads, side by side, times the kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, rows, back)
        ctx.biased = bias is not None
        y = product(_columns(x, rows), _flat(weight))
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, back = ctx.saved_tensors
        grad = grad.contiguous()
        o, i = weight.shape[:2]
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            # What every output hands back to every voxel it read, and a row of zeros for the places where there is
            # no output; each voxel then adds up what it was handed.
            parts = product(_with_zeros(grad), _flat(weight).t()).view(-1, i)
            for_x = F.embedding_bag(back, parts, mode="sum")
        if ctx.needs_input_grad[1]:
            for_weight = product(grad.t(), _columns(x, rows).t()).view(o, *weight.shape[2:], i).movedim(-1, 1)
        if ctx.biased and ctx.needs_input_grad[2]:
            for_bias = grad.sum(0)
        return for_x, for_weight, for_bias, None, None


def _columns(x: Tensor, rows: Tensor) -> Tensor:
    """The rows that every output reads, side by side; zeros where there is none."""
    return _with_zeros(x).index_select(0, rows.flatten()).view(len(rows), rows.shape[1] * x.shape[1])


def _with_zeros(x: Tensor) -> Tensor:
    """One row of zeros more, to be read where there is no voxel."""
    return torch.cat([x, x.new_zeros(1, x.shape[1])])


def _flat(weight: Tensor) -> Tensor:
    """The kernel as a matrix with the input channel as the fastest axis; a view where it is stored channels-last."""
    return weight.movedim(1, -1).flatten(1)
