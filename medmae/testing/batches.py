"""Small batches for a method, made from what its tokenizer reads.

The images are waves with a little noise: smooth enough that a tiny network can learn them by heart, and different in
every sample and sequence, so that anything that is mixed up shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medmae.core.tokens import MaskPlan, Tokens


def example_batch(
    method: Any, *, samples: int = 3, seed: int = 0, lacking: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """A batch the method can run on.

    Args:
        method: with a ``tokenizer`` that has ``names``, ``entries``, a ``grid`` and, for class maps, ``classes``, or
            that offers an ``example`` of its own.
        samples: number of samples.
        seed: another seed gives other images, masks and keys.
        lacking: for every sample, the columns of the sequences it lacks; these images are zero, and the batch gets a
            ``present`` entry. None gives a complete batch without that entry.

    Returns:
        Every sequence as Float[b c *size], ``foreground`` Float[b 1 *size], ``spacing`` Float[b p], ``key`` Int64[b].
        What stands on no grid is as the tokenizer offers it, without ``foreground`` and ``spacing``.
    """
    names = method.tokenizer.names
    draw = torch.Generator().manual_seed(seed)
    offer = getattr(method.tokenizer, "example", None)
    batch: dict[str, Tensor] = _waves(method.tokenizer, samples, draw) if offer is None else offer(samples, draw)
    batch["key"] = torch.arange(samples) + 1000 * seed + 7
    if lacking is not None:
        batch["present"] = torch.ones(samples, len(names), dtype=torch.bool)
        for row, columns in enumerate(lacking):
            for column in columns:
                batch["present"][row, column] = False
                batch[names[column]][row] = 0
    return batch


def _waves(tokenizer: Any, samples: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Images, their foreground and their spacing, for a tokenizer that cuts a grid."""
    grid, classes = tokenizer.grid, getattr(tokenizer, "classes", {})
    batch: dict[str, Tensor] = {}
    for name, (channels, *size) in tokenizer.entries.items():
        waves = torch.stack([torch.cos(torch.pi * k * x) for x in _place(size) for k in (1, 2)])
        amplitude = torch.randn(samples, channels, len(waves), generator=draw)
        batch[name] = torch.einsum("bcw,w...->bc...", amplitude, waves)
        batch[name] += 0.02 * torch.randn(batch[name].shape, generator=draw)
        if name in classes:
            batch[name] = batch[name].round().remainder(classes[name])
    radius = (_place(grid.size) - 0.5).square().sum(0).sqrt()
    batch["foreground"] = (radius < 0.45).float().expand(samples, 1, *grid.size).clone()
    batch["spacing"] = torch.tensor([1.0, 1.5, 2.0, 1.0])[: len(grid.size)].expand(samples, -1).clone()
    return batch


def _place(size: Sequence[int]) -> Tensor:
    """Coordinates in [0, 1] along every axis."""
    return torch.stack(torch.meshgrid(*(torch.linspace(0, 1, s) for s in size), indexing="ij"))


def mixed_batch(method: Any, *, seed: int = 0) -> dict[str, Tensor]:
    """Three samples: one complete, one that lacks the first sequence, one that has the last sequence only."""
    m = len(method.tokenizer.names)
    return example_batch(method, seed=seed, lacking=((), (0,) if m > 1 else (), range(m - 1)))


def alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One sample of a batch, as a batch of its own."""
    return {name: value[row : row + 1] for name, value in batch.items()}


def pieces(method: Any, batch: dict[str, Tensor]) -> tuple[Tokens, MaskPlan, Tensor]:
    """Tokens, plan and guess of a batch.

    Raises:
        AssertionError: the method has no ``tokenizer``, ``plan`` or ``guess``; a method that writes its own step has to
            offer them, or to exempt the check on its card and say why.
    """
    for part in ("tokenizer", "plan", "guess"):
        assert hasattr(method, part), (
            f"{type(method).__name__} has no {part!r}: offer it, or exempt this check on the card"
        )
    tokens: Tokens = method.tokenizer(batch)
    plan: MaskPlan = method.plan(batch)
    return tokens, plan, method.guess(tokens, plan)


def awake(method: Any) -> Any:
    """The method in evaluation mode, every trainable parameter moved a little.

    Gains, scales and biases that start at zero switch a path off; whatever it leaks would go unseen.
    """
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return method.eval()
