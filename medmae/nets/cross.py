"""Decoders that ask by cross-attention: one per task (MultiMAE), or one shared by all channels (CA-MAE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from medmae.core.tokens import TokenLayout, take

from .block import Mlp, Stack
from .encoded import Encoded, attention_mask
from .hierarchical import CrossAttention
from .kernels import Linear


class CrossLayer(nn.Module):
    """Cross-attention from normalized queries to a normalized context, without a residual; then x += mlp(norm(x)).

    Without the residual a query says only what it wants; everything it gets comes from the context.

    Args:
        width: features per token.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        eps: of the layer norms.
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: float = 4.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.query_norm, self.context_norm, self.norm = (nn.LayerNorm(width, eps=eps) for _ in range(3))
        self.cross = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        context: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """What the queries learn from every token of the context that ``mask`` allows."""
        x = self.cross(self.query_norm(x), self.context_norm(context), mask)
        return x + self.mlp(self.norm(x))


class _Canvas(nn.Module):
    """What both kinds of decoder start from: projected tokens, a mask token, positions and a vector per modality."""

    def __init__(self, *, encoder_width: int, width: int, positions: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.positions = tuple(names), positions
        self.embed = Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.modality = nn.ParameterDict({name: nn.Parameter(torch.empty(width)) for name in self.names})
        for vector in (self.mask_token, *self.modality.values()):
            nn.init.trunc_normal_(vector, std=0.02)

    def where(self, layout: TokenLayout) -> Float[Tensor, "b n d"]:
        """The code of place and modality of every token."""
        vectors = torch.stack([self.modality[name] for name in self.names])[layout.modality]
        return vectors + self.positions(layout.coords).to(vectors.dtype)


class TaskDecoder(_Canvas):
    """The decoder of one task (MultiMAE): its own slots ask the visible tokens of all tasks and the prefix.

    A slot holds the encoded token where it was visible and the mask token elsewhere. Mask tokens are never looked at in
    the cross-attention; blocks of self-attention among the slots of the task follow. There is no norm before the head.

    Args:
        task: number of the task.
        names: of all tasks.
        encoder_width: features per token that come in.
        width: features per token inside.
        depth: blocks of self-attention.
        heads: attention heads.
        content: values per token that go out.
        positions: coordinates to features of ``width``.
        mlp_ratio: hidden width of the MLPs over the width.
        eps: of the layer norms.
    """

    def __init__(
        self,
        *,
        task: int,
        names: Sequence[str],
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        content: int,
        positions: nn.Module,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(encoder_width=encoder_width, width=width, positions=positions, names=names)
        self.task = task
        self.layer = CrossLayer(width, heads, mlp_ratio=mlp_ratio, eps=eps)
        self.blocks = Stack(depth, width, heads, mlp_ratio=mlp_ratio, eps=eps)
        self.head = Linear(width, content)

    def forward(self, encoded: Encoded) -> Shaped[Tensor, "b length what"]:
        """Content of every slot of the task, visible or not."""
        seen, full = replace(encoded.tokens, content=self.embed(encoded.tokens.content)), encoded.full
        length = full.total // len(self.names)
        mine = slice(self.task * length, (self.task + 1) * length)
        slots = seen.onto(full, self.mask_token).content[:, mine]
        slots = slots + self.where(_part(full, mine)).to(slots.dtype)
        prefix = self.embed(encoded.prefix)
        context = torch.cat([prefix, seen.content + self.where(seen.layout).to(prefix.dtype)], 1)
        x, _ = self.blocks(self.layer(slots, context, attention_mask(seen.layout, prefix.shape[1])))
        return self.head(x)


class TaskDecoders(nn.Module):
    """Decoders by the name of their answer; a query is answered by those of its task.

    Args:
        each: a decoder per answer.
        tasks: number of tasks.
    """

    def __init__(self, each: Mapping[str, TaskDecoder], *, tasks: int) -> None:
        super().__init__()
        self.each, self.tasks = nn.ModuleDict(each), tasks

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Guesses of every query, one answer after the other, zeros behind them."""
        told: list[list[Tensor]] = [[] for _ in range(self.tasks)]
        for decoder in self.each.values():
            told[decoder.task].append(decoder(encoded))  # type: ignore[index]
        rows = [torch.cat(parts, -1) for parts in told]
        widest = max(row.shape[-1] for row in rows)
        return take(torch.cat([F.pad(row, (0, widest - row.shape[-1])) for row in rows], 1), queries.id)


class ChannelDecoder(_Canvas):
    """One cross-attention for all channels, then blocks of each channel's own (CA-MAE).

    The context is the full set of all channels, mask tokens included; missing channels are not looked at. The encoder's
    prefix has no part. The head is shared, and there is no norm before it.

    Args:
        names: of the channels.
        encoder_width: features per token that come in.
        width: features per token inside.
        depth: blocks of every channel.
        heads: attention heads.
        content: values per token that go out.
        positions: coordinates to features of ``width``.
        mlp_ratio: hidden width of the MLPs over the width.
        eps: of the layer norms.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        content: int,
        positions: nn.Module,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(encoder_width=encoder_width, width=width, positions=positions, names=names)
        self.layer = CrossLayer(width, heads, mlp_ratio=mlp_ratio, eps=eps)
        self.each = nn.ModuleDict({name: Stack(depth, width, heads, mlp_ratio=mlp_ratio, eps=eps) for name in names})
        self.head = Linear(width, content)

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Content of every query."""
        seen, full = replace(encoded.tokens, content=self.embed(encoded.tokens.content)), encoded.full
        x = seen.onto(full, self.mask_token).content
        x = x + self.where(full).to(x.dtype)
        x = self.layer(x, x, attention_mask(full, 0))  # every token asks, so keys and values are computed once
        parts = x.split(full.total // len(self.names), 1)
        x = torch.cat([self.each[name](part)[0] for name, part in zip(self.names, parts, strict=True)], 1)
        return self.head(take(x, queries.id))


def _part(layout: TokenLayout, rows: slice) -> TokenLayout:
    """Some columns of a full layout."""
    return replace(
        layout,
        id=layout.id[:, rows],
        coords=layout.coords[:, rows],
        modality=layout.modality[:, rows],
        weight=None,
    )
