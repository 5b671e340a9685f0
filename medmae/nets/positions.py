"""Position codes computed from coordinates.

Networks embed coordinates, not table rows, so that any volume size, spacing or patch works without surgery on tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
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
