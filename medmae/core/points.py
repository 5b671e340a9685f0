"""Clouds of points: who is spread out, who is near, how far two clouds are apart, and how a cloud is cut into tokens.

Plain torch, on any device. Neighbors are found without a gradient, a block of queries at a time, so memory grows with
the number of points and never with its square; distances are then taken again for the pairs that were found, which is
what gives them an exact gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .errors import DataError
from .random import uniform
from .sampling import Key, Priority
from .tokens import Batch, TokenLayout, Tokens, take

BLOCK_ON_CPU, BLOCK = 1 << 18, 1 << 24
"""Distances held at once: what fits in a processor's cache, and elsewhere what keeps a device busy."""

SEED = 31  # stream of randomness of :func:`ball`


@torch.no_grad()
def farthest(
    points: Float[Tensor, "b n p"], count: int, *, valid: Bool[Tensor, "b n"] | None = None
) -> Int[Tensor, "b k"]:
    """Farthest-point sampling: start at the first point, then always take the one farthest from all taken.

    Args:
        points: positions, any unit.
        count: how many to take. When no new place is left, taken places come again.
        valid: which points there are; None for all.

    Returns:
        Columns of the points taken, in the order in which they were.
    """
    apart = points.new_full(points.shape[:2], torch.inf)
    if valid is not None:
        apart = apart.masked_fill(~valid, -1.0)
        points = points.masked_fill(~valid[..., None], 0.0)
    last = apart.argmax(1) if valid is not None else torch.zeros_like(apart[:, 0], dtype=torch.long)
    taken = [last]
    for _ in range(count - 1):
        apart = torch.minimum(apart, (points - take(points, last[:, None])).square().sum(-1))
        last = apart.argmax(1)
        taken.append(last)
    return torch.stack(taken, 1)


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "b q p"],
    points: Float[Tensor, "b n p"],
    k: int,
    *,
    valid: Bool[Tensor, "b n"] | None = None,
) -> Int[Tensor, "b q k"]:
    """Columns of the ``k`` points nearest to each query, nearest first.

    Args:
        queries: where to look from.
        points: whom to look for, at least ``k`` for each sample.
        k: how many.
        valid: which points there are; None for all.
    """
    b, n, _ = points.shape
    block = max(1, (BLOCK_ON_CPU if points.device.type == "cpu" else BLOCK) // max(1, b * n))
    rows = points.transpose(1, 2).contiguous()
    # One result, filled piece by piece: thousands of small ones between large temporaries fragment the memory.
    found = torch.empty(b, queries.shape[1], k, dtype=torch.long, device=points.device)
    for start in range(0, queries.shape[1], block):
        part = queries[:, start : start + block]
        apart = torch.zeros(b, part.shape[1], n, device=points.device, dtype=points.dtype)
        for axis in range(points.shape[-1]):  # differences, not dot products: exact for points that nearly coincide
            apart.add_((part[:, :, None, axis] - rows[:, None, axis]).square_())
        if valid is not None:
            apart = apart.masked_fill(~valid[:, None], torch.inf)
        near = apart.argmin(-1, keepdim=True) if k == 1 else apart.topk(k, -1, largest=False).indices
        found[:, start : start + block] = near
    return found


def cloud_chamfer(a: Float[Tensor, "b i p"], b: Float[Tensor, "b j p"]) -> Float[Tensor, " b"]:
    """Squared Chamfer distance of large clouds: mean nearest distance, both ways, added.

    The same number and gradient as :func:`medmae.core.loss.chamfer`, which is the faster one for patches, in memory
    that grows with ``i + j`` and not with ``i * j``.
    """
    there = (a - take(b, nearest(a, b, 1)[..., 0])).square().sum(-1).mean(-1)
    return there + (b - take(a, nearest(b, a, 1)[..., 0])).square().sum(-1).mean(-1)


class PointGroups(nn.Module):
    """The tokenizer of clouds: centers by farthest-point sampling, and around each its nearest points.

    A point may be in several groups, or in none. The content of a token are positions relative to its center, which is
    the coordinate of the token.

    Reads from a batch: ``name`` as Float[b n 3], any number n of points and any unit, and, where given, ``valid``
    Bool[b n] (False where clouds of different length are padded) and ``present`` Bool[b 1].

    Args:
        groups: tokens per cloud. A cloud with fewer points than that has one token per point.
        size: points per token.
        name: entry of the batch.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(self, groups: int, size: int, *, name: str = "points") -> None:
        super().__init__()
        if groups < 1 or size < 1:
            raise ValueError(f"groups {groups} and size {size} must be positive")
        self.groups, self.size = groups, size
        self.names: tuple[str, ...] = (name,)

    def forward(self, batch: Batch) -> Tokens:
        """All tokens of a batch: content [b groups size 3].

        Raises:
            DataError: the entry has another shape, or a cloud has fewer points than a group.
        """
        points, valid = self._points(batch), batch.get("valid")
        centers, near = self.members(points, valid)
        coords = take(points, centers)
        content = take(points, near.flatten(1)).view(*near.shape, 3) - coords[:, :, None]
        column = torch.arange(self.groups, device=points.device).expand(len(points), -1)
        if valid is not None:
            column = torch.where(column < valid.sum(1, keepdim=True), column, -1)
        elif points.shape[1] < self.groups:
            column = torch.where(column < points.shape[1], column, -1)
        present = batch.get("present")
        if present is not None:
            column = torch.where(present, column, -1)
        ragged = valid is not None or present is not None or points.shape[1] < self.groups
        if ragged:  # whatever stands where there is no cloud, NaN too, is nothing from here on
            there = (column >= 0)[..., None]
            coords, content = coords.masked_fill(~there, 0), content.masked_fill(~there[..., None], 0)
        layout = TokenLayout(column, coords, torch.zeros_like(column), None, self.groups, ragged=ragged)
        return Tokens(layout, content)

    def members(
        self, points: Float[Tensor, "b n p"], valid: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Int[Tensor, "b g"], Int[Tensor, "b g s"]]:
        """Columns of the centers, and of the points of every group, nearest first."""
        centers = farthest(points, self.groups, valid=valid)
        return centers, nearest(take(points, centers), points, self.size, valid=valid)

    def counts(self, batch: Batch) -> None:
        """Every value of a token counts."""
        return

    def example(self, samples: int, draw: torch.Generator) -> dict[str, Float[Tensor, "b n 3"]]:
        """Small clouds that it can read: points on ellipsoids, most of them in no group, for checks."""
        points = torch.randn(samples, 4 * self.groups * self.size, 3, generator=draw)
        axes = 0.4 + torch.rand(samples, 1, 3, generator=draw)
        return {self.names[0]: points / points.norm(dim=-1, keepdim=True) * axes}

    def reach(self, batch: Batch, tokens: Bool[Tensor, "b g"]) -> dict[str, Bool[Tensor, "b n 3"]]:
        """Which values of a batch the given tokens hold, and those that say where the tokens are, for checks."""
        points = self._points(batch)
        centers, near = self.members(points, batch.get("valid"))
        marks = torch.zeros(points.shape[:2], dtype=torch.long, device=points.device)
        marks = marks.scatter_add(1, near.flatten(1), tokens.long().repeat_interleave(self.size, 1))
        marks = marks.scatter_add(1, centers, torch.ones_like(centers))
        return {self.names[0]: (marks > 0)[..., None].expand(-1, -1, 3)}

    def _points(self, batch: Batch) -> Float[Tensor, "b n 3"]:
        name = self.names[0]
        if name not in batch:
            raise KeyError(f"the batch has no {name!r} (it has {sorted(batch)})")
        points = batch[name]
        if points.ndim != 3 or points.shape[-1] != 3:
            raise DataError(f"{name!r} has the shape {tuple(points.shape)}; clouds are [clouds, points, 3]")
        fewest = points.shape[1]
        if "valid" in batch:
            fewest = int(batch["valid"].sum(1).min())
        if fewest < self.size:
            raise DataError(
                f"a cloud in {name!r} has {fewest} points, fewer than the {self.size} of one group: leave it out, "
                "sample it more densely, or make the groups smaller"
            )
        return points


def ball() -> Priority:
    """Hide the tokens nearest to a random token of the sample: one region in place of scattered tokens."""

    def priority(tokens: Tokens, key: Key) -> Float[Tensor, "b n"]:
        layout = tokens.layout
        chance = uniform(key, layout.id.shape[1], stream=SEED).masked_fill(~layout.exists, -1.0)
        seed = take(layout.coords, chance.argmax(1, keepdim=True))
        return -(layout.coords - seed).square().sum(-1)

    return priority
