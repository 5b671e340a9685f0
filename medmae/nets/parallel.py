"""A transformer block whose attention and MLP read one norm and are added in one step (ViT-22B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medmae.core.tokens import take

from .block import DropPath, LayerScale
from .kernels import Linear, attend


class ParallelBlock(nn.Module):
    """x += scale(attention(norm(x)) + mlp(norm(x))); queries, keys, values and the MLP's first map are one product.

    Queries, keys and values have no bias. Names and shapes are those of timm's ``ParallelScalingBlock``, which (in 1.0)
    puts the zeros that stand for their bias in front of that of the MLP, and so adds most of the latter to them.

    Args:
        width: features per token.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        eps: of the norms.
        qk_norm: normalize queries and keys per head.
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
        qk_norm: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        hidden = int(width * mlp_ratio)
        self.heads, self.parts = heads, (hidden, width, width, width)
        self.in_norm = nn.LayerNorm(width, eps=eps)
        self.in_proj = Linear(width, hidden + 3 * width, bias=False)
        self.mlp_bias = nn.Parameter(torch.zeros(hidden))
        self.q_norm = nn.LayerNorm(width // heads, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=eps) if qk_norm else nn.Identity()
        self.attn_out_proj, self.mlp_out_proj = Linear(width, width), Linear(hidden, width)
        self.ls = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        rows: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """One block; where ``rows`` are given, its output for these tokens only, which still attend to all."""
        hidden, q, k, v = self.in_proj(self.in_norm(x)).split(self.parts, -1)
        if rows is not None:
            x, hidden, q = take(x, rows), take(hidden, rows), take(q, rows)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        looked = attend(self.q_norm(q), self.k_norm(k), v, mask).transpose(1, 2).flatten(2)
        branch = self.attn_out_proj(looked) + self.mlp_out_proj(F.gelu(hidden + self.mlp_bias))
        return x + self.drop_path(self.ls(branch))
