"""BM-MAE: every MRI sequence is a modality with its own tokens; any subset may be visible, all others are predicted.

It differs from MultiMAE (whose masking law it takes over) in three dimensions, in one joint decoder for all sequences,
and in having no modality embedding in the encoder: identity enters through the separate patch embeddings.

The preset ``published`` is the reference exactly. The default goes further where the reference leaves patients out:
whole sequences are hidden as well, absent ones are never asked for, the loss counts foreground, and detail that
visible sequences share with a hidden one can be borrowed.
"""

from __future__ import annotations

from typing import Literal

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, random, shares
from medmae.core.target import Content, Normalized
from medmae.nets.decoders import DetailDecoder, JointDecoder
from medmae.nets.embed import ModalityEmbed
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder

CARD = Card(
    title="Multimodal Masked Autoencoder Pre-training for 3D MRI-Based Brain Tumor Analysis with Missing Modalities",
    paper="arXiv:2505.00568",
    year=2025,
    reference="Lucas-rbnt/BM-MAE (public fork at 357ea2f)",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="volume",
    parent="mae",
    changed=("one patch embedding per sequence", "Dirichlet shares over sequences", "loss summed over sequences"),
    status="faithful",
    departures=(
        "Shares that ask for more tokens than a sequence has are redrawn in every sample, up to seven times, and then "
        "cut; the reference skips the first sample of a batch and redraws the others without limit.",
        "A batch in which a sequence has no masked patch has a finite loss; the reference gives NaN.",
        "Order of sequences comes from their names; the reference follows the order of the caller's dictionary.",
        "Sequences that a patient lacks have no tokens and no loss; the reference needs all of them.",
        "Default preset only: whole-sequence dropout, completion plans, foreground-weighted mean loss, modality "
        "embedding in the encoder, MLP ratio 4, layer norms with epsilon 1e-6, a decoder without dropout, and its "
        "detail path are ours.",
    ),
    citation="Robinet, Berger, Kurtz, et al. Multimodal Masked Autoencoder Pre-training for 3D MRI-Based Brain Tumor "
    "Analysis with Missing Modalities. 2025.",
)

SCALES = {
    "test": {"width": 48, "depth": 2, "heads": 4, "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 4,
             "size": (32, 32, 32), "patch": (8, 8, 8)},
    "tiny": {"width": 192, "depth": 6, "heads": 3, "decoder_width": 192, "decoder_depth": 2, "decoder_heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 192, "decoder_depth": 2, "decoder_heads": 6},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16, "decoder_width": 512, "decoder_depth": 4, "decoder_heads": 16},
}  # fmt: skip

PRESETS = {
    "medmae": {},
    "published": {
        "size": (128, 128, 128), "mlp_ratio": 2.0, "eps": 1e-5, "decoder_dropout": 0.1, "alpha": 1.0, "drop": 0.0,
        "complete": 0.0, "foreground_loss": False, "reduce": "sum", "modality_embedding": False, "detail": False,
    },
}  # fmt: skip


def bm_mae(
    *,
    sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f"),
    size: tuple[int, ...] = (128, 128, 128),
    patch: tuple[int, ...] = (16, 16, 16),
    coords: Literal["grid", "mm"] = "grid",
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    modality_embedding: bool = True,
    decoder_width: int = 384,
    decoder_depth: int = 3,
    decoder_heads: int = 12,
    decoder_mlp_ratio: float = 4.0,
    decoder_dropout: float = 0.0,
    detail: bool = True,
    eps: float = 1e-6,
    mask_ratio: float = 0.75,
    alpha: float = 1.0,
    drop: float = 0.25,
    complete: float = 0.25,
    foreground_loss: bool = True,
    reduce: Literal["sum", "mean"] = "mean",
    normalize_target: bool = False,
    variance_floor: float = 0.1,
) -> Autoencoder:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        coords: positions as patch indices, or in millimeters (16 mm count as one step) from ``spacing`` of the batch.
        mlp_ratio: hidden width of the encoder's MLPs over its width.
        modality_embedding: add a learned vector per sequence in the encoder too.
        decoder_mlp_ratio: hidden width of the decoder's MLPs over its width.
        decoder_dropout: dropout in the decoder.
        detail: let a guess borrow voxels that other sequences show at the same place.
        drop: probability of hiding a random subset of the sequences whole.
        reduce: what becomes of the losses per sequence.
    """
    grid, names = Grid(tuple(size), tuple(patch)), tuple(sequences)
    tokenizer = ModalityGrid(names, grid, coords=coords)
    budget = shares(mask_ratio, modalities=len(names), alpha=alpha, drop=drop, complete=complete)
    joint = JointDecoder(
        encoder_width=width,
        width=decoder_width,
        depth=decoder_depth,
        heads=decoder_heads,
        content=grid.content,
        positions=SinCos(decoder_width),
        names=names,
        mlp_ratio=decoder_mlp_ratio,
        eps=eps,
        dropout=decoder_dropout,
    )
    return Autoencoder(
        tokenizer=tokenizer,
        sampler=MaskSampler(random(), budget, weigh=foreground_loss),
        encoder=ViTEncoder(
            embed=ModalityEmbed(names, grid.content, width, tag=modality_embedding),
            positions=SinCos(width),
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            eps=eps,
        ),
        decoder=DetailDecoder(joint, width=decoder_width, names=names) if detail else joint,
        target=Normalized(floor=variance_floor) if normalize_target else Content(),
        distance=mse,
        reduce=reduce,
    )
