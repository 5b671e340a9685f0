"""FCMAE (ConvNeXt V2): a masked autoencoder for pure convolutional networks, with channels that have to compete.

It differs from MAE in the encoder, which is convolutional and treats hidden cells as a sparse network would, in cells
as large as the network's total stride, and in a decoder of a single block. Global response normalization came out of
it: masked pre-training left many channels of the first ConvNeXt dead.
"""

from __future__ import annotations

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, ratio_per_modality, tube
from medmae.core.target import Content, Normalized
from medmae.nets.convnext import ConvNeXtDecoder, ConvNeXtEncoder

CARD = Card(
    title="ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
    paper="arXiv:2301.00808",
    year=2023,
    reference="facebookresearch/ConvNeXt-V2 @ 2553895",
    license="MIT (reference code), CC BY-NC 4.0 (reference weights)",
    kind="image",
    parent="mae",
    changed=(
        "ConvNeXt V2 in place of a vision transformer",
        "cells of the total stride, 0.6 of them hidden",
        "decoder of one ConvNeXt V2 block",
    ),
    status="adapted",
    departures=(
        "Whole maps times the mask in place of sparse convolutions; both are one function.",
        "The response norm sums over the visible places of one sample; the sparse reference sums over those of the "
        "whole batch, so that its features depend on which other images are in it.",
        "Images and volumes, and any number of sequences, stacked as channels and hidden in the same cells.",
        "No stochastic depth in pre-training.",
    ),
    citation="Woo, Debnath, Hu, et al. ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders. "
    "CVPR 2023.",
)

SCALES = {
    "test": {"size": (32, 32), "widths": (24, 48), "depths": (1, 1), "kernel": 3, "decoder_width": 64},
    "atto": {"widths": (40, 80, 160, 320), "depths": (2, 2, 6, 2)},
    "femto": {"widths": (48, 96, 192, 384), "depths": (2, 2, 6, 2)},
    "pico": {"widths": (64, 128, 256, 512), "depths": (2, 2, 6, 2)},
    "nano": {"widths": (80, 160, 320, 640), "depths": (2, 2, 8, 2)},
    "tiny": {"widths": (96, 192, 384, 768), "depths": (3, 3, 9, 3)},
    "base": {},
    "large": {"widths": (192, 384, 768, 1536)},
    "huge": {"widths": (352, 704, 1408, 2816)},
}  # fmt: skip


def fcmae(
    *,
    sequences: tuple[str, ...] = ("image",),
    size: tuple[int, ...] = (224, 224),
    channels: int = 3,
    widths: tuple[int, ...] = (128, 256, 512, 1024),
    depths: tuple[int, ...] = (3, 3, 27, 3),
    stem: int = 4,
    kernel: int = 7,
    decoder_width: int = 512,
    decoder_depth: int = 1,
    eps: float = 1e-6,
    mask_ratio: float = 0.6,
    foreground_loss: bool = False,
    normalize_target: bool = True,
    variance_floor: float = 0.0,
) -> Autoencoder:
    """Build the method; it reads one batch entry per sequence, Float[b channels *size].
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        sequences: names of the batch entries; photographs have the one called ``image``.
        size: pixels or voxels per axis, two or three; multiples of the total stride ``stem * 2 ** (stages - 1)``.
        widths: channels of every stage, fine to coarse; each stage but the first halves the resolution.
        depths: blocks of every stage.
        stem: edge and stride of the first convolution.
        kernel: edge of the depth-wise convolutions, odd.
        decoder_width: channels of the decoder.
        mask_ratio: share of hidden cells, the same in all sequences, in [0, 1).
    """
    names, cell = tuple(sequences), stem * 2 ** (len(widths) - 1)
    grid = Grid(tuple(size), (cell,) * len(size), channels)
    budget = ratio_per_modality(mask_ratio, modalities=len(names))
    return Autoencoder(
        tokenizer=ModalityGrid(names, grid),
        sampler=MaskSampler(tube(grid.length), budget, weigh=foreground_loss),
        encoder=ConvNeXtEncoder(
            grid=grid, modalities=len(names), widths=widths, depths=depths, stem=stem, kernel=kernel, eps=eps,
        ),
        decoder=ConvNeXtDecoder(
            grid=grid, modalities=len(names), encoder_width=widths[-1],
            width=decoder_width, depth=decoder_depth, kernel=kernel, eps=eps,
        ),
        target=Normalized(floor=variance_floor) if normalize_target else Content(),
        distance=mse,
    )  # fmt: skip
