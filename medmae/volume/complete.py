"""A missing sequence of a whole volume, from windows that leave no trace.

A model answers patch by patch for a window of fixed size, so a volume put together from its windows shows two lattices
of
seams: where windows meet, and where patches meet inside every window. Both vanish when no two estimates of a voxel
break at the same place. So every axis is covered twice, the second time shifted by half a patch, and each estimate is
weighed by a cosine bump that is zero on the border of its window times one that is zero on the borders of its patch:
where one cover breaks, the other has all the weight. The weights are separable and sum to one on every axis by
construction, hence everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import EllipsisType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medmae.core.autoencoder import Autoencoder
from medmae.core.errors import CheckpointError, UsageError
from medmae.core.grid import Grid
from medmae.core.sequences import nearest
from medmae.core.target import Content
from medmae.core.tokens import Batch, MaskPlan, Tokens, without_trivial_masks

SEAMLESS = 0.5
"""Smallest ``overlap`` at which the windows are shifted by half a patch, so that patch borders vanish too."""


@dataclass(frozen=True)
class Axis:
    """How one axis is covered.

    Attributes:
        starts: first voxel of each window, in the padded axis.
        weights: of every voxel of every window; over all windows they sum to one at every voxel of the padded axis.
        before: voxels of padding in front of the axis.
        length: voxels of the padded axis.
    """

    starts: tuple[int, ...]
    weights: Float[Tensor, "k s"]
    before: int
    length: int


def cover(length: int, *, size: int, patch: int, overlap: float = SEAMLESS) -> Axis:
    """Windows of ``size`` voxels over an axis of ``length`` voxels.

    Args:
        length: voxels of the axis.
        size: voxels of a window.
        patch: voxels of a patch; divides ``size``.
        overlap: share of a window that others cover too, in [0, 1). Below 0.5 all windows keep the patch lattice of
            the first one; from 0.5 on half of them are shifted by half a patch.

    Raises:
        UsageError: the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap must be in [0, 1), not {overlap}")
    half = patch // 2 if overlap >= SEAMLESS else 0
    within = 2 * overlap - 1 if half else overlap  # the two covers together have the overlap asked for
    # The last half patch may belong to one cover only: within it that cover has no patch border.
    first = _starts(length - half, size=size, patch=patch, overlap=within)
    if half:
        starts = first + [half + start for start in _starts(length - 2 * half, size=size, patch=patch, overlap=within)]
    else:
        starts = first
    end = max(starts) + size
    if end < length:  # neither cover reaches the last voxels yet
        starts = [*starts, first[-1] + patch]
        end = starts[-1] + size
    bump = _ramps(size, max(patch, size // 4)) if overlap > 0 else torch.ones(size, dtype=torch.float64)
    if half:
        bump = bump * _bump(patch).repeat(size // patch)
    total = torch.zeros(end, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += bump
    weights = torch.stack([bump / total[start : start + size] for start in starts])
    return Axis(tuple(starts), weights.float(), (end - length) // 2, end)


def _starts(length: int, *, size: int, patch: int, overlap: float) -> list[int]:
    """Multiples of ``patch`` from 0 on whose windows cover ``length`` voxels, evenly spread."""
    last = max(0, math.ceil((length - size) / patch))
    stride = max(1, int(size * (1 - overlap)) // patch)
    steps = math.ceil(last / stride)
    return [round(i * last / steps) * patch for i in range(steps + 1)] if steps else [0]


def _bump(n: int) -> Tensor:
    """A squared sine over ``n`` voxels; two of them, half a length apart, sum to one."""
    place = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (place * math.pi).sin().square()


def _ramps(n: int, width: int) -> Tensor:
    """One over ``n`` voxels, with cosine ramps to zero over ``width`` voxels at both ends."""
    place = torch.arange(n, dtype=torch.float64) + 0.5
    depth = torch.minimum(place, n - place) / width
    return (depth.clamp_max(1) * math.pi / 2).sin().square()


@torch.no_grad()
def complete(
    method: Autoencoder,
    batch: Batch,
    targets: Sequence[str],
    *,
    overlap: float = SEAMLESS,
    batch_size: int = 1,
    everywhere: bool = False,
    on_windows: Callable[[int, int], None] | None = None,
) -> dict[str, Float[Tensor, "b c *size"]]:
    """The sequences in ``targets`` for volumes of any size, from every other sequence that is present.

    Targets are hidden even where the batch has them, so that a guess can be compared with the truth. Sequences that
    are neither present nor asked for stay missing: no token stands for them.

    Args:
        method: a masked autoencoder whose target is the content itself, on any device.
        batch: Float[b c *size] per sequence, in the units the method was trained in; optionally ``present`` Bool[b m],
            ``foreground`` [b 1 *size], ``spacing`` Float[b p]. Volumes smaller than a window are padded with zeros.
        targets: what to guess.
        overlap: share of a window that others cover too, per axis, see :func:`cover`. 0 is fastest and shows every
            seam.
        batch_size: windows per forward pass.
        everywhere: guess background too. By default windows without any foreground are left out; their share of voxels
            outside the foreground is zero.
        on_windows: called with the number of windows done and of all windows, as they are done.

    Returns:
        One volume per target on the device of the batch, in the units of the method's input.

    Raises:
        UsageError: an unknown target, or a sample without a sequence to start from.
        CheckpointError: a method that cannot do this.
    """
    grid, names = _grid(method), method.sequences
    _check_targets(targets, names)
    images = {name: batch[name] for name in names if name in batch}
    size = _one_size(images, names, batch, axes=len(grid.size))
    shown, exists = _states(batch, images, targets, names)
    axes = [cover(n, size=s, patch=p, overlap=overlap) for n, s, p in zip(size, grid.size, grid.patch, strict=True)]
    given = tuple(name for i, name in enumerate(names) if name in images and bool(shown[:, i].any()))
    like = images[given[0]]
    stack = _pad(torch.stack([images[name] for name in given], 1), axes)
    foreground = _pad(batch["foreground"].float(), axes) if "foreground" in batch else None
    cuts = [Cut.of(axes, window) for window in itertools.product(*(range(len(axis.starts)) for axis in axes))]
    if foreground is not None and not everywhere:
        cuts = [cut for cut in cuts if bool(foreground[cut.where].any())]
    device = next(method.parameters()).device
    frame = {"present": exists, **({"spacing": batch["spacing"]} if "spacing" in batch else {})}
    plan = _plan(shown, targets, names, grid)
    padded = [axis.length for axis in axes]
    out = {name: torch.zeros(len(like), grid.channels, *padded, device=like.device) for name in targets}
    blank = torch.zeros(1, grid.channels, *grid.size, device=device)
    with _evaluating(method):
        for first in range(0, len(cuts), batch_size):
            some = cuts[first : first + batch_size]
            window = {key: torch.cat([value] * len(some)) for key, value in frame.items()}
            seen = torch.cat([stack[cut.where] for cut in some])
            window |= {name: seen[:, i] for i, name in enumerate(given)}
            if foreground is not None:
                window["foreground"] = torch.cat([foreground[cut.where] for cut in some])
            window = {key: value.to(device) for key, value in without_trivial_masks(window).items()}
            window |= {name: blank.expand(len(seen), -1, *grid.size) for name in targets}
            each = MaskPlan(
                plan.visible.repeat(len(some), 1).to(device),
                plan.target.repeat(len(some), 1).to(device),
                None,
                plan.ragged,
            )
            guess = method.guess(method.tokenizer(window), each).float()
            for name, patches in zip(targets, torch.split(guess, grid.length, 1), strict=True):
                volumes = grid.unpatchify(patches).to(like.device)
                for cut, volume in zip(some, torch.split(volumes, len(like)), strict=True):
                    out[name][cut.where] += volume * cut.weight.to(like.device)
            if on_windows is not None:
                on_windows(min(first + batch_size, len(cuts)), len(cuts))
    inside = _inside(axes, size)
    return {name: volume[inside] for name, volume in out.items()}


@dataclass(frozen=True)
class Cut:
    """One window: where it is in the padded volume, and the weight of its voxels."""

    where: tuple[EllipsisType | slice, ...]
    weight: Float[Tensor, "*size"]

    @classmethod
    def of(cls, axes: Sequence[Axis], window: Sequence[int]) -> Cut:
        """The window with these numbers on its axes."""
        starts = [axis.starts[i] for axis, i in zip(axes, window, strict=True)]
        lengths = [axis.weights.shape[1] for axis in axes]
        weight = torch.ones(())
        for axis, i in zip(axes, window, strict=True):
            weight = weight[..., None] * axis.weights[i]
        return cls((..., *(slice(start, start + n) for start, n in zip(starts, lengths, strict=True))), weight)


def _inside(axes: Sequence[Axis], size: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
    """Where a volume of this size is in the padded one."""
    return (..., *(slice(axis.before, axis.before + n) for axis, n in zip(axes, size, strict=True)))


def _grid(method: Autoencoder) -> Grid:
    grid = getattr(getattr(method, "tokenizer", None), "grid", None)
    if not isinstance(method, Autoencoder) or not isinstance(grid, Grid):
        raise CheckpointError(
            f"{type(method).__name__} cannot reconstruct sequences: that takes a masked autoencoder over several "
            "sequences, such as bm_mae"
        )
    if not isinstance(method.target, Content):
        raise CheckpointError(
            f"this model predicts {type(method.target).__name__.lower()} patches, whose scale is unknown where "
            "a sequence is missing. Pre-train with normalize_target: false to reconstruct intensities"
        )
    return grid


def _check_targets(targets: Sequence[str], names: Sequence[str]) -> None:
    if not targets:
        raise UsageError("no target: name at least one sequence to reconstruct")
    if len(set(targets)) != len(targets):
        raise UsageError(f"a target is named twice: {', '.join(targets)}")
    for target in targets:
        if target not in names:
            near = nearest(target, among=tuple(names))
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it knows {', '.join(names)}"
            raise UsageError(f"this model does not know the sequence {target!r}{hint}")


def _one_size(images: Batch, names: Sequence[str], batch: Batch, *, axes: int) -> tuple[int, ...]:
    if not images:
        raise UsageError(f"the batch has none of the sequences {', '.join(names)}; it has {', '.join(sorted(batch))}")
    shapes = {name: tuple(image.shape) for name, image in images.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != axes + 2:
        raise UsageError(f"sequences must share one shape [b, c, {axes} axes of space], got {shapes}")
    return next(iter(shapes.values()))[2:]


def _states(
    batch: Batch, images: Batch, targets: Sequence[str], names: Sequence[str]
) -> tuple[Bool[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Which sequences of each sample are shown, and which exist for the layout (shown or asked for); on the CPU."""
    b = len(next(iter(images.values())))
    here = torch.tensor([name in images for name in names]).expand(b, -1)
    if "present" in batch:
        if batch["present"].shape != (b, len(names)):
            raise UsageError(
                f"present has shape {tuple(batch['present'].shape)}, expected {(b, len(names))} for {', '.join(names)}"
            )
        here = here & batch["present"].cpu().bool()
    asked = torch.tensor([name in targets for name in names])
    shown = here & ~asked
    if not bool(shown.any(1).all()):
        row = int((~shown.any(1)).nonzero()[0, 0])
        raise UsageError(
            f"sample {row} has no sequence to start from: all of {', '.join(names)} are missing or asked for"
        )
    return shown, shown | asked


def _plan(shown: Bool[Tensor, "b m"], targets: Sequence[str], names: Sequence[str], grid: Grid) -> MaskPlan:
    """Everything shown is visible, every token of the targets is asked for, target by target."""
    n = grid.length
    place = torch.arange(n)
    target = torch.cat([place + names.index(name) * n for name in targets]).expand(len(shown), -1)
    rows = [torch.cat([place + m * n for m in row.nonzero()[:, 0].tolist()]) for row in shown]
    ragged = len({len(row) for row in rows}) > 1
    return MaskPlan(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), target, None, ragged)


def _pad(volume: Float[Tensor, "*any"], axes: Sequence[Axis]) -> Float[Tensor, "*padded"]:
    """Zeros around the last axes of ``volume``, as the windows need them."""
    sizes = volume.shape[-len(axes) :]
    pairs = [(axis.before, axis.length - n - axis.before) for axis, n in zip(axes, sizes, strict=True)]
    return torch.nn.functional.pad(volume, [x for pair in reversed(pairs) for x in pair])


@contextmanager
def _evaluating(method: Autoencoder) -> Iterator[None]:
    """Without dropout; the mode is put back afterwards."""
    was = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was)


@dataclass(frozen=True)
class Preview:
    """One window as the model was trained on it, for pictures; every entry is {name: Float[b c *size]}.

    Attributes:
        truth: the images.
        visible: the images where the model saw them, zero elsewhere.
        guess: the model's answer where it was asked, zero elsewhere. Of a model that predicts normalized patches these
            are its raw answers: scaling them back would take the mean and deviation of the very patch that is hidden.
        pasted: the guess where the model was asked, what it saw elsewhere, zero where neither.
        asked: 1 where the model was asked.
        normalized: whether the guess is in units of the patch rather than of the image.
    """

    truth: dict[str, Tensor]
    visible: dict[str, Tensor]
    guess: dict[str, Tensor]
    pasted: dict[str, Tensor]
    asked: dict[str, Tensor]
    normalized: bool


@torch.no_grad()
def preview(method: Autoencoder, batch: Batch, plan: MaskPlan | None = None) -> Preview:
    """What the model sees, is asked for and answers on one batch of its own window size, under the plan it draws or
    ``plan``."""
    grid, names = getattr(method.tokenizer, "grid", None), method.sequences
    if not isinstance(grid, Grid):
        raise CheckpointError(f"tokens of {type(method.tokenizer).__name__} are no patches of voxels: no picture")
    tokens = method.tokenizer(batch)
    plan = method.plan(batch) if plan is None else plan
    with _evaluating(method):
        answer = method.guess(tokens, plan).to(tokens.content.dtype)
    if answer.shape[2:] != tokens.content.shape[2:]:
        raise CheckpointError(
            f"the model predicts {tuple(answer.shape[2:])} values per token, not the voxels of a patch: no picture"
        )
    layout, zero = tokens.layout, torch.zeros((), dtype=tokens.content.dtype, device=tokens.content.device)
    ragged = layout.ragged or plan.ragged
    seen = tokens.at(plan.visible, ragged=ragged).onto(layout, zero).content
    queries = layout.at(plan.target, ragged=ragged)
    guess = Tokens(queries, answer).onto(layout, zero).content
    asked = Tokens(queries, torch.ones_like(answer)).onto(layout, zero).content

    def images(content: Tensor) -> dict[str, Tensor]:
        parts = torch.split(content, grid.length, 1)
        return {name: grid.unpatchify(part) for name, part in zip(names, parts, strict=True)}

    return Preview(
        truth=images(tokens.content),
        visible=images(seen),
        guess=images(guess),
        pasted=images(torch.where(asked > 0, guess, seen)),
        asked=images(asked),
        normalized=not isinstance(method.target, Content),
    )
