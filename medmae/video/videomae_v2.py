"""VideoMAE V2: dual masking. The encoder sees tubes as in VideoMAE; the decoder is asked for half of what is hidden.

With very large encoders, decoding every hidden token takes a good part of the time and memory, though neighboring
tokens teach much the same. A pattern of cells that runs through the clip picks every second token, so that every place
and every time stays represented. The rest is VideoMAE: asked for all, it is the same function of the same weights.
"""

from __future__ import annotations

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.sampling import running_cells
from medmae.video.parts import VIDEOMAE_DEPARTURES, VIDEOMAE_SCALES, videomae_step

CARD = Card(
    title="VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking",
    paper="arXiv:2303.16727",
    year=2023,
    reference="OpenGVLab/VideoMAEv2 @ 29eab1e",
    license="MIT (reference code)",
    kind="video",
    parent="videomae",
    changed=("the decoder is asked for running cells, half of the tokens", "larger encoders"),
    status="faithful",
    departures=(
        "Default preset only: the decoder gets no mask tokens at visible places, which the reference decodes and does "
        "not score (80 of 784).",
        "Exactly the asked share of the hidden tokens is decoded. Where the steps in time are no multiple of four, or "
        "the tokens of a row or column are odd in number, the cells give a little more or less, and the difference is "
        "drawn at random; the reference refuses odd numbers.",
        *VIDEOMAE_DEPARTURES,
        "Supervised training after pre-training, and several views of one decoded clip, belong to the recipe of "
        "training and not to the method.",
    ),
    citation="Wang, Huang, Zhao, Tong, He, Wang, Wang, Qiao. VideoMAE V2: Scaling Video Masked Autoencoders with Dual "
    "Masking. CVPR 2023.",
)

SCALES = {
    **VIDEOMAE_SCALES,
    "huge": {"width": 1280, "depth": 32, "heads": 16, "decoder_width": 512, "decoder_heads": 8},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "decoder_width": 512, "decoder_heads": 8,
              "patch": (2, 14, 14), "mlp_ratio": 48 / 11},
}  # fmt: skip

PRESETS = {"medmae": {}, "published": {"decode_visible": True}}


def videomae_v2(
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
    decode: float = 0.5,
    decode_visible: bool = False,
    normalize_target: bool = True,
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``video``, Float[b channels time height width].
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        mask_ratio: share of hidden places, the same in every frame, in [0, 1).
        decode: share of the hidden tokens that the decoder is asked for, in (0, 1]; 1 is VideoMAE.
        decode_visible: decode the same share of the visible tokens too, without scoring them.
        normalize_target: predict pixels normalized per tubelet and channel.
    """
    return videomae_step(
        tuple(size), tuple(patch), channels, width=width, depth=depth, heads=heads, decoder_width=decoder_width,
        decoder_depth=decoder_depth, decoder_heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps, mask_ratio=mask_ratio,
        normalize_target=normalize_target, ask=decode, ask_by=running_cells(), ask_visible=decode_visible,
    )  # fmt: skip
