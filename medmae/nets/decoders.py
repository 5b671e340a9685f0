"""Decoders: told where they are asked, never what was there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from medmae.core.tokens import TokenLayout, Tokens, take

from .block import Stack
from .encoded import Encoded, attention_mask
from .kernels import Linear


class JointDecoder(nn.Module):
    """Plain self-attention over the full set, with one mask token wherever nothing was visible (MAE).

    The encoder's prefix tokens come first, without a position. The head runs on what is asked for only. Missing tokens
    are not attended to.

    With ``asked_only`` the full set is never built: the decoder works on the visible tokens and one mask token for each
    query (VideoMAE). Where all that is hidden is asked for this is the same function; where little is, it is cheaper,
    and an answer depends on what else is asked.

    Args:
        encoder_width: features per token that come in; None where they are ``width`` and come in as they are.
        width: features per token inside.
        depth: blocks.
        heads: attention heads.
        content: values per token that go out.
        positions: coordinates to features of ``width``.
        every_block: add the positions again before every block, and not only before the first.
        blocks: in place of plain blocks, called as a :class:`medmae.nets.block.Stack` is.
        names: modalities with a learned embedding each; None for no embedding.
        eps: of the layer norms.
        embed_bias: bias on the map from the encoder's width.
        asked_only: leave out what is neither visible nor asked for.
        prefix: that many learned tokens of its own, in place of those of the encoder; None takes the encoder's.
        options: further arguments of the blocks.
    """

    def __init__(
        self,
        *,
        encoder_width: int | None,
        width: int,
        depth: int,
        heads: int,
        content: int,
        positions: nn.Module,
        every_block: bool = False,
        blocks: nn.Module | None = None,
        names: Sequence[str] | None = None,
        eps: float = 1e-6,
        embed_bias: bool = True,
        asked_only: bool = False,
        prefix: int | None = None,
        **options: object,
    ) -> None:
        super().__init__()
        self.asked_only, self.prefix, self.every_block = asked_only, prefix, every_block
        self.embed = nn.Identity() if encoder_width is None else Linear(encoder_width, width, bias=embed_bias)
        self.prefix_tokens = nn.Parameter(torch.empty(1, prefix, width)) if prefix else None
        if self.prefix_tokens is not None:
            nn.init.trunc_normal_(self.prefix_tokens, std=0.02)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.positions = positions
        self.names = None if names is None else tuple(names)
        self.modality = nn.ParameterDict({name: nn.Parameter(torch.empty(width)) for name in names or ()})
        for vector in self.modality.values():
            nn.init.trunc_normal_(vector, std=0.02)
        self.blocks = Stack(depth, width, heads, eps=eps, **options) if blocks is None else blocks  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = Linear(width, content)

    def features(self, encoded: Encoded, queries: TokenLayout) -> Float[Tensor, "b t d"]:
        """What the head reads: normalized features where the decoder is asked."""
        seen = Tokens(encoded.tokens.layout, self.embed(encoded.tokens.content))
        prefix = self._prefix(encoded)
        if self.asked_only:
            layout = _joined(seen.layout, queries)
            blank = self.mask_token.to(seen.content.dtype).expand(*queries.id.shape, -1)
            x = torch.cat([seen.content, blank], 1)
            v, t = seen.layout.id.shape[1], queries.id.shape[1]
            asked = torch.arange(v, v + t, device=x.device).expand(len(x), -1)
        else:
            layout = encoded.full
            x = seen.onto(layout, self.mask_token).content
            asked = queries.id.clamp_min(0)
        k = prefix.shape[1]
        places = self.positions(layout.coords).to(x.dtype)
        again = {"again": nn.functional.pad(places, (0, 0, k, 0))} if self.every_block else {}
        x = x if self.every_block else x + places
        if self.names is not None:
            x = x + torch.stack([self.modality[name] for name in self.names]).to(x.dtype)[layout.modality]
        x, _ = self.blocks(torch.cat([prefix, x], 1), attention_mask(layout, k), rows=asked + k, **again)
        return self.norm(x)

    def _prefix(self, encoded: Encoded) -> Float[Tensor, "b k d"]:
        if self.prefix is None:
            return self.embed(encoded.prefix)  # type: ignore[no-any-return]
        dtype, b = encoded.tokens.content.dtype, len(encoded.tokens.content)
        if self.prefix_tokens is None:
            return self.mask_token.new_empty(b, 0, len(self.mask_token), dtype=dtype)
        return self.prefix_tokens.expand(b, -1, -1).to(dtype)

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Content of every query; rows of missing queries hold anything finite."""
        return self.head(self.features(encoded, queries))


