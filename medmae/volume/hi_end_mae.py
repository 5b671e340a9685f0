"""Hi-End-MAE: the decoder asks the encoder at several depths, so that its middle layers learn to represent too.

It differs from MAE in three dimensions and in its decoder: after two blocks of self-attention, each further block looks
at one depth of the encoder by cross-attention, from deep to shallow. Several sequences are handled as in BM-MAE, each
with tokens of its own; with one, the published CT setting, nothing but the published method is left.
"""

from __future__ import annotations

from typing import Literal

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, random, ratio, ratio_per_modality, tube
from medmae.core.target import Content, Normalized
from medmae.nets.embed import ModalityEmbed
from medmae.nets.hierarchical import HierarchicalDecoder
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder, xavier

CARD = Card(
    title="Hi-End-MAE: Hierarchical encoder-driven masked autoencoders are stronger vision learners for medical image "
    "segmentation",
    paper="arXiv:2502.08347",
    year=2025,
    reference="FengheTan9/Hi-End-MAE @ b0df9c6",
    license="Apache-2.0 (reference code and weights, as its README says)",
    kind="volume",
    parent="mae",
    changed=("three dimensions", "decoder with cross-attention to several depths of the encoder"),
    status="adapted",
    departures=(
        "No published checkpoint or package was compared: the formulas were read and written anew, and tests check "
        "them against a second implementation of our own.",
        "Any number of sequences: each has its own patch embedding, and, where there are several, a learned vector in "
        "encoder and decoder, and tokens that are hidden at random over all sequences or together; the reference takes "
        "one CT channel.",
        "The patch embedding starts without bias; the reference leaves that of its convolution where torch puts it.",
        "`foreground_loss` and `variance_floor` are ours; by default all masked patches count and the variance has no "
        "floor, as published.",
        "Positions are computed from coordinates, so that any window size runs.",
    ),
    citation="Tang, Yao, Ma, et al. Hi-End-MAE: Hierarchical encoder-driven masked autoencoders are stronger vision "
    "learners for medical image segmentation. Medical Image Analysis, 2025.",
)

SCALES = {
    "test": {"width": 24, "depth": 4, "heads": 4, "levels": (0, 1, 2), "decoder_width": 24, "decoder_depth": 1,
             "decoder_heads": 4, "size": (24, 24, 24), "patch": (8, 8, 8)},
    "tiny": {"width": 192, "depth": 12, "heads": 4, "decoder_width": 96, "decoder_heads": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 192, "decoder_heads": 6},
    "base": {"width": 768, "heads": 12, "decoder_width": 384, "decoder_heads": 12, "patch": (16, 16, 16)},
    "large": {},
}  # fmt: skip


def hi_end_mae(
    *,
    sequences: tuple[str, ...] = ("ct",),
    size: tuple[int, ...] = (96, 96, 96),
    patch: tuple[int, ...] = (12, 12, 12),
    width: int = 1536,
    depth: int = 12,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    levels: tuple[int, ...] = (3, 6, 9),
    decoder_width: int = 528,
    decoder_depth: int = 2,
    decoder_heads: int = 16,
    eps: float = 1e-6,
    mask_ratio: float = 0.75,
    masking: Literal["random", "tube"] = "random",
    foreground_loss: bool = False,
    normalize_target: bool = True,
    variance_floor: float = 0.0,
) -> Autoencoder:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        levels: blocks of the encoder that the decoder looks at, from 0, besides the final features.
        decoder_depth: blocks of self-attention before those that look at the encoder.
        masking: hide patches at random, or at the same places in all sequences.
    """
    grid, names = Grid(tuple(size), tuple(patch)), tuple(sequences)
    several = len(names) > 1
    if masking not in ("random", "tube"):
        raise ValueError(f"masking must be 'random' or 'tube', not {masking!r}")
    if masking == "tube":
        priority, budget = tube(grid.length), ratio_per_modality(mask_ratio, modalities=len(names))
    else:
        priority, budget = random(), ratio(mask_ratio)
    axes = tuple(range(len(grid.size)))
    method = Autoencoder(
        tokenizer=ModalityGrid(names, grid),
        sampler=MaskSampler(priority, budget, weigh=foreground_loss),
        encoder=ViTEncoder(
            embed=ModalityEmbed(names, grid.content, width, tag=several),
            positions=SinCos(width, order=axes),
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            eps=eps,
            always=tuple(levels),
        ),
        decoder=HierarchicalDecoder(
            encoder_width=width,
            levels=tuple(levels),
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            content=grid.content,
            positions=SinCos(decoder_width, order=axes),
            names=names if several else None,
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        target=Normalized(floor=variance_floor, biased=True) if normalize_target else Content(),
        distance=mse,
    )
    xavier(method)
    return method
