"""Dense MAE on nnU-Net's residual encoder U-Net: fill cubes with zeros, let the whole U-Net predict their voxels.

Unlike a token method it pays for hidden voxels, and unlike SparK it hides them by a value only. It is the stronger
teacher of the two in published comparisons, and all of it, decoder included, is a network that nnU-Net fine-tunes.
"""

from __future__ import annotations

from typing import Literal

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, ratio_per_modality, tube
from medmae.core.target import Content, Normalized
from medmae.nets.build import resenc
from medmae.nets.resenc import unet
from medmae.volume.parts import KERNELS, RESENC_SCALES, STRIDES

CARD = Card(
    title="Revisiting MAE Pre-training for 3D Medical Image Segmentation (dense MAE on ResEnc U-Net, OpenMind)",
    paper="arXiv:2410.23132; arXiv:2412.17041",
    year=2024,
    reference="MIC-DKFZ/nnssl @ 7044864 (BaseMAETrainer)",
    license="Apache-2.0 (reference code), CC BY 4.0 (OpenMind data)",
    kind="volume",
    parent="mae",
    changed=(
        "a U-Net over zero-filled cubes",
        "target in intensity units",
        "a cube is hidden in all sequences",
        "voxels outside the foreground are not compared",
    ),
    status="adapted",
    departures=(
        "Any number of sequences, known by name; the reference takes one channel.",
        "Padding, defaced regions and missing sequences are not compared; the reference compares padding too. "
        "`preset=published` compares everything that a patient has.",
        "The mask ratio may be drawn per sample from a range; the reference draws one per step.",
        "AdamW with the toolkit's schedule; the reference uses SGD with momentum 0.99 and a polynomial schedule.",
    ),
    citation="Wald, Ulrich, Lukyanenko, et al. Revisiting MAE Pre-training for 3D Medical Image Segmentation. "
    "CVPR 2025.",
)

SCALES = RESENC_SCALES

PRESETS = {
    "medmae": {},
    "published": {"size": (160, 160, 160), "foreground_loss": False},
}  # fmt: skip


def resenc_mae(
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
    mask_ratio: float | tuple[float, float] = 0.75,
    complete: float = 0.0,
    foreground_loss: bool = True,
    normalize_target: bool = False,
    variance_floor: float = 0.1,
) -> Autoencoder:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        block: voxels per axis of the cubes that are hidden.
        mask_ratio: share of hidden cubes, in [0, 1), or a range from which every sample draws.
        foreground_loss: compare voxels of the foreground only.
    """
    grid, names = Grid(tuple(size), tuple(block)), tuple(sequences)
    architecture = resenc(
        features=features, blocks=blocks, kernels=kernels, strides=strides, decoder_convs=decoder_convs, plain=plain
    )
    encoder, decoder = unet(names=names, grid=grid, architecture=architecture, stem=stem)
    return Autoencoder(
        tokenizer=ModalityGrid(names, grid),
        sampler=MaskSampler(
            tube(grid.length), ratio_per_modality(mask_ratio, modalities=len(names), complete=complete)
        ),
        encoder=encoder,
        decoder=decoder,
        target=Normalized(floor=variance_floor) if normalize_target else Content(),
        distance=mse,
        foreground_values=foreground_loss,
    )
