"""The vision transformer as an encoder of visible tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmae.core.tokens import TokenLayout, Tokens

from .block import Stack
from .encoded import Encoded, attention_mask


class ViTEncoder(nn.Module):
    """Embed, add positions, attend.

    Args:
        embed: content to features.
        positions: coordinates to features, or None.
        width: features per token.
        depth: blocks.
        heads: attention heads.
        every_block: add the positions again before every block (Point-BERT), and not only before the first.
        prefix: tokens that stand for no place; the first is [CLS]. They come first and have no position. May be 0.
        eps: of the layer norms.
        always: blocks whose output is always handed over, from 0, for decoders that read several depths.
        final_norm: a layer norm after the last block.
        options: further arguments of :class:`medmae.nets.block.Stack` and ``Block``.
    """

    def __init__(
        self,
        *,
        embed: nn.Module,
        positions: nn.Module | None,
        width: int,
        depth: int,
        heads: int,
        every_block: bool = False,
        prefix: int = 1,
        eps: float = 1e-6,
        always: tuple[int, ...] = (),
        final_norm: bool = True,
        **options: object,
    ) -> None:
        super().__init__()
        if any(not 0 <= i < depth for i in always):
            raise ValueError(f"there are blocks 0 to {depth - 1}, but those to hand over are {always}")
        self.width, self.always, self.every_block = width, always, every_block
        self.embed, self.positions = embed, positions
        self.prefix_tokens = nn.Parameter(torch.empty(1, prefix, width)) if prefix else None
        if self.prefix_tokens is not None:
            nn.init.trunc_normal_(self.prefix_tokens, std=0.02)
        self.blocks = Stack(depth, width, heads, eps=eps, **options)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width, eps=eps) if final_norm else nn.Identity()

    def forward(self, visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> Encoded:
        """Features of the visible tokens.

        Args:
            visible: what may be seen.
            full: layout of the full set; handed through to the decoder.
            tap: blocks whose output is wanted too, from 0.
        """
        x = self.embed(visible)
        places = None if self.positions is None else self.positions(visible.layout.coords).to(x.dtype)
        if places is not None and not self.every_block:
            x, places = x + places, None
        k = 0
        if self.prefix_tokens is not None:
            k = self.prefix_tokens.shape[1]
            x = torch.cat([self.prefix_tokens.expand(len(x), -1, -1).to(x.dtype), x], 1)
            places = None if places is None else nn.functional.pad(places, (0, 0, k, 0))
        x, taps = self.blocks(x, attention_mask(visible.layout, k), tap=(*self.always, *tap), again=places)
        x = self.norm(x)
        heads = {i: t[:, :k] for i, t in taps.items()}
        taps = {i: t[:, k:] for i, t in taps.items()}
        return Encoded(Tokens(visible.layout, x[:, k:]), x[:, :k], full, visible, taps, heads)


def xavier(module: nn.Module, *, split: bool = False) -> None:
    """Initialize every linear map below ``module`` as MAE does: Xavier-uniform weights, zero biases.

    Args:
        module: a network.
        split: queries, keys and values that are one product are initialized as maps of their own (MultiMAE).
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            maps = {"qkv": 3, "kv": 2}.get(name.rpartition(".")[2], 1) if split else 1
            for weight in part.weight.chunk(maps):
                nn.init.xavier_uniform_(weight)
            if isinstance(part.bias, Tensor):
                nn.init.zeros_(part.bias)


def truncated_normal(module: nn.Module) -> None:
    """Initialize every linear map and convolution below ``module``: truncated normal weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
