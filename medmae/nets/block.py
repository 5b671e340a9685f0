"""The transformer block of this project.

It is our own because the layouts of published checkpoints must be met exactly and for good: the blocks of other
libraries have changed their parameters between releases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmae.core.tokens import take

from .kernels import Linear, attend


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection whose output factorizes as (3, heads, width of a head).

    Args:
        width: features per token; must be a multiple of ``heads``.
        heads: attention heads.
        qkv_bias: bias on the fused projection.
        qk_norm: layer-normalize queries and keys per head.
        eps: of those norms.
        dropout: on the attention weights and on the output.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        rows: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attend to every key that ``mask`` allows; where ``rows`` are given, from these tokens only."""
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if rows is not None:
            q = q.gather(2, rows[:, None, :, None].expand(-1, self.heads, -1, d // self.heads))
        out = attend(self.q_norm(q), self.k_norm(k), v, mask, dropout=self.dropout if self.training else 0.0)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Mlp(nn.Module):
    """Linear, exact GELU, linear, with dropout after both."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2, self.dropout = Linear(width, hidden), Linear(hidden, width), dropout

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """Each token on its own."""
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class LayerScale(nn.Module):
    """A learned factor per feature, small at first (CaiT)."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """Scale."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drop the whole branch of a sample, and scale the others up (Huang et al., 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"drop_path must be in [0, 1), not {probability}: at 1 nothing is left to scale up")
        self.probability = probability

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """Drop in training, pass through otherwise."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * torch.empty(len(x), 1, 1, device=x.device, dtype=x.dtype).bernoulli_(keep) / keep


class Block(nn.Module):
    """Pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x)).

    Args:
        width: features per token.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        eps: of the layer norms.
        qkv_bias: bias on the fused projection.
        qk_norm: normalize queries and keys.
        dropout: on attention weights, attention output and in the MLP.
        drop_path: probability of stochastic depth.
        layer_scale: initial value of the learned factors, or None for none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias, qk_norm=qk_norm, eps=eps, dropout=dropout)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout=dropout)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        rows: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """One block; where ``rows`` are given, its output for these tokens only, which still attend to all."""
        branch = self.drop_path(self.scale1(self.attn(self.norm1(x), mask, rows)))
        x = (x if rows is None else take(x, rows)) + branch
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class Stack(nn.ModuleList):
    """Blocks one after the other, optionally recomputed in the backward pass, optionally tapped.

    Args:
        depth: number of blocks.
        width: features per token.
        heads: attention heads.
        drop_path: probability at the last block; it grows linearly from zero.
        block: what to stack; called and built as :class:`Block` is.
        options: further arguments of a block.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        *,
        drop_path: float = 0.0,
        block: type[nn.Module] = Block,
        **options: object,
    ) -> None:
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        super().__init__(block(width, heads, drop_path=rate, **options) for rate in rates)
        self.recompute = False

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        *,
        tap: tuple[int, ...] = (),
        rows: Int[Tensor, "b t"] | None = None,
        again: Float[Tensor, "b s d"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], dict[int, Tensor]]:
        """The output, and the outputs of the blocks named in ``tap`` (from 0).

        Where ``rows`` are given, the output of these tokens only: the last block does not work for the others.
        Where ``again`` is given (positions), it is added to what goes into every block.
        """
        taps = {}
        if rows is not None and len(self) == 0:
            x = take(x, rows)
        for i, block in enumerate(self):
            wanted = rows if i == len(self) - 1 else None
            x = x if again is None else x + again
            if self.recompute and self.training:
                x = checkpoint(block, x, mask, wanted, use_reentrant=False)
            else:
                x = block(x, mask, wanted)
            if i in tap:
                taps[i] = x
        return x, taps
