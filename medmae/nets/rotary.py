"""EVA-02 blocks with rotary positions, as the Primus family of 3-D vision transformers uses them.

They are kept apart from ``nets/block.py`` because nearly every part differs: queries and keys are turned by an angle
that grows with the position instead of carrying a code that was added once, the keys have no bias, the attention output
and the inside of the gated MLP are normalized. The angles are computed from coordinates, so that any subset of the
tokens, in any order, gets the angles it has in the full volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block import DropPath, LayerScale
from .kernels import Linear, attend

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of the angles, each Float[b 1 s e]."""


def angles(coords: Float[Tensor, "b s p"], width: int, *, temperature: float = 10000.0) -> Turn:
    """Cosines and sines by which heads of ``width`` features are turned at these places.

    Axis by axis, ``width / 2p`` frequencies ``temperature ** (-q / n)``; each turns two neighboring features.

    Args:
        coords: places in patches.
        width: features of one head; a multiple of twice the number of axes.
        temperature: base of the frequencies.

    Raises:
        ValueError: the width does not divide.
    """
    p = coords.shape[-1]
    if width % (2 * p):
        raise ValueError(f"heads of {width} features cannot be turned about {p} axes: a multiple of {2 * p} is needed")
    n = width // (2 * p)
    steps = torch.arange(n, device=coords.device, dtype=torch.float32) / n
    angle = (coords.float()[..., None] * temperature**-steps).flatten(-2).repeat_interleave(2, -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "b h s e"], turn: Turn) -> Float[Tensor, "b h s e"]:
    """Turn each pair of neighboring features by its angle; in float32, handed back in the type of ``x``."""
    cos, sin = turn
    swapped = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are turned.

    Args:
        width: features per token; a multiple of ``heads``.
        heads: attention heads.
        inner_norm: layer-normalize the joined heads before the last projection.
        dropout: on the attention weights.
        eps: of the norm.
    """

    def __init__(self, width: int, heads: int, *, inner_norm: bool, dropout: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v = Linear(width, width), Linear(width, width, bias=False), Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps) if inner_norm else nn.Identity()
        self.proj = Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b s d"], turn: Turn, mask: Bool[Tensor, "b 1 1 s"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """Attend to every key that ``mask`` allows. Where there are fewer angles than tokens, the first tokens stand
        for no place and are not turned."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        free = x.shape[1] - turn[0].shape[2]
        q, k = (torch.cat([part[:, :, :free], rotate(part[:, :, free:], turn)], 2) for part in (q, k))
        out = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return self.proj(self.norm(out.transpose(1, 2).flatten(2)))


class GatedMlp(nn.Module):
    """``out(norm(silu(gate(x)) * value(x)))``: SwiGLU with a norm inside."""

    def __init__(self, width: int, hidden: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.gate, self.value = Linear(width, hidden), Linear(width, hidden)
        self.norm, self.out = nn.LayerNorm(hidden, eps=eps), Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """Each token on its own."""
        return self.out(self.norm(F.silu(self.gate(x)) * self.value(x)))


class RotaryBlock(nn.Module):
    """Pre-norm block: ``x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x))``.

    Args:
        width: features per token.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width, truncated.
        inner_norm: normalize inside the attention.
        layer_scale: initial value of the learned factors, or None for none.
        drop_path: probability of stochastic depth.
        dropout: on the attention weights.
        eps: of the layer norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 8 / 3,
        inner_norm: bool = True,
        layer_scale: float | None = 0.1,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = RotaryAttention(width, heads, inner_norm=inner_norm, dropout=dropout, eps=eps)
        self.mlp = GatedMlp(width, int(width * mlp_ratio), eps=eps)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "b s d"], turn: Turn, mask: Bool[Tensor, "b 1 1 s"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """One block."""
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), turn, mask)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class RotaryStack(nn.ModuleList):
    """Blocks one after the other, optionally recomputed in the backward pass, optionally tapped.

    Weights start as in EVA: normal with deviation 0.02 cut at 2, biases at zero, the last map of each branch of block
    i (from 1) divided by the square root of 2i.

    Args:
        depth: number of blocks.
        width: features per token.
        heads: attention heads.
        drop_path: probability at the last block; it grows linearly from zero.
        options: further arguments of :class:`RotaryBlock`.
    """

    def __init__(self, depth: int, width: int, heads: int, *, drop_path: float = 0.0, **options: object) -> None:
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        super().__init__(RotaryBlock(width, heads, drop_path=rate, **options) for rate in rates)  # type: ignore[arg-type]
        self.recompute = False
        for i, block in enumerate(self):
            for name, part in block.named_modules():
                if isinstance(part, nn.Linear):
                    nn.init.trunc_normal_(part.weight, std=0.02)
                    if isinstance(part.bias, Tensor):
                        nn.init.zeros_(part.bias)
                    if name in ("attn.proj", "mlp.out"):
                        with torch.no_grad():
                            part.weight.div_(math.sqrt(2 * (i + 1)))

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        turn: Turn,
        mask: Bool[Tensor, "b 1 1 s"] | None = None,
        *,
        tap: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "b s d"], dict[int, Tensor]]:
        """The output, and the outputs of the blocks named in ``tap`` (from 0)."""
        taps = {}
        for i, block in enumerate(self):
            if self.recompute and self.training:
                x = checkpoint(block, x, turn, mask, use_reentrant=False)
            else:
                x = block(x, turn, mask)
            if i in tap:
                taps[i] = x
        return x, taps
