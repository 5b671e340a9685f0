"""MultiMAE: images, depths and class maps of one scene share an encoder; each is predicted from what is left of all.

It differs from MAE in having several tasks, with an embedding and a decoder each, in Dirichlet shares of one budget of
visible tokens, and in decoders that ask the visible tokens by cross-attention. Tasks may be volumes: with one MRI
sequence per task it is the ancestor of BM-MAE, with one decoder per sequence.
"""

from __future__ import annotations

from medmae.core.card import Card
from medmae.core.grid import Grid
from medmae.core.heterogeneous import Answers, Task, TaskAutoencoder, TaskGrid
from medmae.core.sampling import MaskSampler, random, shares
from medmae.image.parts import TEST_SCALE, dense_answers
from medmae.nets.cross import TaskDecoder, TaskDecoders
from medmae.nets.positions import SinCos
from medmae.nets.tasks import TaskEmbed
from medmae.nets.vit import ViTEncoder, xavier

CARD = Card(
    title="MultiMAE: Multi-modal Multi-task Masked Autoencoders",
    paper="arXiv:2204.01678",
    year=2022,
    reference="EPFL-VILAB/MultiMAE",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="image",
    parent="mae",
    changed=(
        "one embedding, decoder and loss per task",
        "Dirichlet shares of one budget of visible tokens",
        "decoders with cross-attention to visible tokens",
    ),
    status="adapted",
    departures=(
        "Written from the paper and a description; no weights of the reference were loaded.",
        "Depth is standardized in the target only; the reference uses values that are hidden to standardize the input.",
        "Shares that ask for more than a task has are redrawn in every sample, up to seven times, and then cut.",
        "Void labels have one vector of their own and no loss; cross-attention has a bias on queries, keys and values.",
        "Tasks that a sample lacks have no tokens and no loss; the reference makes them up by other networks.",
        "Volumes, `foreground_loss` and the choice of tasks by name are ours.",
    ),
    exempt={
        "perfect_prediction_costs_nothing": "class maps are guessed as logits, which are no labels; "
        "tests/image/test_multimae.py makes every task perfect",
    },
    citation="Bachmann, Mizrahi, Atanov, Zamir. MultiMAE: Multi-modal Multi-task Masked Autoencoders. ECCV 2022.",
)

SCALES = {
    "test": {**TEST_SCALE, "classes": (("semseg", 5),)},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_heads": 4},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}  # fmt: skip


def multimae(
    *,
    sequences: tuple[str, ...] = ("rgb", "depth", "semseg"),
    size: tuple[int, ...] = (224, 224),
    patch: tuple[int, ...] = (16, 16),
    channels: tuple[tuple[str, int], ...] = (("rgb", 3),),
    classes: tuple[tuple[str, int], ...] = (("semseg", 133),),
    coarser: tuple[tuple[str, int], ...] = (("semseg", 4),),
    absolute: tuple[str, ...] = ("depth",),
    normalized: tuple[str, ...] = ("rgb",),
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    decoder_width: int = 256,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    eps: float = 1e-6,
    mask_ratio: float = 0.833,
    alpha: float = 1.0,
    uniform_subsets: bool = False,
    foreground_loss: bool = False,
) -> TaskAutoencoder:
    """Build the method; it reads one batch entry per task. Settings of tasks that are not there are ignored.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        sequences: names of the tasks, and of their entries Float[b channels *size].
        channels: values per pixel of tasks that have more than one.
        classes: tasks that are maps of labels, and how many classes they have; other labels are void.
        coarser: tasks at a lower resolution, and by which factor on every axis.
        absolute: tasks compared by absolute difference, standardized without their extreme tenths (depth).
        normalized: tasks with a second decoder, for pixels normalized per patch.
        decoder_depth: blocks of self-attention of the decoders.
        mask_ratio: share of hidden patches over all tasks, in [0, 1); 0.833 leaves 98 of 588.
        uniform_subsets: draw a subset of the tasks first, any but the empty one alike, and hide the others whole.
    """
    names, grid = tuple(sequences), Grid(tuple(size), tuple(patch))
    values, labels, factors = dict(channels), dict(classes), dict(coarser)
    tasks = []
    for name in names:
        by = factors.get(name, 1)
        if any(n % by for n in grid.patch):
            raise ValueError(f"{name} cannot be {by} times coarser: patches have {grid.patch} pixels")
        cut = Grid(tuple(n // by for n in grid.size), tuple(n // by for n in grid.patch), values.get(name, 1))
        tasks.append(Task(name, cut, classes=labels.get(name, 0)))
    answers = dense_answers(tasks, absolute=absolute, normalized=normalized)
    # Every subset but the empty one alike: all but one of 2 ** m - 1 are proper.
    drop = 1 - 1 / (2 ** len(names) - 1) if uniform_subsets else 0.0
    budget = shares(mask_ratio, modalities=len(names), alpha=alpha, drop=drop)
    decoders = {
        answer.name: TaskDecoder(
            task=answer.task, names=names, encoder_width=width, content=answer.size, positions=SinCos(decoder_width),
            width=decoder_width, depth=decoder_depth, heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps,
        )
        for answer in answers
    }  # fmt: skip
    method = TaskAutoencoder(
        tokenizer=TaskGrid(tasks, grid=grid),
        sampler=MaskSampler(random(), budget, weigh=foreground_loss),
        encoder=ViTEncoder(
            embed=TaskEmbed(tasks, width), positions=SinCos(width), final_norm=False,
            width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, eps=eps,
        ),
        decoder=TaskDecoders(decoders, tasks=len(tasks)),
        target=Answers(tasks, answers),
    )  # fmt: skip
    xavier(method, split=True)
    return method
