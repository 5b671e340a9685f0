"""Masked autoencoder of Primus: cubes of all sequences as tokens, EVA-02 blocks with rotary positions.

It differs from MAE in three dimensions, in blocks (rotary positions, gated MLPs, norms inside), in a decoder of the
encoder's width that ends in transposed convolutions, and in its target, which is intensities. All sequences of a cube
are one token and are hidden together. It is the vision transformer of the nnssl / OpenMind family, whose checkpoints
fit it.
"""

from __future__ import annotations

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, ratio_per_modality, tube
from medmae.core.target import Content, Normalized
from medmae.nets.primus import PrimusDecoder, PrimusEncoder

CARD = Card(
    title="Primus: Enforcing Attention Usage for 3D Medical Image Segmentation (masked autoencoder of OpenMind)",
    paper="arXiv:2503.01835; arXiv:2412.17041",
    year=2025,
    reference="MIC-DKFZ/nnssl @ 7044864 (BaseEvaMAETrainer), dynamic-network-architectures 0.4.4 (Primus)",
    license="Apache-2.0 (reference code), CC BY 4.0 (OpenMind weights), CC BY-SA 4.0 (nnFoundation weights)",
    kind="volume",
    parent="mae",
    changed=(
        "EVA-02 blocks with rotary and learned positions",
        "one token per cube of all sequences",
        "transposed convolutions to voxels",
        "target in intensity units",
    ),
    status="faithful",
    departures=(
        "Any number of sequences, known by name; the reference takes one channel. A sequence that is missing adds "
        "nothing to its cubes.",
        "Positions are computed from coordinates and the learned ones interpolated, so any window size runs; they are "
        "equal to the reference's at the size the table is made for.",
        "The reference flattens cubes with the first two axes exchanged, so that its learned and rotary positions are "
        "transposed between pre-training and Primus; here `axes` says which order the weights have.",
        "Only cubes that are asked for are raised to voxels, which changes no result.",
        "Default preset only: voxels outside the foreground are not compared; the reference compares padding too.",
        "The toolkit's schedule; the reference warms up for 50 epochs and decays polynomially.",
    ),
    citation="Wald, Roy, Isensee, et al. Primus: Enforcing Attention Usage for 3D Medical Image Segmentation. 2025.",
)

SCALES = {
    "test": {"width": 48, "depth": 2, "heads": 4, "decoder_depth": 1, "decoder_heads": 4, "drop_path": 0.0,
             "size": (32, 32, 32), "patch": (8, 8, 8), "table": (4, 4, 4)},
    "tiny": {"width": 192, "depth": 6, "heads": 4, "decoder_heads": 4, "drop_path": 0.1},
    "small": {"width": 396, "depth": 12, "heads": 6, "decoder_heads": 6},
    "base": {"width": 792, "depth": 12, "heads": 12},
    "medium": {},
    "large": {"width": 1056, "depth": 24, "heads": 16, "decoder_heads": 16},
}  # fmt: skip

PRESETS = {
    "medmae": {},
    "published": {"size": (160, 160, 160), "table": (20, 20, 20), "foreground_loss": False},
}  # fmt: skip


def eva_mae(
    *,
    sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f"),
    size: tuple[int, ...] = (160, 160, 160),
    patch: tuple[int, ...] = (8, 8, 8),
    width: int = 864,
    depth: int = 16,
    heads: int = 12,
    mlp_ratio: float = 8 / 3,
    table: tuple[int, ...] = (20, 20, 20),
    axes: tuple[int, ...] = (0, 1, 2),
    registers: int = 0,
    inner_norm: bool = True,
    layer_scale: float | None = 0.1,
    drop_path: float = 0.2,
    decoder_depth: int = 2,
    decoder_heads: int = 12,
    mask_ratio: float | tuple[float, float] = 0.75,
    complete: float = 0.0,
    foreground_loss: bool = True,
    normalize_target: bool = False,
    variance_floor: float = 0.1,
) -> Autoencoder:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        patch: voxels per axis of a cube, three axes.
        width: features per cube, of encoder and decoder; a head has a multiple of 6 of them.
        mlp_ratio: hidden width of the gated MLPs over the width.
        table: cubes per axis of the learned positions, stretched over windows of another size; empty for none.
        axes: order in which the axes of space are coded; (1, 0, 2) for weights that nnssl's EvaMAE trained.
        registers: tokens that stand for no place.
        inner_norm: normalize inside the attention.
        layer_scale: initial factor of every branch, or null for none.
        drop_path: stochastic depth at the last block of encoder and decoder.
        mask_ratio: share of hidden cubes, in [0, 1), or a range from which every sample draws.
        foreground_loss: compare voxels of the foreground only.
    """
    grid, names = Grid(tuple(size), tuple(patch)), tuple(sequences)
    shared = {
        "names": names,
        "width": width,
        "table": tuple(table),
        "axes": tuple(axes),
        "mlp_ratio": mlp_ratio,
        "inner_norm": inner_norm,
        "layer_scale": layer_scale,
        "drop_path": drop_path,
    }
    return Autoencoder(
        tokenizer=ModalityGrid(names, grid),
        sampler=MaskSampler(
            tube(grid.length), ratio_per_modality(mask_ratio, modalities=len(names), complete=complete)
        ),
        encoder=PrimusEncoder(content=grid.content, depth=depth, heads=heads, registers=registers, **shared),  # type: ignore[arg-type]
        decoder=PrimusDecoder(patch=grid.patch, depth=decoder_depth, heads=decoder_heads, **shared),  # type: ignore[arg-type]
        target=Normalized(floor=variance_floor) if normalize_target else Content(),
        distance=mse,
        foreground_values=foreground_loss,
    )
