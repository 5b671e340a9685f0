"""The step for tasks that differ in what their tokens hold: colors, depths, class maps, groups of bands.

The tokens of all tasks stand in one row, filled up with zeros to the widest content. Plans, layouts and encoders need
not know of it; only those who read a token do: the embedding, the answers and the decoder, which cut each task to its
own width. So every task keeps its own loss, and a task that a patient lacks is handled as a missing sequence is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from .grid import Grid, ModalityGrid, _check_names
from .loss import Distance, masked_mean, sample_mean
from .method import Method
from .sampling import MaskSampler
from .target import Content
from .tokens import Batch, MaskPlan, TokenLayout, Tokens, take


@dataclass(frozen=True)
class Task:
    """One kind of token.

    Attributes:
        name: of the task.
        grid: how it is cut; as many patches as in every other task, of any size and number of channels.
        entry: entry of the batch that it reads; "" for its name.
        channels: which channels of that entry, in this order; () for all of them.
        classes: number of classes of a map of labels; 0 where values are numbers.
    """

    name: str
    grid: Grid
    entry: str = ""
    channels: tuple[int, ...] = ()
    classes: int = 0


class TaskGrid(ModalityGrid):
    """The tokenizer of several tasks; the modality index of a token is its task.

    Reads from a batch what :class:`ModalityGrid` reads; ``present`` has one column per entry.

    Args:
        tasks: in the order of their tokens.
        grid: the common grid, at full resolution, of coordinates and foreground.
        numbered: the number of the task is one more coordinate.
        stamped: entry Float[b tasks stamps] of the batch with further coordinates for each task, such as dates.

    Raises:
        ValueError: tasks that do not share one grid of patches, or channels that do not fit.
    """

    def __init__(self, tasks: Sequence[Task], *, grid: Grid, numbered: bool = False, stamped: str = "") -> None:
        entries = [task.entry or task.name for task in tasks]
        super().__init__(tuple(dict.fromkeys(entries)), grid)
        _check_names(tuple(task.name for task in tasks))
        for task in tasks:
            if task.grid.shape != grid.shape:
                raise ValueError(
                    f"{task.name} is cut into {task.grid.shape} patches, the other tasks into {grid.shape}"
                )
            if task.channels and len(task.channels) != task.grid.channels:
                raise ValueError(f"{task.name} reads channels {task.channels} with {task.grid.channels} per pixel")
        self.tasks, self.numbered, self.stamped = tuple(tasks), numbered, stamped
        self.columns = tuple(self.names.index(entry) for entry in entries)
        self.classes = {task.name: task.classes for task in tasks if task.classes}
        self.width = max(task.grid.content for task in tasks)

    @property
    def entries(self) -> dict[str, tuple[int, ...]]:
        """What is read from a batch: every name, and the shape of one sample of it."""
        shapes: dict[str, tuple[int, ...]] = {}
        for task, column in zip(self.tasks, self.columns, strict=True):
            name = self.names[column]
            needed = max(task.channels, default=task.grid.channels - 1) + 1
            shapes[name] = (max(needed, shapes.get(name, (0,))[0]), *task.grid.size)
        return shapes

    def voxels(self, marks: Bool[Tensor, "b n"]) -> dict[str, Bool[Tensor, "b c ..."]]:
        """A mark on tokens as marks on the values of the batch that they hold, by name."""
        held = {name: marks.new_zeros(len(marks), *shape) for name, shape in self.entries.items()}
        for task, column, part in zip(self.tasks, self.columns, torch.split(marks, self.grid.length, 1), strict=True):
            mine = task.grid.unpatchify(part[..., None].expand(-1, -1, task.grid.content))
            channels = list(task.channels) or list(range(task.grid.channels))
            held[self.names[column]][:, channels] |= mine
        return held

    def forward(self, batch: Batch) -> Tokens:
        """All tokens of a batch: content [b tasks*length widest]."""
        parts = []
        for task, column in zip(self.tasks, self.columns, strict=True):
            name = self.names[column]
            image = batch[name] if name in batch else self._absent(batch, column)
            if task.channels:
                if image.shape[1] <= max(task.channels):
                    raise ValueError(f"{name} has {image.shape[1]} channels; {task.name} reads {task.channels}")
                image = torch.stack([image[:, channel] for channel in task.channels], 1)
            content = task.grid.patchify(image)
            parts.append(F.pad(content, (0, self.width - task.grid.content)))
        content = torch.cat(parts, 1)
        layout = self.layout(batch, like=content)
        if layout.ragged:
            content = content.masked_fill(~layout.exists[..., None], 0)
        return Tokens(layout, content)

    def layout(self, batch: Batch, *, like: Tensor) -> TokenLayout:
        """The layout alone; ``like`` tells batch size and device."""
        b, m, n, device = len(like), len(self.tasks), self.grid.length, like.device
        column = torch.arange(m * n, device=device).expand(b, -1)
        present = batch.get("present")
        if present is not None:
            if present.shape != (b, len(self.names)):
                raise ValueError(f"present has shape {tuple(present.shape)}, expected {(b, len(self.names))}")
            has = torch.stack([present[:, i] for i in self.columns], 1)
            column = torch.where(has.repeat_interleave(n, 1), column, -1)
        task = torch.arange(m, device=device).repeat_interleave(n).expand(b, -1)
        coords = [self.grid.indices(device).repeat(m, 1).expand(b, -1, -1)]
        if self.numbered:
            coords.append(task[..., None].float())
        if self.stamped:
            if self.stamped not in batch:
                raise ValueError(f"the batch has no {self.stamped!r}: one row of numbers for each of {m} tasks")
            coords.append(batch[self.stamped].float().repeat_interleave(n, 1))
        weight = self.grid.share(batch["foreground"]).repeat(1, m) if "foreground" in batch else None
        return TokenLayout(column, torch.cat(coords, -1), task, weight, m * n, ragged=present is not None)


@dataclass(frozen=True)
class Answer:
    """What is asked of the tokens of one task; a task may have several.

    Attributes:
        name: of the loss, and of the decoder where each answer has its own.
        task: number of the task.
        size: values of a guess.
        truth: values of the target.
        target: from the tokens of the task, cut to their width, to what is right.
        distance: how far off a guess is, per token.
    """

    name: str
    task: int
    size: int
    truth: int
    distance: Distance
    target: nn.Module = field(default_factory=Content)


class Answers(nn.Module):
    """The target of all tasks: in each row the truths of its own task, one after the other, zeros behind them.

    Args:
        tasks: as in the tokenizer.
        answers: at least one for each task that is asked for.
    """

    def __init__(self, tasks: Sequence[Task], answers: Sequence[Answer]) -> None:
        super().__init__()
        self.tasks, self.all = tuple(tasks), tuple(answers)
        self.targets = nn.ModuleList(answer.target for answer in answers)
        guess, truth = [0] * len(self.tasks), [0] * len(self.tasks)
        self.columns: list[tuple[slice, slice]] = []
        for answer in answers:
            i = answer.task
            self.columns.append((slice(guess[i], guess[i] + answer.size), slice(truth[i], truth[i] + answer.truth)))
            guess[i], truth[i] = guess[i] + answer.size, truth[i] + answer.truth
        self.width, self.truth = max(guess), max(truth)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n what"]:
        """The truths of every token."""
        b, n = tokens.layout.id.shape
        length = n // len(self.tasks)
        rows = []
        for i, task in enumerate(self.tasks):
            ids = torch.arange(i * length, (i + 1) * length, device=tokens.content.device).expand(b, -1)
            mine = tokens.at(ids)
            mine = Tokens(mine.layout, mine.content[..., : task.grid.content])
            told = [target(mine) for target, answer in zip(self.targets, self.all, strict=True) if answer.task == i]
            row = torch.cat(told, -1) if told else mine.content[..., :0]
            rows.append(F.pad(row, (0, self.truth - row.shape[-1])))
        return torch.cat(rows, 1)


class TaskAutoencoder(Method):
    """Tokenize, hide, encode what is visible, decode where it is asked, compare each answer by its own rule.

    Args:
        tokenizer: what there is.
        sampler: who is visible and who is asked for.
        encoder: ``encoder(visible, full_layout) -> Encoded``.
        decoder: ``decoder(encoded, queries) -> [b t width]``; in each row the guesses of its own task, in the order of
            the answers, anything behind them.
        target: the answers.
        together: one loss, the mean over all tokens that are asked for; otherwise one loss per answer, the mean over
            samples of the mean over the tokens of its task.
    """

    def __init__(
        self,
        *,
        tokenizer: TaskGrid,
        sampler: MaskSampler,
        encoder: nn.Module,
        decoder: nn.Module,
        target: Answers,
        together: bool = False,
    ) -> None:
        super().__init__()
        self.sequences = tokenizer.names
        self.tokenizer, self.sampler, self.target = tokenizer, sampler, target
        self.encoder, self.decoder, self.together = encoder, decoder, together

    def plan(self, batch: Batch) -> MaskPlan:
        """The plan that :meth:`forward` draws for this batch."""
        return self.sampler(self.tokenizer(batch), self.keys(batch))

    def guess(self, tokens: Tokens, plan: MaskPlan) -> Shaped[Tensor, "b t what"]:
        """What the decoder answers where the plan asks."""
        ragged = tokens.layout.ragged or plan.ragged
        visible = tokens.at(plan.visible, ragged=ragged)
        queries = tokens.layout.at(plan.target, ragged=ragged)
        return self.decoder(self.encoder(visible, tokens.layout), queries)

    def forward(self, batch: Batch, plan: MaskPlan | None = None) -> dict[str, Tensor]:
        """One loss per answer, or ``reconstruction``.

        Args:
            batch: named tensors.
            plan: what to hide, in place of a draw.
        """
        tokens = self.tokenizer(batch)
        plan = self.sampler(tokens, self.keys(batch)) if plan is None else plan
        truth, guess, weight = take(self.target(tokens), plan.target), self.guess(tokens, plan), plan.weights()
        task = take(tokens.layout.modality, plan.target)
        errors, weights = {}, {}
        for answer, (asked, told) in zip(self.target.all, self.target.columns, strict=True):
            errors[answer.name] = answer.distance(guess[..., asked], truth[..., told])
            weights[answer.name] = weight * (task == answer.task)
        if self.together:
            total = torch.stack([errors[name] * (weights[name] > 0) for name in errors]).sum(0)
            return {"reconstruction": masked_mean(total, weight)}
        return {name: sample_mean(errors[name], weights[name]) for name in errors}
