"""A decoder that asks the encoder at several depths (encoder-driven decoding, Hi-End-MAE).

Its sequence starts as that of a joint decoder: what the encoder found, mask tokens elsewhere. Then every further
block looks, by cross-attention, at what the encoder knew at one depth, from deep to shallow. So the loss reaches the
inside of the encoder by short paths, and its middle layers are trained to be useful too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmae.core.tokens import TokenLayout, take

from .block import Attention, Mlp, Stack
from .encoded import Encoded, attention_mask
from .kernels import Linear, attend


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another.

    Args:
        width: features per token of both; a multiple of ``heads``.
        heads: attention heads.
        dropout: on the attention weights and on the output.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.q, self.kv, self.proj = Linear(width, width), Linear(width, 2 * width), Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attend from ``x`` to every token of ``memory`` that ``mask`` allows."""
        b, s, d = memory.shape
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).view(b, s, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), self.dropout, self.training)


class CrossBlock(nn.Module):
    """Pre-norm block: self-attention, cross-attention to a memory (which is not normalized), MLP.

    Args:
        width: features per token.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        eps: of the layer norms.
        dropout: on attention weights, attention outputs and in the MLP.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float = 4.0, eps: float = 1e-6, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(3))
        self.attn = Attention(width, heads, dropout=dropout)
        self.cross = CrossAttention(width, heads, dropout=dropout)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout=dropout)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        memory: Float[Tensor, "b k d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        memory_mask: Bool[Tensor, "b 1 1 k"] | None = None,
        rows: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """One block; where ``rows`` are given, its output for these tokens only, which still attend to all."""
        x = (x if rows is None else take(x, rows)) + self.attn(self.norm0(x), mask, rows)
        x = x + self.cross(self.norm1(x), memory, memory_mask)
        return x + self.mlp(self.norm2(x))


class HierarchicalDecoder(nn.Module):
    """Self-attention over the full set, then one cross-attention block per tapped depth, deep to shallow.

    The encoder's prefix tokens come first, without a position, in the sequence and in every memory. A memory holds what
    is visible, projected, without positions. Missing tokens are not attended to.

    Args:
        encoder_width: features per token that come in.
        levels: blocks of the encoder that are asked, from 0; the encoder must hand them over.
        width: features per token inside.
        depth: blocks of self-attention before.
        heads: attention heads.
        content: values per token that go out.
        positions: coordinates to features of ``width``.
        names: modalities with a learned embedding each; None for no embedding.
        mlp_ratio: hidden width of the MLPs over the width.
        eps: of the layer norms.
        dropout: in all blocks.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        levels: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        content: int,
        positions: nn.Module,
        names: Sequence[str] | None = None,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not levels or len(set(levels)) < len(levels):
            raise ValueError(f"the decoder asks at least one depth of the encoder, each once, not {tuple(levels)}")
        self.levels = tuple(sorted(levels, reverse=True))
        self.embed = Linear(encoder_width, width)
        self.memory = nn.ModuleList(Linear(encoder_width, width) for _ in self.levels)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions = positions
        self.names = None if names is None else tuple(names)
        self.modality = nn.ParameterDict({name: nn.Parameter(torch.empty(width)) for name in names or ()})
        for vector in self.modality.values():
            nn.init.trunc_normal_(vector, std=0.02)
        self.blocks = Stack(depth, width, heads, mlp_ratio=mlp_ratio, eps=eps, dropout=dropout)
        self.cross = nn.ModuleList(
            CrossBlock(width, heads, mlp_ratio=mlp_ratio, eps=eps, dropout=dropout) for _ in self.levels
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = Linear(width, content)
        self.recompute = False

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Content of every query; rows of missing queries hold anything finite."""
        layout, visible = encoded.full, encoded.tokens.layout
        tokens = encoded.tokens.__class__(visible, self.embed(encoded.tokens.content))
        x = tokens.onto(layout, self.mask_token).content
        x = x + self.positions(layout.coords).to(x.dtype)
        if self.names is not None:
            x = x + torch.stack([self.modality[name] for name in self.names]).to(x.dtype)[layout.modality]
        k = encoded.prefix.shape[1]
        x = torch.cat([self.embed(encoded.prefix).to(x.dtype), x], 1)
        mask, memory_mask = attention_mask(layout, k), attention_mask(visible, k)
        x, _ = self.blocks(x, mask)
        asked = queries.id.clamp_min(0) + k
        for level, project, block in zip(self.levels, self.memory, self.cross, strict=True):
            memory = project(torch.cat([encoded.tap_prefix[level], encoded.taps[level]], 1))
            rows = asked if level == self.levels[-1] else None
            if self.recompute and self.training:
                x = checkpoint(block, x, memory, mask, memory_mask, rows, use_reentrant=False)
            else:
                x = block(x, memory, mask, memory_mask, rows)
        return self.head(self.norm(x))
