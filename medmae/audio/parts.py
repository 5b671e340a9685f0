"""What the methods of this folder share: the networks of Audio-MAE, its positions, and masks of whole bands."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.autoencoder import Autoencoder
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.random import uniform
from medmae.core.sampling import Budget, Counts, Key, MaskSampler, Priority, random, ratio
from medmae.core.sound import Frontend
from medmae.core.target import Content, Normalized
from medmae.core.tokens import TokenLayout, Tokens
from medmae.nets.decoders import JointDecoder
from medmae.nets.embed import SharedEmbed
from medmae.nets.positions import SinCos, row_major, sincos
from medmae.nets.vit import ViTEncoder, xavier
from medmae.nets.window import WindowStack

TEST_SCALE: dict[str, Any] = {
    "width": 48, "depth": 2, "heads": 4, "decoder_width": 48, "decoder_depth": 2, "decoder_heads": 4,
    "size": (64, 32), "patch": (8, 8), "mask_ratio": 0.75,
}  # fmt: skip

POSITIONS_DEPARTURE = (
    "Positions follow the grid of tokens. Released weights were trained with a table made for the transposed grid; "
    "compat=True gives that table."
)

ROWS, COLUMNS = 51, 52  # streams of randomness of :func:`bands`


class Turned(nn.Module):
    """Sine-cosine positions of released weights: a table made for the transposed grid, read by the number of a token.

    Every position is still another one, but neighbors in time are no neighbors in the table.

    Args:
        shape: cells per axis, time first.
        width: length of the code.
    """

    def __init__(self, shape: tuple[int, int], width: int) -> None:
        super().__init__()
        self.shape, self.width = shape, width

    def forward(self, coords: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n d"]:
        """The code that the reference gives to every token."""
        number, long = row_major(coords, self.shape), self.shape[0]
        return sincos(torch.stack([number // long, number % long], -1).float(), self.width)


def bands(shape: tuple[int, int], ratios: tuple[float, float]) -> tuple[Priority, Budget]:
    """Hide whole time steps and whole frequency bands; what is in neither is visible (Audio-MAE, section 3).

    Args:
        shape: tokens along time and along frequency.
        ratios: share of hidden time steps, and of hidden bands, each in [0, 1).

    Raises:
        ValueError: a ratio outside of that, or so large that nothing is left.
    """
    kept = tuple(int(n * (1 - ratio)) for n, ratio in zip(shape, ratios, strict=True))
    if any(not 0 <= ratio < 1 for ratio in ratios) or 0 in kept:
        raise ValueError(f"band ratios {ratios} must be in [0, 1) and leave something of {shape} tokens")
    total = math.prod(shape)

    def priority(tokens: Tokens, key: Key) -> Float[Tensor, "b n"]:
        ranks = [
            uniform(key, n, stream=stream).argsort(dim=1, stable=True).argsort(1) >= k
            for n, k, stream in zip(shape, kept, (ROWS, COLUMNS), strict=True)
        ]
        hidden = (ranks[0][:, :, None] | ranks[1][:, None]).flatten(1)
        return hidden + uniform(key, total, stream=ROWS * COLUMNS)

    def budget(layout: TokenLayout, key: Key) -> Counts:
        visible = layout.exists.sum(1) // total * math.prod(kept)
        return Counts(visible[:, None], visible, None if layout.ragged else math.prod(kept))

    return priority, budget


def audio_step(
    size: tuple[int, ...],
    patch: tuple[int, ...],
    frontend: Frontend,
    *,
    decoder: Literal["window", "global"],
    window: tuple[int, int] = (4, 4),
    shift: tuple[int, int] = (2, 0),
    width: int,
    depth: int,
    heads: int,
    decoder_width: int,
    decoder_depth: int,
    decoder_heads: int,
    mlp_ratio: float,
    eps: float,
    mask_ratio: float,
    band_ratios: tuple[float, float] | None = None,
    normalize_target: bool,
    compat: bool,
) -> Autoencoder:
    """MAE on spectrograms; the arguments are those of :func:`audio_mae.audio_mae`.

    The method carries its ``frontend``, so that whoever feeds it knows how it wants its sound.
    """
    grid = Grid(size, patch)
    shape = (grid.shape[0], grid.shape[1])
    blocks = None
    if decoder == "window":
        blocks = WindowStack(
            decoder_depth, decoder_width, decoder_heads, shape=shape, window=window, shift=shift,
            mlp_ratio=mlp_ratio, eps=eps,
        )  # fmt: skip
    sampler = (random(), ratio(mask_ratio)) if band_ratios is None else bands(shape, band_ratios)
    method = Autoencoder(
        tokenizer=ModalityGrid(("spectrogram",), grid),
        sampler=MaskSampler(*sampler),
        encoder=ViTEncoder(
            embed=SharedEmbed(grid.content, width),
            positions=Turned(shape, width) if compat else SinCos(width),
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        decoder=JointDecoder(
            encoder_width=width,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            content=grid.content,
            positions=Turned(shape, decoder_width) if compat else SinCos(decoder_width),
            blocks=blocks,
            prefix=None if blocks is None else 0,
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        target=Normalized() if normalize_target else Content(),
        distance=mse,
    )
    xavier(method)
    method.frontend = frontend  # type: ignore[assignment]
    return method
