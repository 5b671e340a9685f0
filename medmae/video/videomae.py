"""VideoMAE: hide the same places in every frame of a clip, nine of ten, and predict them from the rest.

Neighboring frames nearly repeat each other, so a token that is hidden in one frame only can be copied from the next.
Tubes take that way out, and allow a mask ratio far above that of images. It differs from MAE in the tubes, in tokens
that span two frames, in having no [CLS], in a position code that counts all tokens in one row, in a decoder that is
given visible tokens and queries and never the full set, and in a target normalized per channel.
"""

from __future__ import annotations

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.video.parts import VIDEOMAE_DEPARTURES, VIDEOMAE_SCALES, videomae_step

CARD = Card(
    title="VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training",
    paper="arXiv:2203.12602",
    year=2022,
    reference="MCG-NJU/VideoMAE @ 14ef8d8",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="video",
    parent="mae",
    changed=(
        "tubelets of two frames",
        "tube masks at 0.9",
        "no [CLS]; positions counted in one row",
        "decoder on visible tokens and queries only",
        "target normalized per channel",
    ),
    status="faithful",
    departures=VIDEOMAE_DEPARTURES,
    citation="Tong, Song, Wang, Wang. VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised "
    "Video Pre-Training. NeurIPS 2022.",
)

SCALES = VIDEOMAE_SCALES


def videomae(
    *,
    size: tuple[int, ...] = (16, 224, 224),
    patch: tuple[int, ...] = (2, 16, 16),
    channels: int = 3,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    decoder_width: int = 384,
    decoder_depth: int = 4,
    decoder_heads: int = 6,
    mlp_ratio: float = 4.0,
    eps: float = 1e-6,
    mask_ratio: float = 0.9,
    normalize_target: bool = True,
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``video``, Float[b channels time height width].
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        mask_ratio: share of hidden places, the same in every frame, in [0, 1).
        normalize_target: predict pixels normalized per tubelet and channel.
    """
    return videomae_step(
        tuple(size), tuple(patch), channels, width=width, depth=depth, heads=heads, decoder_width=decoder_width,
        decoder_depth=decoder_depth, decoder_heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps, mask_ratio=mask_ratio,
        normalize_target=normalize_target,
    )  # fmt: skip
