"""Bird-MAE: Audio-MAE with everything around the network made for bird calls.

Its lesson is that the recipe has to follow the domain: a higher rate, shorter clips, filled up with their own quietest
value, mixtures of sounds in pre-training, a lower mask ratio, and MAE's plain decoder in place of windows. Frozen
features are read by prototypes (:mod:`medmae.nets.prototype`), which find single calls where an average drowns them.
"""

from __future__ import annotations

from typing import Literal

from medmae.audio.parts import POSITIONS_DEPARTURE, TEST_SCALE, audio_step
from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.sound import Frontend

CARD = Card(
    title="Can Masked Autoencoders Also Listen to Birds?",
    paper="arXiv:2504.12880",
    year=2025,
    reference="DBD-research-group/Bird-MAE @ a514ef5",
    license="none stated (reference code)",
    kind="audio",
    parent="audio_mae",
    changed=(
        "5 s at 32 kHz, filled up with the minimum",
        "75 % hidden",
        "global decoder",
        "waveforms mixed in pre-training (medmae.core.sound.mix_waves)",
        "prototypes as the probe",
    ),
    status="faithful",
    departures=(
        POSITIONS_DEPARTURE,
        "Short clips are filled up with their own minimum, not with that of the batch, so that a clip is the same in "
        "whatever batch it is.",
        "Mixing of waveforms comes before the spectrogram, so it is part of loading data and not of the method.",
    ),
    citation="Rauch, Heinrich, Moummad, Joly, Sick, Scholz. Can Masked Autoencoders Also Listen to Birds? 2025.",
)

SCALES = {
    "test": {**TEST_SCALE, "decoder_depth": 1},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}  # fmt: skip

PRESETS = {"medmae": {}, "published": {"compat": True}}


def bird_mae(
    *,
    size: tuple[int, int] = (512, 128),
    patch: tuple[int, int] = (16, 16),
    rate: int = 32000,
    mean: float = -7.2,
    std: float = 4.43,
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    mlp_ratio: float = 4.0,
    eps: float = 1e-6,
    mask_ratio: float = 0.75,
    normalize_target: bool = True,
    fill: Literal["zero", "minimum"] = "minimum",
    compat: bool = False,
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``spectrogram``, Float[b 1 frames bins], as ``frontend`` makes it.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        fill: what short clips are filled up with, as log-mel values: zero, or their own minimum.
    """
    return audio_step(
        tuple(size), tuple(patch), Frontend(rate, size[0], size[1], mean, std, fill=fill),
        decoder="global", width=width, depth=depth, heads=heads, decoder_width=decoder_width,
        decoder_depth=decoder_depth, decoder_heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps, mask_ratio=mask_ratio,
        normalize_target=normalize_target, compat=compat,
    )  # fmt: skip
