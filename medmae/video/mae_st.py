"""MAE-ST: MAE on space-time tokens, hidden at random anywhere in the clip, nine of ten.

It assumes as little about time as MAE does about space: no tubes, no frames, only a higher mask ratio. It differs from
MAE in learned positions that are a sum of one table over time and one over space, in a decoder with a [CLS] of its own,
and in a target that leaves out every second frame: a token of two frames predicts one.
"""

from __future__ import annotations

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, random, ratio
from medmae.core.target import Content, Normalized
from medmae.nets.decoders import JointDecoder
from medmae.nets.embed import SharedEmbed
from medmae.nets.positions import Learned
from medmae.nets.vit import ViTEncoder, xavier
from medmae.video.parts import TEST_SCALE, SomeFrames

CARD = Card(
    title="Masked Autoencoders As Spatiotemporal Learners",
    paper="arXiv:2205.09113",
    year=2022,
    reference="facebookresearch/mae_st @ c5dec1b",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="video",
    parent="mae",
    changed=(
        "tokens of two frames, hidden at random over space and time at 0.9",
        "learned positions: time plus space",
        "the decoder has a [CLS] of its own",
        "every second frame is predicted",
    ),
    status="adapted",
    departures=(
        "No position is learned for [CLS], in the encoder or in the decoder: it would be one vector added to another.",
        "Frames to predict are chosen in whole numbers where the reference cuts floating-point numbers; both give "
        "0 2 4 6 8 10 12 15 of 16.",
        "Linear maps start from Xavier-uniform weights, learned vectors from a truncated normal of 0.02.",
        "Drawing several clips of one decoded video belongs to the recipe of training and not to the method.",
    ),
    citation="Feichtenhofer, Fan, Li, He. Masked Autoencoders As Spatiotemporal Learners. NeurIPS 2022.",
)

SCALES = {
    "test": TEST_SCALE,
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_heads": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 256, "decoder_heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}  # fmt: skip


def mae_st(
    *,
    size: tuple[int, ...] = (16, 224, 224),
    patch: tuple[int, ...] = (2, 16, 16),
    channels: int = 3,
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    decoder_width: int = 512,
    decoder_depth: int = 4,
    decoder_heads: int = 16,
    mlp_ratio: float = 4.0,
    eps: float = 1e-6,
    cls: bool = True,
    separable: bool = True,
    mask_ratio: float = 0.9,
    target_stride: int = 2,
    normalize_target: bool = True,
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``video``, Float[b channels time height width].
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        cls: a [CLS] in the encoder, and another in the decoder.
        separable: positions are a sum of a table over time and one over space, in place of one table over both.
        mask_ratio: share of hidden tokens, anywhere in space and time, in [0, 1).
        target_stride: predict one frame of so many; must divide the frames of a token.
    """
    grid, prefix = Grid(tuple(size), tuple(patch), channels), int(cls)
    groups = ((0,), tuple(range(1, len(grid.size)))) if separable else None
    method = Autoencoder(
        tokenizer=ModalityGrid(("video",), grid),
        sampler=MaskSampler(random(), ratio(mask_ratio)),
        encoder=ViTEncoder(
            embed=SharedEmbed(grid.content, width), positions=Learned(grid.shape, width, groups=groups),
            width=width, depth=depth, heads=heads, prefix=prefix, mlp_ratio=mlp_ratio, eps=eps,
        ),
        decoder=JointDecoder(
            encoder_width=width, content=grid.content // target_stride,
            positions=Learned(grid.shape, decoder_width, groups=groups), prefix=prefix,
            width=decoder_width, depth=decoder_depth, heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps,
        ),
        target=SomeFrames(grid, target_stride, Normalized() if normalize_target else Content()),
        distance=mse,
    )  # fmt: skip
    xavier(method)
    return method
