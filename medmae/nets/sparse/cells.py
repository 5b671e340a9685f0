"""Which cubes of a volume are there, at every resolution, and where their neighbors are.

A mask is a union of cubes, and it stays one on every map of a convolutional network: a cube of 16 voxels is one of 8
after a stride of 2, and where a voxel of a map is larger than a cube, the cubes under it merge into one that is visible
when any of them is. So a mask is kept as one Boolean per cube, and everything else follows from it: the mask of a map,
the list of visible cubes, and tables that say which rows a convolution reads.

The set is a value that is passed to whoever computes with it. Nothing is stored in a module, so a second forward pass
before the first backward pass, recomputed activations and two encoders in one process see the mask they were given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medmae.core.errors import UsageError

Scale = tuple[int, ...]
"""Voxels of the input per voxel of a map, along every axis."""


@dataclass(frozen=True)
class Halo:
    """How to cut tiles, cubes with a rim, out of rows.

    Attributes:
        rows: which row every voxel of every tile reads; any row where there is none.
        holes: positions in ``rows`` where there is none.
        size: voxels per axis of a tile.
    """

    rows: Int[Tensor, " r"]
    holes: Int[Tensor, " h"]
    size: tuple[int, ...]


@dataclass(frozen=True)
class Taps:
    """How a convolution gathers what it reads, voxel by voxel.

    Attributes:
        rows: for every output row and position in the kernel, the input row; the number of input rows where there is
            none.
        back: for every input row, the positions in ``rows`` (flattened) that read it, padded with ``len(rows) * k``.
    """

    rows: Int[Tensor, "o k"]
    back: Int[Tensor, "i q"]


class Level:
    """The visible cubes on the maps of one resolution; rows of features are ordered by sample, cube, voxel.

    Args:
        grid: which cubes are visible, on the CPU.
        edge: voxels of the map per cube and axis.
        device: where tables go.

    Attributes:
        shape: cubes per axis.
        size: voxels of the map per axis.
        blocks: number of visible cubes in the batch.
        rows: number of visible voxels in the batch.
        counts: visible voxels of every sample.
        ids: index of every visible cube in the flattened batch of grids.
    """

    def __init__(self, grid: Bool[Tensor, "b ..."], edge: tuple[int, ...], device: torch.device) -> None:
        self.grid, self.edge, self.device = grid, edge, device
        self.samples, self.shape = len(grid), tuple(grid.shape[1:])
        self.size = tuple(n * e for n, e in zip(self.shape, edge, strict=True))
        self.volume = math.prod(edge)
        self._ids = grid.flatten().nonzero()[:, 0]
        self.ids = self._ids.to(device)
        self.blocks, self.rows = len(self._ids), len(self._ids) * self.volume
        self.counts = [int(n) * self.volume for n in grid.flatten(1).sum(1)]
        self._halos: dict[object, Halo] = {}
        self._taps: dict[object, Taps] = {}
        self._places: Tensor | None = None

    def index(self) -> Int[Tensor, "b ..."]:
        """Place of every visible cube in the list; the number of visible cubes where a cube is hidden. On the CPU."""
        place = torch.full((self.grid.numel(),), self.blocks)
        place[self._ids] = torch.arange(self.blocks)
        return place.view(self.grid.shape)

    def _neighbors(self) -> Int[Tensor, "n q"]:
        """Places of the 3^d cubes around each visible one, itself in the middle; ``blocks`` where hidden or outside."""
        padded = torch.full((self.samples, *(n + 2 for n in self.shape)), self.blocks)
        padded[(slice(None), *(slice(1, n + 1) for n in self.shape))] = self.index()
        center = torch.stack(torch.unravel_index(self._ids, self.grid.shape), 1)
        center[:, 1:] += 1
        strides = torch.tensor(padded.stride())
        steps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=len(self.shape))))
        return padded.flatten()[(center @ strides)[:, None] + steps @ strides[1:]]

    def halo(self, low: tuple[int, ...], high: tuple[int, ...]) -> Halo:
        """Tiles with a rim of ``low`` voxels before and ``high`` voxels after each cube, at most its edge.

        All of it is computed from one small table on the CPU, so that a GPU is asked nothing.
        """
        if (low, high) not in self._halos:
            self._halos[low, high] = self._cut(low, high)
        return self._halos[low, high]

    def _cut(self, low: tuple[int, ...], high: tuple[int, ...]) -> Halo:
        d = len(self.edge)
        size = tuple(lo + e + hi for lo, e, hi in zip(low, self.edge, high, strict=True))
        which, within = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        for axis in range(d):
            e = self.edge[axis]
            place = torch.arange(-low[axis], e + high[axis])
            side = (place >= 0).long() + (place >= e).long()
            which = (which[:, None] * 3 + side).flatten()
            within = (within[:, None] * e + place % e).flatten()
        near = self._neighbors()
        absent = near >= self.blocks
        holes = []  # every hole: positions of a direction, in the tiles whose neighbor there is absent
        for direction in sorted(set(which.tolist())):
            tiles = absent[:, direction].nonzero()[:, 0]
            if len(tiles):
                voxels = (which == direction).nonzero()[:, 0]
                holes.append((tiles[:, None] * len(which) + voxels).flatten())
        gaps = torch.cat(holes) if holes else torch.zeros(0, dtype=torch.long)
        base = (near.masked_fill(absent, 0) * self.volume).to(self.device)
        rows = base.index_select(1, which.to(self.device)).add_(within.to(self.device)).flatten()
        return Halo(rows, gaps.to(self.device), size)

    def places(self) -> Int[Tensor, "r q"]:
        """Sample and position on the map of every row."""
        if self._places is None:
            cube = torch.stack(torch.unravel_index(self._ids, self.grid.shape), 1)
            edge = torch.tensor((1, *self.edge))
            axes = [torch.zeros(1, dtype=torch.long), *(torch.arange(e) for e in self.edge)]
            voxel = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
            self._places = (cube[:, None] * edge + voxel).flatten(0, 1).to(self.device)
        return self._places

    def lookup(self, rim: tuple[int, ...]) -> Int[Tensor, "b ..."]:
        """The row of every voxel of the map, with a rim around it; the number of rows where there is none."""
        shape = (self.samples, *(n + 2 * r for n, r in zip(self.size, rim, strict=True)))
        table = torch.full(shape, self.rows, device=self.device)
        shift = torch.tensor((0, *rim), device=self.device)
        strides = torch.tensor(table.stride(), device=self.device)
        where = ((self.places() + shift) * strides).sum(1)
        table.view(-1).scatter_(0, where, torch.arange(self.rows, device=self.device))
        return table

    def taps(self, finer: Level, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Taps:
        """What a convolution from the maps of ``finer`` to those of this level reads, and who reads what."""
        key = (finer.size, kernel, stride, padding)
        if key not in self._taps:
            self._taps[key] = self._gather(finer, kernel, stride, padding)
        return self._taps[key]

    def _gather(self, finer: Level, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Taps:
        device, offsets = self.device, list(itertools.product(*(range(k) for k in kernel)))
        table = finer.lookup(padding)
        strides = torch.tensor(table.stride(), device=device)
        step = torch.tensor((1, *stride), device=device)
        start = (self.places() * step * strides).sum(1)
        reach = (torch.tensor(offsets, device=device) * strides[1:]).sum(1)
        rows = table.view(-1)[start[:, None] + reach]
        # An input voxel i is read at kernel position k by the output voxel (i + p - k) / s, where that is whole.
        own = self.lookup(tuple(-(-k // s) + p for k, s, p in zip(kernel, stride, padding, strict=True)))
        mine = torch.tensor(own.stride(), device=device)
        rim = torch.tensor([-(-k // s) + p for k, s, p in zip(kernel, stride, padding, strict=True)], device=device)
        where = finer.places()
        none = self.rows * len(offsets)
        back = []
        for first in itertools.product(*(range(-(-k // s)) for k, s in zip(kernel, stride, strict=True))):
            # On every axis the kernel positions that fit are (i + p) % s, then every s-th after it.
            shifted = where[:, 1:] + torch.tensor(padding, device=device)
            part = torch.tensor(stride, device=device)
            position = shifted % part + torch.tensor(first, device=device) * part
            inside = (position < torch.tensor(kernel, device=device)).all(1)
            out = torch.div(shifted - position, part, rounding_mode="floor") + rim
            reader = own.view(-1)[(where[:, 0] * mine[0] + (out * mine[1:]).sum(1)).clamp(0, own.numel() - 1)]
            flat = torch.zeros_like(reader)
            for axis, k in enumerate(kernel):
                flat = flat * k + position[:, axis]
            back.append(torch.where(inside & (reader < self.rows), reader * len(offsets) + flat, none))
        return Taps(rows, torch.stack(back, 1))


@dataclass(frozen=True)
class Cells:
    """The cubes of a batch of volumes that take part in a computation.

    Attributes:
        visible: one Boolean per cube.
        block: voxels per axis of a cube.
        complete: whether all cubes are visible, where that is known without looking.
    """

    visible: Bool[Tensor, "b ..."]
    block: tuple[int, ...]
    complete: bool = False
    _levels: dict[Scale, Level] = field(default_factory=dict, repr=False, compare=False)
    _host: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def level(self, scale: Scale) -> Level:
        """The visible cubes on maps of a scale.

        Raises:
            UsageError: cubes and voxels of that map do not nest.
        """
        if scale not in self._levels:
            if not self._host:  # the one time that a GPU is waited for
                self._host.append(self.visible.cpu())
            grid, edge = _merge(self._host[0], self.block, scale)
            self._levels[scale] = Level(grid, edge, self.visible.device)
        return self._levels[scale]

    def mask(self, scale: Scale) -> Bool[Tensor, "b 1 *size"]:
        """True at the visible voxels of maps of a scale."""
        grid, edge = _merge(self.visible, self.block, scale)
        for axis, e in enumerate(edge):
            grid = grid.repeat_interleave(e, axis + 1)
        return grid[:, None]

    def all(self) -> Cells:
        """Every cube of the same volumes."""
        return Cells(torch.ones_like(self.visible), self.block, complete=True)


def _merge(grid: Tensor, block: Sequence[int], scale: Scale) -> tuple[Tensor, tuple[int, ...]]:
    """Cubes on maps of a scale: which are visible, and their edges there."""
    edge = []
    for axis, (e, s) in enumerate(zip(block, scale, strict=True)):
        if e % s == 0:
            edge.append(e // s)
            continue
        n = grid.shape[axis + 1]
        if s % e or n % (s // e):
            raise UsageError(
                f"cubes of {tuple(block)} voxels do not nest with maps at 1/{tuple(scale)} of {n} cubes along axis "
                f"{axis}: choose cubes that are a multiple or a divisor of the strides' product on every axis"
            )
        edge.append(1)
        grid = grid.reshape(*grid.shape[: axis + 1], n // (s // e), s // e, *grid.shape[axis + 2 :]).any(axis + 2)
    return grid, tuple(edge)
