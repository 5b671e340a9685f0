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
        prefix: tokens that stand for no place; the first is [CLS]. They come first and have no position.
        eps: of the layer norms.
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
        prefix: int = 1,
        eps: float = 1e-6,
        **options: object,
    ) -> None:
        super().__init__()
        self.width = width
        self.embed, self.positions = embed, positions
        self.prefix_tokens = nn.Parameter(torch.empty(1, prefix, width))
        nn.init.trunc_normal_(self.prefix_tokens, std=0.02)
        self.blocks = Stack(depth, width, heads, eps=eps, **options)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> Encoded:
        """Features of the visible tokens.

        Args:
            visible: what may be seen.
            full: layout of the full set; handed through to the decoder.
            tap: blocks whose output is wanted too, from 0.
        """
        x = self.embed(visible)
        if self.positions is not None:
            x = x + self.positions(visible.layout.coords).to(x.dtype)
        k = self.prefix_tokens.shape[1]
        x = torch.cat([self.prefix_tokens.expand(len(x), -1, -1).to(x.dtype), x], 1)
        x, taps = self.blocks(x, attention_mask(visible.layout, k), tap=tap)
        x = self.norm(x)
        taps = {i: t[:, k:] for i, t in taps.items()}
        return Encoded(Tokens(visible.layout, x[:, k:]), x[:, :k], full, visible, taps)


def xavier(module: nn.Module) -> None:
    """Initialize every linear map below ``module`` as MAE does: Xavier-uniform weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if isinstance(part.bias, Tensor):
                nn.init.zeros_(part.bias)
