"""Attention inside windows of a grid that move from block to block (Swin V2).

Where a token mostly depends on its neighborhood, as in a spectrogram, whole-grid attention is both slow and too free.
Here every block attends inside small windows, and every second block shifts them, so that neighborhoods meet. Queries
and keys are compared by cosine, the bias of a pair of places is a small network of their distance, and norms come after
the branches, which keeps the scale of features in check.

Tokens are put into windows by an index that is computed once, for any number of axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmae.core.tokens import take

from .block import DropPath, Mlp
from .kernels import Linear


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, by cosine, with a bias from their distance (Swin V2, section 3).

    Args:
        width: features per token; must be a multiple of ``heads``.
        heads: attention heads.
        window: places per axis of a window.
        hidden: width of the network that makes the bias.
    """

    apart: Tensor

    def __init__(self, width: int, heads: int, *, window: Sequence[int], hidden: int = 384) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.logit_scale = nn.Parameter(torch.full((heads,), math.log(10.0)))
        self.bias1, self.bias2 = Linear(len(window), hidden), Linear(hidden, heads)
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in window), indexing="ij")
        place = torch.stack(axes, -1).flatten(0, -2)
        apart = place[:, None] - place[None]
        self.register_buffer("apart", apart.sign() * apart.abs().log1p(), persistent=False)  # [w w axes]

    def forward(
        self, x: Float[Tensor, "b m w d"], allowed: Bool[Tensor, "*b m w w"] | None
    ) -> Float[Tensor, "b m w d"]:
        """Attend inside each of ``m`` windows to the keys that ``allowed`` says."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each [b m heads w e]
        q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
        scale = self.logit_scale.clamp_max(math.log(100.0)).exp()
        bias = self.bias2(F.relu(self.bias1(self.apart))).permute(2, 0, 1)
        scores = (q @ k.transpose(-1, -2)) * scale[:, None, None] + bias
        if allowed is not None:
            scores = scores.masked_fill(~allowed.unsqueeze(-3), -torch.inf)
        out = scores.softmax(-1).to(v.dtype) @ v
        return self.proj(out.transpose(2, 3).flatten(3))  # type: ignore[no-any-return]


class WindowBlock(nn.Module):
    """x += norm(attention(x)); x += norm(mlp(x)), with attention inside windows.

    Args:
        width: features per token.
        heads: attention heads.
        shape: places per axis of the grid.
        window: places per axis of a window; an axis that is no longer than it is one window and is not shifted.
        shift: places by which the windows are shifted, per axis. What the shift wraps around stays apart.
        mlp_ratio: hidden width of the MLP over the width.
        eps: of the layer norms.
        drop_path: probability of stochastic depth.

    Raises:
        ValueError: windows that do not divide the grid, or a shift as large as a window.
    """

    order: Tensor
    back: Tensor
    allowed: Tensor | None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shape: Sequence[int],
        window: Sequence[int],
        shift: Sequence[int],
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(shape) == len(window) == len(shift):
            raise ValueError(f"grid {shape}, window {window} and shift {shift} have different numbers of axes")
        window = tuple(min(w, n) for w, n in zip(window, shape, strict=True))
        shift = tuple(0 if w == n else s for w, n, s in zip(window, shape, shift, strict=True))
        if any(n % w for n, w in zip(shape, window, strict=True)):
            raise ValueError(f"windows of {window} do not divide a grid of {tuple(shape)}")
        if any(not 0 <= s < w for s, w in zip(shift, window, strict=True)):
            raise ValueError(f"a shift of {shift} is not smaller than windows of {window}")
        self.attn = WindowAttention(width, heads, window=window)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.drop_path, self.shift = DropPath(drop_path), shift
        order, allowed = _windows(tuple(shape), window, shift)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.flatten().argsort(), persistent=False)
        self.register_buffer("allowed", allowed if any(shift) else None, persistent=False)

    def forward(self, x: Float[Tensor, "b s d"], mask: Bool[Tensor, "b 1 1 s"] | None = None) -> Float[Tensor, "b s d"]:
        """One block over the full grid; ``mask`` says which tokens may be attended to."""
        allowed = self.allowed
        if mask is not None:
            exists = mask[:, 0, 0][:, self.order][:, :, None]  # [b m 1 w]
            allowed = exists.expand(-1, -1, exists.shape[-1], -1) if allowed is None else exists & allowed
            allowed = allowed | ~allowed.any(-1, keepdim=True)  # who may see nobody is missing; no NaN from it
        windows = self.attn(x[:, self.order], allowed)
        x = x + self.drop_path(self.norm1(windows.flatten(1, 2)[:, self.back]))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class WindowStack(nn.ModuleList):
    """Blocks with windows in place and shifted windows in turn, called as :class:`medmae.nets.block.Stack` is.

    Args:
        depth: number of blocks.
        width: features per token.
        heads: attention heads.
        shape: places per axis of the grid; tokens come in row-major order, all of them.
        window: places per axis of a window.
        shift: shift of every second block, per axis.
        drop_path: probability at the last block; it grows linearly from zero.
        options: further arguments of :class:`WindowBlock`.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        *,
        shape: Sequence[int],
        window: Sequence[int],
        shift: Sequence[int],
        drop_path: float = 0.0,
        **options: float,
    ) -> None:
        still = (0,) * len(tuple(shift))
        super().__init__(
            WindowBlock(
                width,
                heads,
                shape=shape,
                window=window,
                shift=shift if i % 2 else still,
                drop_path=drop_path * i / max(1, depth - 1),
                **options,
            )
            for i in range(depth)
        )
        self.recompute = False

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        *,
        rows: Int[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], dict[int, Tensor]]:
        """The output, where ``rows`` are given of these tokens only."""
        for block in self:
            if self.recompute and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return (x if rows is None else take(x, rows)), {}


def _windows(
    shape: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> tuple[Int[Tensor, "m w"], Bool[Tensor, "m w w"]]:
    """Tokens of every window, and who may attend to whom in it: those that the shift wrapped around are far away."""
    axes = tuple(range(len(shape)))
    place = torch.arange(math.prod(shape)).view(shape).roll(tuple(-s for s in shift), axes)
    ends = torch.meshgrid(*(torch.arange(n) >= n - s for n, s in zip(shape, shift, strict=True)), indexing="ij")
    region = torch.stack([end.long() << axis for axis, end in enumerate(ends)]).sum(0)

    def cut(values: Tensor) -> Tensor:
        split = [x for n, w in zip(shape, window, strict=True) for x in (n // w, w)]
        k = len(shape)
        order = (*range(0, 2 * k, 2), *range(1, 2 * k, 2))
        return values.reshape(split).permute(order).reshape(-1, math.prod(window))

    inside = cut(region)
    return cut(place), inside[:, :, None] == inside[:, None]
