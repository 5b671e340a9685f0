"""Audio-MAE: MAE on log-mel spectrograms, with a decoder that looks at neighborhoods of time and frequency.

In an image an object may be anywhere; in a spectrogram the place of an energy is its pitch and its time, and what
predicts it is mostly near. So the decoder attends inside small windows, which shift along time in every second block.
It differs from MAE in that decoder, which gets no [CLS], in its input, and in a mask of whole time steps and bands as
an option.
"""

from __future__ import annotations

from typing import Literal

from medmae.audio.parts import POSITIONS_DEPARTURE, TEST_SCALE, audio_step
from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.sound import Frontend

CARD = Card(
    title="Masked Autoencoders that Listen",
    paper="arXiv:2207.06405",
    year=2022,
    reference="facebookresearch/AudioMAE @ bd60e29",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="audio",
    parent="mae",
    changed=(
        "log-mel spectrograms, 80 % hidden",
        "shifted-window decoder without [CLS]",
        "masks of bands as an option",
    ),
    status="faithful",
    departures=(
        POSITIONS_DEPARTURE,
        "The network that makes the bias of the windows has no dropout.",
        "Masking again in fine-tuning, spectrogram masking and mixup belong to the recipe of training.",
    ),
    citation="Huang, Xu, Li, Baevski, Auli, Galuba, Metze, Feichtenhofer. Masked Autoencoders that Listen. "
    "NeurIPS 2022.",
)

SCALES = {
    "test": TEST_SCALE,
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 256, "decoder_depth": 8, "decoder_heads": 8},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}  # fmt: skip

PRESETS = {"medmae": {}, "published": {"compat": True}, "global": {"decoder": "global", "decoder_depth": 8}}


def audio_mae(
    *,
    size: tuple[int, int] = (1024, 128),
    patch: tuple[int, int] = (16, 16),
    rate: int = 16000,
    mean: float = -4.2677393,
    std: float = 4.5689974,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    decoder: Literal["window", "global"] = "window",
    window: tuple[int, int] = (4, 4),
    shift: tuple[int, int] = (2, 0),
    decoder_width: int = 512,
    decoder_depth: int = 16,
    decoder_heads: int = 16,
    mlp_ratio: float = 4.0,
    eps: float = 1e-6,
    mask_ratio: float = 0.8,
    band_ratios: tuple[float, float] | None = None,
    normalize_target: bool = True,
    compat: bool = False,
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``spectrogram``, Float[b 1 frames bins], as ``frontend`` makes it.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        mean: mean of the log-mel values of the data, by default AudioSet's.
        decoder: attention of the decoder, in shifted windows or global as in MAE (with [CLS]; published with 8 blocks).
        window: tokens of a window along time and frequency.
        shift: shift of the windows in every second block, along time and frequency.
        mask_ratio: share of hidden tokens, anywhere in time and frequency, in [0, 1).
        band_ratios: shares of whole time steps and whole bands to hide, in place of ``mask_ratio``.
    """
    return audio_step(
        tuple(size), tuple(patch), Frontend(rate, size[0], size[1], mean, std),
        decoder=decoder, window=window, shift=shift, width=width, depth=depth, heads=heads, decoder_width=decoder_width,
        decoder_depth=decoder_depth, decoder_heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps, mask_ratio=mask_ratio,
        band_ratios=band_ratios, normalize_target=normalize_target, compat=compat,
    )  # fmt: skip
