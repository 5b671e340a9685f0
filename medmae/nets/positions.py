"""Position codes computed from coordinates.

Networks embed coordinates, not table rows, so that any volume size, spacing or patch works without surgery on tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def sincos(
    coords: Float[Tensor, "*b p"], width: int, *, order: Sequence[int] | None = None, temperature: float = 10000.0
) -> Float[Tensor, "*b d"]:
    """Fixed sine-cosine code: for each axis in ``order``, ``width / 2p`` sines, then as many cosines.

    Frequency q of n is ``temperature ** (-q / n)``. Widths that 2p does not divide are filled up with zeros.

    Args:
        coords: positions, any unit.
        width: length of the code.
        order: axes in the order of their parts. Default: second axis first, then first, then the others, which is
            the order of MAE (whose grid is built column first) and of MONAI's 3-D table; it shows for non-cubic grids.
        temperature: base of the frequencies.

    Raises:
        ValueError: the width is too small to code all axes.
    """
    p = coords.shape[-1]
    n = width // (2 * p)
    if n < 1:
        raise ValueError(f"a width of {width} cannot code {p} axes: at least {2 * p} are needed")
    axes = tuple(order) if order is not None else ((1, 0, *range(2, p)) if p > 1 else (0,))
    if sorted(axes) != list(range(p)):
        raise ValueError(f"order {axes} is not a permutation of the {p} axes")
    omega = torch.exp(torch.arange(n, device=coords.device, dtype=torch.float64) * (-math.log(temperature) / n))
    angle = coords.double()[..., list(axes)].unsqueeze(-1) * omega
    code = torch.stack([angle.sin(), angle.cos()], -2).flatten(-3).float()
    return nn.functional.pad(code, (0, width - code.shape[-1]))


class SinCos(nn.Module):
    """:func:`sincos` as a part of a network; it has no parameters."""

    def __init__(self, width: int, *, order: Sequence[int] | None = None, temperature: float = 10000.0) -> None:
        super().__init__()
        self.width, self.order, self.temperature = width, order, temperature

    def forward(self, coords: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """The code of every position."""
        return sincos(coords, self.width, order=self.order, temperature=self.temperature)


class SinCosParts(nn.Module):
    """A code of the place followed by codes of further coordinates, such as a group of bands or a date (SatMAE).

    Args:
        width: length of all of it.
        axes: coordinates that are the place, the first ones; the order inside their code is that of :func:`sincos`.
        codes: coordinates behind them.
        code_width: length of the codes of these, in equal parts.
    """

    def __init__(self, width: int, *, axes: int, codes: int, code_width: int) -> None:
        super().__init__()
        each = code_width // codes
        self.parts = ((tuple(range(axes)), width - codes * each), *(((axes + i,), each) for i in range(codes)))

    def forward(self, coords: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """The codes of every position."""
        return torch.cat([sincos(coords[..., list(axes)], width) for axes, width in self.parts], -1)


class Counted(nn.Module):
    """A fixed code of the place in the row-major count of all grid cells, as in a sentence (VideoMAE).

    Sines and cosines alternate: feature 2q and 2q+1 are sine and cosine at frequency ``temperature ** (-2q / width)``.
    The code of a cell depends on the size of the grid: pre-train at the size that is used later.

    Args:
        shape: cells per axis.
        width: length of the code.
        temperature: base of the frequencies.
    """

    def __init__(self, shape: Sequence[int], width: int, *, temperature: float = 10000.0) -> None:
        super().__init__()
        self.shape, self.width, self.temperature = tuple(shape), width, temperature

    def forward(self, coords: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """The code of every cell; coordinates are grid indices."""
        place = row_major(coords, self.shape).unsqueeze(-1)
        exponent = torch.arange(0, self.width, 2, device=coords.device, dtype=torch.float64) / self.width
        angle = place * torch.exp(exponent * -math.log(self.temperature))
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., : self.width].float()


class Learned(nn.Module):
    """The sum of learned tables, one for each group of axes.

    One group of all axes is the usual learned table; ``((0,), (1, 2))`` is one table over time and one over space,
    which share their rows among all places and all times (MAE-ST, section 3.1).

    Args:
        shape: cells per axis.
        width: features per position.
        groups: axes of each table; each axis once. Default: one table over all axes.

    Raises:
        ValueError: an axis is in no group or in two.
    """

    def __init__(self, shape: Sequence[int], width: int, *, groups: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.groups = (tuple(range(len(self.shape))),) if groups is None else tuple(tuple(axes) for axes in groups)
        if sorted(axis for axes in self.groups for axis in axes) != list(range(len(self.shape))):
            raise ValueError(f"groups {self.groups} do not hold each of the {len(self.shape)} axes once")
        sizes = [math.prod(self.shape[axis] for axis in axes) for axes in self.groups]
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(size, width)) for size in sizes)
        for table in self.tables:
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, coords: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """The row of every position in each table, added up; coordinates are grid indices."""
        rows = [row_major(coords[..., list(axes)], [self.shape[axis] for axis in axes]) for axes in self.groups]
        return torch.stack([table[row] for table, row in zip(self.tables, rows, strict=True)]).sum(0)


def row_major(coords: Float[Tensor, "*b p"], shape: Sequence[int]) -> Int[Tensor, "*b"]:
    """Number of every grid cell when cells are counted along the last axis first; coordinates are grid indices."""
    place = coords[..., 0].round().long()
    for axis in range(1, len(shape)):
        place = place * shape[axis] + coords[..., axis].round().long()
    return place
