"""SatMAE: bands that belong together share a token; a code says of which group, or of which date, a token is.

It differs from MAE in several tokens at every place, one per group of bands or per date, in positions that are a code
of the place followed by one of the group or date, and in masks that may be drawn per token or per place. A token holds
the bands of its group in the order in which the group names them; guess and target share it, whatever the image's is.
"""

from __future__ import annotations

from typing import Literal

from medmae.core.card import Card
from medmae.core.grid import Grid
from medmae.core.heterogeneous import Answer, Answers, Task, TaskAutoencoder, TaskGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, random, ratio, ratio_per_modality, tube
from medmae.core.target import Content, Normalized
from medmae.image.parts import TEST_SCALE
from medmae.nets.decoders import JointDecoder
from medmae.nets.embed import SharedEmbed
from medmae.nets.positions import SinCosParts
from medmae.nets.tasks import TaskEmbed, TaskHeads
from medmae.nets.vit import ViTEncoder, xavier

CARD = Card(
    title="SatMAE: Pre-training Transformers for Temporal and Multi-Spectral Satellite Imagery",
    paper="arXiv:2207.08051",
    year=2022,
    reference="sustainlab-group/SatMAE @ e31c11f",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="image",
    parent="mae",
    changed=(
        "a token per group of bands, or per date",
        "codes of group or date beside those of place",
        "masks per token, or the same places in all groups",
    ),
    status="adapted",
    departures=(
        "The released loss compares guesses in the order of the groups with an image in the order of its bands: with "
        "groups that are not contiguous a perfect guess costs 0.66. Here guess and target have one order.",
        "Normalized targets take their statistics per group; the reference takes them over all bands of a place.",
        "[CLS] has no group code of its own, in the encoder or in the decoder.",
    ),
    citation="Cong, Khanna, Meng, et al. SatMAE: Pre-training Transformers for Temporal and Multi-Spectral Satellite "
    "Imagery. NeurIPS 2022.",
)

SCALES = {
    "test": {**TEST_SCALE, "groups": ((0, 2), (1, 3, 4), (5,)), "code_width": 16, "decoder_code_width": 16},
    "small": {"width": 384, "depth": 12, "heads": 6, "code_width": 128, "decoder_width": 256, "decoder_heads": 8,
              "decoder_code_width": 64},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}  # fmt: skip

PRESETS = {
    "spectral": {},
    "temporal": {
        "size": (224, 224), "patch": (16, 16), "groups": ((0, 1, 2), (3, 4, 5), (6, 7, 8)), "stamps": 3, "width": 1024,
        "depth": 24, "heads": 16, "code_width": 384, "decoder_code_width": 192,
    },
}  # fmt: skip


def satmae(
    *,
    size: tuple[int, ...] = (96, 96),
    patch: tuple[int, ...] = (8, 8),
    groups: tuple[tuple[int, ...], ...] = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9)),
    stamps: int = 0,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    code_width: int = 256,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    decoder_code_width: int = 128,
    eps: float = 1e-6,
    mask_ratio: float = 0.75,
    masking: Literal["independent", "consistent"] = "independent",
    normalize_target: bool = False,
) -> TaskAutoencoder:
    """Build the method; it reads ``image``, Float[b bands *size], and with ``stamps`` also ``time``.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        groups: bands of every group, as channels of the image; with ``stamps``, of every date, all alike.
        stamps: numbers that say when a group was seen, such as year, month and hour: the entry ``time``,
            Float[b groups stamps]. All groups then share one embedding and head. 0: a group is told by its number.
        code_width: features of the encoder's positions that code the group or, in equal parts, the stamps.
        decoder_code_width: the same as ``code_width``, of the decoder.
        masking: hide tokens independently of one another, or the same places in all groups.
    """
    if masking not in ("independent", "consistent"):
        raise ValueError(f"masking must be 'independent' or 'consistent', not {masking!r}")
    if stamps and len({len(group) for group in groups}) > 1:
        raise ValueError(f"dates share one embedding, so all must have as many bands: {groups}")
    grid, axes, codes = Grid(tuple(size), tuple(patch)), len(size), max(1, stamps)
    cuts = [Grid(grid.size, grid.patch, len(group)) for group in groups]
    tasks = [Task(f"group{i}", cut, "image", tuple(groups[i])) for i, cut in enumerate(cuts)]
    widest = max(cut.content for cut in cuts)
    target = Normalized() if normalize_target else Content()
    answers = [Answer(f"group{i}", i, cut.content, cut.content, mse, target) for i, cut in enumerate(cuts)]
    joint = JointDecoder(
        encoder_width=width, content=widest,
        positions=SinCosParts(decoder_width, axes=axes, codes=codes, code_width=decoder_code_width),
        width=decoder_width, depth=decoder_depth, heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps,
    )  # fmt: skip
    priority, budget = random(), ratio(mask_ratio)
    if masking == "consistent":
        priority, budget = tube(grid.length), ratio_per_modality(mask_ratio, modalities=len(tasks))
    method = TaskAutoencoder(
        tokenizer=TaskGrid(tasks, grid=grid, numbered=not stamps, stamped="time" if stamps else ""),
        sampler=MaskSampler(priority, budget),
        encoder=ViTEncoder(
            embed=SharedEmbed(widest, width) if stamps else TaskEmbed(tasks, width),
            positions=SinCosParts(width, axes=axes, codes=codes, code_width=code_width),
            width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, eps=eps,
        ),
        decoder=joint if stamps else TaskHeads(joint, tasks, width=decoder_width),
        target=Answers(tasks, answers),
        together=True,
    )  # fmt: skip
    xavier(method)
    return method
