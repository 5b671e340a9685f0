"""The two operations that take the time, and who computes them on a CPU.

On a GPU, under ``torch.compile`` and wherever nothing better is known, this is ``F.linear`` and
``F.scaled_dot_product_attention``. Two measured exceptions remain, both chosen by the machine and the shapes, never
by a clock, so that a run computes the same thing when it is resumed:

- float32 matrix products on AMD processors. torch hands them to MKL, which reaches less than half of what the
  processor can do there; oneDNN, which is part of torch too and gets the bfloat16 products anyway, reaches twice
  MKL's rate. It is float32 all the way: ``torch.backends.mkldnn.matmul.fp32_precision`` is not touched.
- attention in bfloat16, and in float32 on those processors. The fused CPU kernel multiplies small tiles, far below
  the rate of the libraries; one head at a time with whole products is up to twice as fast, and one head's weights fit
  in the cache.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

KEEP_WEIGHTS_BELOW = 1 << 27
"""Bytes of bfloat16 attention weights of one call up to which they are kept for the backward pass. Computing float32
ones again costs 2 % of a step and saves a tenth of its memory."""

SMALL_PRODUCT = 1 << 20
"""Multiplications below which the choice of the library does not matter."""


class Linear(nn.Linear):
    """``nn.Linear`` (same parameters, same names) by the faster library."""

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The linear map of the last axis."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """``x @ weight.T + bias``."""
    if _wants_onednn(x, weight, bias):
        return _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return F.linear(x, weight, bias)


def attend(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s e"],
    mask: Bool[Tensor, "b 1 1 s"] | None = None,
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "b h t e"]:
    """Softmax attention to every key that ``mask`` allows, with dropout on the attention weights."""
    if dropout == 0 and _wants_heads(q, k, v):
        return _HeadByHead.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _wants_heads(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.device.type != "cpu" or torch.compiler.is_compiling() or not q.dtype == k.dtype == v.dtype:
        return False
    if q.shape[2] * k.shape[2] * q.shape[3] < SMALL_PRODUCT:  # of one head; below it the loop costs more than it gains
        return False
    return q.dtype == torch.bfloat16 or (q.dtype == torch.float32 and onednn_is_faster())


def _wants_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if any(t is not None and t.dtype != torch.float32 for t in (x, weight, bias)):
        return False
    return x.numel() * len(weight) >= SMALL_PRODUCT and onednn_is_faster()


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether float32 products go to oneDNN here: an AMD processor with AVX-512, and an operator that works."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        cpu = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return False
    if "AuthenticAMD" not in cpu:
        return False
    # The operator is not part of torch's public interface: ask it one question that has an exact answer.
    left = (torch.arange(6 * 64).view(6, 64) % 7 - 3).float()
    right = (torch.arange(5 * 64).view(5, 64) % 5 - 2).float()
    try:
        return torch.equal(_onednn(left, right), left @ right.T)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left @ right.T + bias`` by oneDNN.

    Both must be contiguous or the transpose of something contiguous: those are taken as they are, while any other
    strides fall back to a loop that is a thousand times slower.
    """
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def product(left: Float[Tensor, "i k"], right: Float[Tensor, "o k"]) -> Float[Tensor, "i o"]:
    """``left @ right.T`` of two matrices by whoever is fastest, for code that has a backward pass of its own.

    Both must be contiguous or the transpose of something contiguous, as for :func:`_onednn`.
    """
    if left.dtype == torch.float32 and left.device.type == "cpu" and onednn_is_faster():
        return _onednn(left, right)
    return left @ right.t()


class _OneDnnLinear(torch.autograd.Function):
    """:func:`linear` by oneDNN, three products in all; only the gradients that are asked for are computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        rows = grad.flatten(0, -2)
        for_x = _onednn(grad, weight.t()) if wants_x else None
        for_weight = _onednn(rows.t(), x.flatten(0, -2).t()) if wants_weight else None
        return for_x, for_weight, rows.sum(0) if wants_bias else None


class _HeadByHead(torch.autograd.Function):
    """Attention by three (forward) and five (backward) whole matrix operations per head.

    Small weights are kept; large ones are computed again, one head at a time, so that memory does not grow with their
    square.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        b, heads, t, e = q.shape
        q, k, v = (q * e**-0.5).contiguous(), k.contiguous(), v.contiguous()
        out = q.new_empty(b, t, heads, e).transpose(1, 2)  # so that joining the heads afterwards costs nothing
        keep = q.dtype == torch.bfloat16 and 2 * b * heads * t * k.shape[2] <= KEEP_WEIGHTS_BELOW
        kept = []
        for i, j in _heads(q):
            weights = _weights(q[i, j], k[i, j], None if mask is None else mask[i, 0])
            out[i, j] = product(weights, v[i, j].t())
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, mask, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, *kept = ctx.saved_tensors
        grad, scale = grad.contiguous(), q.shape[-1] ** -0.5
        for_q, for_k, for_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for n, (i, j) in enumerate(_heads(q)):
            weights = kept[n] if kept else _weights(q[i, j], k[i, j], None if mask is None else mask[i, 0])
            for_v[i, j] = product(grad[i, j].t(), weights.t()).t()
            for_scores = torch._softmax_backward_data(product(grad[i, j], v[i, j]), weights, -1, weights.dtype)
            for_q[i, j] = product(for_scores, k[i, j].t()) * scale
            for_k[i, j] = product(q[i, j].t(), for_scores.t()).t()
        return for_q, for_k, for_v, None


def _heads(q: Tensor) -> list[tuple[int, int]]:
    """Every sample and head."""
    return [(i, j) for i in range(q.shape[0]) for j in range(q.shape[1])]


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Attention weights of one head, from queries that are scaled already."""
    scores = product(q, k)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return scores.softmax(-1)