class DetailDecoder(nn.Module):
    """A decoder whose guess may borrow detail from other modalities at the same place.

    A token of a few hundred numbers cannot carry thousands of voxels. Aligned sequences share their edges, so the
    guess is what the inner decoder says plus a correction: a network of one hidden layer maps what the modalities show
    at a voxel to that voxel, and its weights are written by the query. One layer of gains alone could only be linear
    in the intensities, which tissue contrast is not. The correction starts at zero. Where a modality is hidden or
    missing its voxels count as zero and the query is told so; only visible content is borrowed, so nothing leaks.

    Args:
        inner: a decoder with ``features`` and ``head``.
        width: features per token of ``inner``.
        names: modalities, in the order of the modality index, all cut by one grid.
        hidden: units per voxel; memory grows with it. 0 leaves one gain per modality.
    """

    def __init__(self, inner: JointDecoder, *, width: int, names: Sequence[str], hidden: int = 8) -> None:
        super().__init__()
        self.inner, self.names, self.hidden = inner, tuple(names), hidden
        # Everything that belongs to a modality is kept by its name, so that one can be added to a trained decoder.
        self.visible = nn.ParameterDict({name: nn.Parameter(torch.empty(width)) for name in self.names})
        self.gain = nn.ModuleDict({name: nn.Linear(width, 1) for name in self.names})
        self.into = nn.ModuleDict({name: nn.Linear(width, hidden) for name in self.names} if hidden else {})
        for vector in self.visible.values():
            nn.init.trunc_normal_(vector, std=0.02)
        for weights in self.into.values():
            nn.init.normal_(weights.bias, std=0.5)  # type: ignore[arg-type]
        last: list[nn.Module] = list(self.gain.values())
        if hidden:
            self.bias, self.out = nn.Linear(width, hidden), nn.Linear(width, hidden)
            nn.init.normal_(self.bias.bias, std=0.5)
            last.append(self.out)
        for linear in last:
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Content of every query."""
        features = self.inner.features(encoded, queries)
        guess = self.inner.head(features)
        shown, there = self._shown(encoded, queries)
        shown, there = shown.to(guess.dtype), there.to(guess.dtype)
        writer = features + there @ torch.stack([self.visible[name] for name in self.names]).to(guess.dtype)
        gain = torch.cat([self.gain[name](writer) for name in self.names], -1)
        correction = gain[..., None, :] @ shown
        if self.hidden:
            weight = torch.stack([self.into[name](writer) for name in self.names], -1)
            inside = torch.relu(weight @ shown + self.bias(writer)[..., None])
            correction = correction + self.out(writer)[..., None, :] @ inside
        return guess + correction[..., 0, :]

    def _shown(
        self, encoded: Encoded, queries: TokenLayout
    ) -> tuple[Shaped[Tensor, "b t m what"], Shaped[Tensor, "b t m"]]:
        """What every modality shows at the place of each query (zero where it shows nothing), and which of them do."""
        seen, length = encoded.seen, queries.total // len(self.names)
        blank = torch.zeros((), dtype=seen.content.dtype, device=seen.content.device)
        canvas = seen.onto(encoded.full, blank).content
        place = queries.id.clamp_min(0) % length
        columns = [place + i * length for i in range(len(self.names))]
        marks = _marks(seen.layout)
        there = torch.stack([marks.gather(1, column) for column in columns], -1)
        return torch.stack([take(canvas, column) for column in columns], 2), there


def _joined(first: TokenLayout, second: TokenLayout) -> TokenLayout:
    """The tokens of both, one after the other; weights are left out."""
    return replace(
        first,
        id=torch.cat([first.id, second.id], 1),
        coords=torch.cat([first.coords, second.coords], 1),
        modality=torch.cat([first.modality, second.modality], 1),
        weight=None,
        ragged=first.ragged or second.ragged,
    )


def _marks(layout: TokenLayout) -> Shaped[Tensor, "b total"]:
    """One where a token of the full set is in ``layout``."""
    b = len(layout.id)
    column = torch.where(layout.id < 0, layout.total, layout.id)
    marks = torch.zeros(b, layout.total + 1, device=column.device)
    return marks.scatter(1, column, 1.0)[:, : layout.total]
