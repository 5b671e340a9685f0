"""What a network of convolutions asks for, step by step, and one of two answers: whole maps times the mask.

A network says what is done; an execution says with what. :class:`Masked` keeps whole maps in which hidden voxels are
zero, the way sparse convolutions are usually emulated: simple, static in shape, fit for compilation, and the reference
for the other. :class:`medmae.nets.sparse.blocks.Blocks` keeps the visible voxels only.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .cells import Cells, Scale
from .normalization import normalize_map, normalize_rows


@runtime_checkable
class Execution(Protocol):
    """The steps of a network over the visible cubes of a batch.

    Features are tensors in a form of the execution's own; ``scale`` says of which map they are.

    Attributes:
        cells: what is visible.
    """

    cells: Cells

    def conv(self, x: Tensor, conv: Any, scale: Scale) -> Tensor:
        """A convolution of features at ``scale``; those of the result are at ``scale`` times the stride."""

    def norm(self, x: Tensor, norm: Any, scale: Scale) -> Tensor:
        """Instance normalization over the visible voxels of each sample."""

    def pool(self, x: Tensor, pool: Any, scale: Scale) -> Tensor:
        """Pooling whose window is its stride, in which hidden voxels are zeros."""

    def transposed(self, x: Tensor, conv: Any, scale: Scale) -> Tensor:
        """A transposed convolution whose window is its stride, from ``scale`` to the finer map."""

    def dense(self, x: Tensor, scale: Scale) -> Float[Tensor, "b c *size"]:
        """The features as a whole map, zero at hidden voxels."""

    def spread(self, x: Tensor, token: Float[Tensor, " c"], scale: Scale, onto: Execution) -> Tensor:
        """The features in the form of another execution over more cubes, the token wherever there were none."""

    def restrict(self, x: Float[Tensor, "b c *size"], scale: Scale) -> Tensor:
        """What is visible of a whole map."""


class Masked:
    """Whole maps, zero at hidden voxels.

    Args:
        cells: what is visible; where it is known to be all, nothing is masked and the layers are the stock ones.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self._masks: dict[Scale, Tensor] = {}

    def mask(self, scale: Scale) -> Bool[Tensor, "b 1 *size"]:
        """Where maps of a scale are visible."""
        if scale not in self._masks:
            self._masks[scale] = self.cells.mask(scale)
        return self._masks[scale]

    def _hide(self, x: Tensor, scale: Scale) -> Tensor:
        """Zero hidden voxels of a map that nobody else holds."""
        if self.cells.complete:
            return x
        return x.mul_(self.mask(scale).to(x.dtype)) if not torch.compiler.is_compiling() else x * self.mask(scale)

    def conv(self, x: Tensor, conv: Any, scale: Scale) -> Tensor:
        """The stock convolution, then the mask: a bias would fill hidden voxels."""
        return self._hide(conv(x), times(scale, conv.stride))

    def norm(self, x: Tensor, norm: Any, scale: Scale) -> Tensor:
        """Statistics of what is visible."""
        if self.cells.complete:
            return _plain_norm(x, norm)
        return normalize_map(x, self.mask(scale), norm.weight, norm.bias, eps=norm.eps)

    def pool(self, x: Tensor, pool: Any, scale: Scale) -> Tensor:
        """The stock pooling; a window is visible where any voxel of it is, so there is nothing to hide."""
        y: Tensor = pool(x)
        return y

    def transposed(self, x: Tensor, conv: Any, scale: Scale) -> Tensor:
        """The stock transposed convolution, then the mask."""
        return self._hide(conv(x), over(scale, conv.stride))

    def dense(self, x: Tensor, scale: Scale) -> Float[Tensor, "b c *size"]:
        """They are."""
        return x

    def spread(self, x: Tensor, token: Float[Tensor, " c"], scale: Scale, onto: Execution) -> Tensor:
        """The token where nothing was visible, then what the other execution sees of it."""
        filled = torch.where(self.mask(scale), x, token.to(x.dtype).view(1, -1, *(1,) * (x.ndim - 2)))
        return onto.restrict(filled, scale)

    def restrict(self, x: Float[Tensor, "b c *size"], scale: Scale) -> Tensor:
        """Zeros at hidden voxels."""
        return x if self.cells.complete else x * self.mask(scale)


def _plain_norm(x: Tensor, norm: Any) -> Tensor:
    """Instance norm of whole maps.

    torch's copies a channels-last map to another layout and the next convolution copies it back; as rows it is
    normalized where it is.
    """
    rows = x.movedim(1, -1)
    if torch.compiler.is_compiling() or not rows.is_contiguous():
        return F.instance_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    counts = [rows[0, ..., 0].numel()] * len(x)
    y = normalize_rows(rows.flatten(0, -2), counts, norm.weight, norm.bias, eps=norm.eps)
    return y.view(rows.shape).movedim(-1, 1)


def times(scale: Scale, stride: Any) -> Scale:
    """The scale after a stride."""
    return tuple(s * t for s, t in zip(scale, stride, strict=True))


def over(scale: Scale, stride: Any) -> Scale:
    """The scale before a stride."""
    return tuple(s // t for s, t in zip(scale, stride, strict=True))


def stride_of(pool: nn.Module, axes: int) -> tuple[int, ...]:
    """The stride of a pooling layer, one entry per axis."""
    stride: Any = pool.stride
    return tuple(stride) if isinstance(stride, tuple | list) else (int(stride),) * axes
