"""Instance normalization over the voxels that are visible, with statistics in float32 at least.

Statistics over a masked map are those of its visible voxels, of every sample by itself: zeros at hidden voxels would
pull mean and variance towards zero. Sums over a large map leave the range of float16, so they are never taken in it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def normalize_rows(
    x: Float[Tensor, "r c"],
    counts: list[int],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    *,
    eps: float,
) -> Float[Tensor, "r c"]:
    """Instance normalization of rows; ``counts`` of them, one after the other, belong to each sample."""
    return _Rows.apply(x, counts, weight, bias, eps)  # type: ignore[no-untyped-call, no-any-return]


def normalize_map(
    x: Float[Tensor, "b c *size"],
    mask: Bool[Tensor, "b 1 *size"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    *,
    eps: float,
) -> Float[Tensor, "b c *size"]:
    """Instance normalization of a map over ``mask``; zero outside, where ``x`` has to be zero already."""
    if torch.compiler.is_compiling():
        return _map(x, mask, weight, bias, eps)
    return _Map.apply(x, mask, weight, bias, eps)  # type: ignore[no-untyped-call, no-any-return]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _map(x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The formula, in operations that a compiler fuses."""
    axes, wide = list(range(2, x.ndim)), _wide(x)
    count = mask.sum(axes, keepdim=True).clamp_min(1).to(wide.dtype)
    mean = wide.sum(axes, keepdim=True) / count
    apart = (wide - mean) * mask
    y = apart * (apart.square().sum(axes, keepdim=True) / count + eps).rsqrt()
    shape = (1, -1, *(1,) * len(axes))
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape) * mask
    return y.to(x.dtype)


class _Map(torch.autograd.Function):
    """The same in few passes over the map, with one copy of it kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        axes, wide = list(range(2, x.ndim)), _wide(x)
        voxels = x[0, 0].numel()
        count = mask.sum(axes, keepdim=True).clamp_min(1).to(wide.dtype)
        # Mean and variance of the whole map, zeros included, and from them those of the visible voxels.
        spread, middle = torch.var_mean(wide, axes, correction=0, keepdim=True)
        mean = middle * (voxels / count)
        rate = ((spread + middle.square()) * (voxels / count) - mean.square()).clamp_min(0).add(eps).rsqrt()
        shape = (1, -1, *(1,) * len(axes))
        scale = rate if weight is None else rate * weight.view(shape)
        shift = -mean * scale if bias is None else bias.view(shape) - mean * scale
        ctx.save_for_backward(x, mask, weight, mean, rate, count)
        ctx.biased = bias is not None
        return (wide * scale).addcmul_(mask.to(wide.dtype), shift).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, weight, mean, rate, count = ctx.saved_tensors
        axes, wide = list(range(2, x.ndim)), _wide(x)
        shown = mask.to(wide.dtype)
        grad = grad * shown  # a copy in the wide type, changed in place below
        total = grad.sum(axes, keepdim=True)
        along = ((grad * wide).sum(axes, keepdim=True) - mean * total) * rate
        shape = (1, -1, *(1,) * len(axes))
        scale = rate if weight is None else rate * weight.view(shape)
        slope = along / count * rate
        for_x = grad.sub_(wide * slope).addcmul_(shown, mean * slope - total / count).mul_(scale).to(x.dtype)
        for_weight = None if weight is None else along.sum((0, *axes)).to(weight.dtype)
        for_bias = total.sum((0, *axes)) if ctx.biased else None
        return for_x, None, for_weight, for_bias, None


class _Rows(torch.autograd.Function):
    """torch's own batch normalization, sample by sample, into one result.

    The kernel accumulates in float32 whatever the rows are stored in.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, counts: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        kept = []
        start = 0
        for n in counts:
            if n == 0:
                continue
            part, out = _image(x[start : start + n]), _image(y[start : start + n])
            mean, rate = (torch.empty(x.shape[1], dtype=_wide(x[:0]).dtype, device=x.device) for _ in range(2))
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, None, None, True, 0.0, eps, out=out, save_mean=mean, save_invstd=rate
            )
            kept += [mean, rate]
            start += n
        ctx.save_for_backward(x, weight, *kept)
        ctx.counts, ctx.eps, ctx.biased = counts, eps, bias is not None
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        parts = []
        for_weight, for_bias = torch.zeros(2, x.shape[1], dtype=_wide(x[:0]).dtype, device=x.device).unbind()
        wanted = [True, weight is not None, ctx.biased]
        start = 0
        for i, n in enumerate([n for n in ctx.counts if n]):
            here = slice(start, start + n)
            part, w, b = torch.ops.aten.native_batch_norm_backward(
                _image(grad[here]), _image(x[here]), weight, None, None, kept[2 * i], kept[2 * i + 1], True, ctx.eps,
                wanted,
            )  # fmt: skip
            parts.append(part[0, :, :, 0].t())
            for_weight = for_weight if w is None else for_weight + w
            for_bias = for_bias if b is None else for_bias + b
            start += n
        for_x = parts[0] if len(parts) == 1 else torch.cat([x[:0], *parts])
        return for_x, None, for_weight if wanted[1] else None, for_bias if wanted[2] else None, None


def _image(rows: Tensor) -> Tensor:
    """Rows as one channels-last image, the layout for which the kernel is fast; a view."""
    return rows.view(1, len(rows), 1, rows.shape[1]).permute(0, 3, 1, 2)
