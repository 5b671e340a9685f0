"""SparK in three dimensions: the encoder of a U-Net computes on visible cubes alone, the decoder fills in the rest.

It differs from the dense MAE on the same network in what hidden cubes are to the encoder: not zeros to convolve and to
average over, but nothing. Sparse convolutions are usually emulated by whole maps times a mask, which saves no work;
here the rows of visible voxels are all there is (``execution="block"``), so an encoder that sees a quarter costs about
a quarter. That leaves the decoder as the larger part, and with ``decode`` below 1 it too works only where something is
visible or asked for.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import Budget, Counts, MaskSampler, ratio_per_modality, tube
from medmae.core.target import Content, Normalized
from medmae.core.tokens import TokenLayout
from medmae.nets.build import resenc
from medmae.nets.sparse.unet import sparse_unet
from medmae.volume.parts import KERNELS, RESENC_SCALES, STRIDES

CARD = Card(
    title="Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling (SparK), in 3-D as S3D",
    paper="arXiv:2301.03580; arXiv:2410.23132",
    year=2023,
    reference="keyu-tian/SparK @ a63e386; MIC-DKFZ/nnssl @ 7044864 (S3D)",
    license="MIT (SparK), Apache-2.0 (nnssl)",
    kind="volume",
    parent="resenc_mae",
    changed=(
        "hidden cubes enter neither convolutions nor statistics of the encoder",
        "a learned vector per stage fills them in front of the decoder",
        "a convolution per stage spreads visible features into it",
    ),
    status="adapted",
    departures=(
        "Block-sparse execution; the references multiply whole maps by the mask. Both are one function here.",
        "Hidden voxels are zero before the first convolution; the 3-D reference lets it read a rim of them.",
        "Below the size of a cube a place is visible when any cube under it is; to the 3-D reference all are.",
        "Every sequence is compared; the 3-D reference compares the first channel only.",
        "Instance norm and a U-Net decoder as in the 3-D reference; SparK has batch norm and a lighter decoder. "
        "`densify='norm_conv'` with `normalize_target` is closest to it.",
        "`decode` below 1 asks for a share of the hidden cubes and decodes no others; no reference has it.",
        "The mask ratio may be drawn per sample from a range; the 3-D reference draws one per step.",
        "AdamW with the toolkit's schedule; the references use LAMB, and SGD with momentum 0.99.",
    ),
    citation="Tian, Jiang, Diao, et al. Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked "
    "Modeling. ICLR 2023. Wald, Ulrich, Lukyanenko, et al. Revisiting MAE Pre-training for 3D Medical Image "
    "Segmentation. CVPR 2025.",
)

SCALES = RESENC_SCALES

PRESETS = {
    "medmae": {},
    "published": {"size": (160, 160, 160), "mask_ratio": (0.6, 0.9), "foreground_loss": False},
}  # fmt: skip


def spark3d(
    *,
    sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f"),
    size: tuple[int, ...] = (128, 128, 128),
    block: tuple[int, ...] = (16, 16, 16),
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320),
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6),
    kernels: tuple[tuple[int, ...], ...] = KERNELS,
    strides: tuple[tuple[int, ...], ...] = STRIDES,
    decoder_convs: tuple[int, ...] = (1, 1, 1, 1, 1),
    plain: bool = False,
    stem: Literal["stacked", "per_modality"] = "stacked",
    execution: Literal["block", "masked"] = "block",
    densify: Literal["conv", "norm_conv", "token"] = "conv",
    decode: float = 1.0,
    mask_ratio: float | tuple[float, float] = 0.75,
    complete: float = 0.0,
    foreground_loss: bool = True,
    normalize_target: bool = False,
    variance_floor: float = 0.1,
) -> Autoencoder:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        block: voxels per axis of the cubes that are hidden; they nest with the maps of every stage.
        execution: rows of visible voxels, or whole maps times the mask; the same numbers.
        densify: what fills hidden places in front of the decoder: a learned vector, then a convolution, or an instance
            norm before both.
        decode: share of the hidden cubes that is asked for, in (0, 1]. Below 1 the decoder knows these and the
            visible ones only; 1 is the published method.
        mask_ratio: share of hidden cubes, in [0, 1), or a range from which every sample draws.
        foreground_loss: compare voxels of the foreground only.
    """
    if not 0 < decode <= 1:
        raise ValueError(f"decode must be in (0, 1], not {decode}")
    if decode < 1 and complete > 0:
        raise ValueError("with decode below 1 cubes are chosen for all sequences at once, so complete must be 0")
    grid, names = Grid(tuple(size), tuple(block)), tuple(sequences)
    architecture = resenc(
        features=features, blocks=blocks, kernels=kernels, strides=strides, decoder_convs=decoder_convs, plain=plain
    )
    encoder, decoder = sparse_unet(
        names=names,
        grid=grid,
        architecture=architecture,
        stem=stem,
        execution=execution,
        densify=densify,
        everywhere=decode == 1,
    )
    budget = ratio_per_modality(mask_ratio, modalities=len(names), complete=complete)
    return Autoencoder(
        tokenizer=ModalityGrid(names, grid),
        sampler=MaskSampler(tube(grid.length), budget if decode == 1 else cube_by_cube(budget), ask=decode),
        encoder=encoder,
        decoder=decoder,
        target=Normalized(floor=variance_floor) if normalize_target else Content(),
        distance=mse,
        foreground_values=foreground_loss,
    )


def cube_by_cube(budget: Budget) -> Budget:
    """The same number of tokens, in one group.

    Groups are filled one after the other, in an order of their own; in one group the order of the cubes is all that
    counts, so that a share of them is asked for in all sequences, not a share of every sequence in other places.
    """

    def joined(layout: TokenLayout, key: Int[Tensor, " b"]) -> Counts:
        counts = budget(layout, key)
        return Counts(counts.total[:, None], counts.total, counts.fixed)

    return joined
