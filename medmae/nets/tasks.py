"""Embeddings and heads for tokens of several tasks, whose contents differ in width and in kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from medmae.core.heterogeneous import Task
from medmae.core.tokens import TokenLayout, Tokens

from .decoders import JointDecoder
from .encoded import Encoded
from .kernels import Linear


class ClassEmbed(nn.Module):
    """A learned vector for the class of every pixel, then a linear map of all of them (MultiMAE).

    Labels outside of ``[0, classes)`` are void: they share one more vector.

    Args:
        pixels: labels per token.
        classes: number of classes.
        width: features per token.
        each: features per pixel.
    """

    def __init__(self, pixels: int, classes: int, width: int, *, each: int = 64) -> None:
        super().__init__()
        self.classes = classes
        self.vectors = nn.Embedding(classes + 1, each)
        nn.init.trunc_normal_(self.vectors.weight, std=0.02)
        self.linear = Linear(pixels * each, width)

    def forward(self, labels: Float[Tensor, "b n what"]) -> Float[Tensor, "b n d"]:
        """Features of every token."""
        index = labels.float().round().long()
        index = torch.where((index >= 0) & (index < self.classes), index, self.classes)
        return self.linear(self.vectors(index).flatten(-2))


class TaskEmbed(nn.Module):
    """One embedding per task, by its name.

    Args:
        tasks: in the order of the modality index.
        width: features per token.
    """

    def __init__(self, tasks: Sequence[Task], width: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.each = nn.ModuleDict(
            {t.name: ClassEmbed(t.grid.content, t.classes, width) if t.classes else Linear(t.grid.content, width)
             for t in tasks}
        )  # fmt: skip

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """Features of every token."""
        mapped = [self.each[t.name](tokens.content[..., : t.grid.content]) for t in self.tasks]
        return chosen(mapped, tokens.layout)


class TaskHeads(nn.Module):
    """A joint decoder with one linear head per task in place of its own.

    Args:
        inner: the decoder; its head is not used.
        tasks: in the order of the modality index.
        width: features per token of ``inner``.
    """

    def __init__(self, inner: JointDecoder, tasks: Sequence[Task], *, width: int) -> None:
        super().__init__()
        self.inner, self.tasks = inner, tuple(tasks)
        del inner.head
        self.heads = nn.ModuleDict({task.name: Linear(width, task.grid.content) for task in tasks})

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Content of every query, zeros behind what its task has."""
        features = self.inner.features(encoded, queries)
        return chosen([self.heads[task.name](features) for task in self.tasks], queries)


def chosen(mapped: Sequence[Float[Tensor, "b n _"]], layout: TokenLayout) -> Float[Tensor, "b n widest"]:
    """Of what every task makes of every token, that of the token's own task, filled up with zeros.

    Tasks are few and shapes stay static; whatever another task makes of a token is selected away, not multiplied.
    """
    widest = max(values.shape[-1] for values in mapped)
    out = mapped[0].new_zeros(*layout.id.shape, widest)
    for i, values in enumerate(mapped):
        out = torch.where((layout.modality == i)[..., None], F.pad(values, (0, widest - values.shape[-1])), out)
    return out
