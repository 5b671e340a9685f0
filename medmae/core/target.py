"""What the answers are.

A target is a module because some carry weights (a teacher, a code book). Its output is aligned with the full set of
tokens; the plan picks from it afterwards, so a target never learns what is hidden.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .grid import Grid
from .tokens import Tokens


class Content(nn.Module):
    """The content itself."""

    def forward(self, tokens: Tokens) -> Shaped[Tensor, "b n *what"]:
        """The content of all tokens."""
        return tokens.content


class Normalized(nn.Module):
    """Content with zero mean and unit variance inside each token (MAE, section 4.1).

    Args:
        eps: added to the variance.
        floor: smallest variance divided by. Without it a nearly constant patch of air turns its noise or ringing
            into a full-weight target. In squared intensity units; 0 is the published rule.
        channels: statistics per channel (VideoMAE) where larger than one; the channel is the fastest axis.
        eps_outside: add ``eps`` to the standard deviation (VideoMAE) in place of the variance (MAE).
        biased: divide the squares by the number of values, as a layer norm does, in place of one less.
    """

    def __init__(
        self,
        *,
        eps: float = 1e-6,
        floor: float = 0.0,
        channels: int = 1,
        eps_outside: bool = False,
        biased: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.floor, self.channels, self.eps_outside = eps, floor, channels, eps_outside
        self.biased = biased

    def scale(self, content: Float[Tensor, "b n what"]) -> tuple[Tensor, Tensor]:
        """Mean and divisor of every token, each [b n 1 channels]; needed to show a guess in intensity units."""
        x = content.reshape(*content.shape[:-1], -1, self.channels)
        variance = x.var(-2, keepdim=True, unbiased=not self.biased).clamp_min(self.floor)
        divisor = variance.sqrt() + self.eps if self.eps_outside else (variance + self.eps).sqrt()
        return x.mean(-2, keepdim=True), divisor

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n what"]:
        """The normalized content of all tokens."""
        mean, divisor = self.scale(tokens.content)
        x = tokens.content.reshape(*tokens.content.shape[:-1], -1, self.channels)
        return ((x - mean) / divisor).flatten(-2)


class Hog(nn.Module):
    """Histograms of oriented gradients, normalized per cell (MaskFeat, section 3.2).

    Gradients are central differences along the last two axes with mirrored borders; each voxel votes with its
    magnitude for the two nearest of ``bins`` unsigned orientations. Earlier axes (depth, time) are pooled in the cell.

    Args:
        grid: how each image was cut; all modalities share it.
        bins: orientations in [0, pi).
        cell: edge of a cell in the last two axes; must divide the patch there.
        eps: added to the norm of a histogram.

    Raises:
        ValueError: the grid has fewer than two axes, or the cell does not divide the patch.
    """

    def __init__(self, grid: Grid, *, bins: int = 9, cell: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        if len(grid.size) < 2 or any(p % cell for p in grid.patch[-2:]):
            raise ValueError(f"cells of {cell} do not divide the last two axes of patch {grid.patch}")
        self.grid, self.bins, self.cell, self.eps = grid, bins, cell, eps

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Float[Tensor, "b n what"]:
        """Histograms of the cells of every token, one after the other: channel, cell row, cell column, bin."""
        grid, cell = self.grid, self.cell
        b, n = tokens.content.shape[:2]
        image = grid.unpatchify(tokens.content.reshape(-1, grid.length, grid.content))
        x = torch.nn.functional.pad(image.flatten(0, -3)[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
        across = x[:, 1:-1, 2:] - x[:, 1:-1, :-2]
        down = x[:, 2:, 1:-1] - x[:, :-2, 1:-1]
        place = torch.atan2(down, across).remainder(math.pi) * (self.bins / math.pi)
        low = place.floor()
        size = torch.hypot(across, down)[..., None]
        share = (place - low)[..., None]
        first = torch.nn.functional.one_hot(low.long() % self.bins, self.bins)
        second = torch.nn.functional.one_hot((low.long() + 1) % self.bins, self.bins)
        votes = size * (first * (1 - share) + second * share)
        votes = votes.reshape(*image.shape, self.bins).movedim(-1, 2).flatten(1, 2)  # channel-major, then bin
        patches = Grid(grid.size, grid.patch, grid.channels * self.bins).patchify(votes)
        rows, columns = grid.patch[-2] // cell, grid.patch[-1] // cell
        split = patches.reshape(-1, math.prod(grid.patch[:-2]), rows, cell, columns, cell, grid.channels, self.bins)
        cells = split.sum((1, 3, 5)).permute(0, 3, 1, 2, 4)
        cells = cells / (cells.norm(dim=-1, keepdim=True) + self.eps)
        return cells.reshape(b, n, -1)


class Codes(nn.Module):
    """Class index of every token under a frozen code book (BEiT style).

    Args:
        book: maps content [b n what] to logits or distances [b n classes] of which the largest wins.
    """

    def __init__(self, book: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.book = book
        if isinstance(book, nn.Module):
            book.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Codes:
        """Keep the code book in evaluation mode whatever the student does."""
        super().train(mode)
        if isinstance(self.book, nn.Module):
            self.book.eval()
        return self

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Shaped[Tensor, "b n"]:
        """The class of every token."""
        return self.book(tokens.content).argmax(-1)


class Features(nn.Module):
    """Features of a teacher that sees everything (data2vec, dBOT).

    Args:
        student: the encoder to copy; called as ``encoder(tokens, layout)`` and read at ``.tokens.content``.
        momentum: how much of the teacher stays at each :meth:`follow`; None keeps it frozen.
        normalize: layer-normalize the features (without weights).
    """

    def __init__(self, student: nn.Module, *, momentum: float | None = 0.999, normalize: bool = True) -> None:
        super().__init__()
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1] or None, not {momentum}")
        self.momentum, self.normalize = momentum, normalize
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Features:
        """Keep the teacher in evaluation mode whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move the teacher towards the student; does nothing where it is frozen."""
        if self.momentum is None:
            return
        for mine, yours in zip(self.teacher.parameters(), student.parameters(), strict=True):
            mine.lerp_(yours.to(mine.dtype), 1 - self.momentum)
        for held, given in zip(self.teacher.buffers(), student.buffers(), strict=True):
            held.copy_(given)

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """The teacher's features of all tokens."""
        x = self.teacher(tokens, tokens.layout).tokens.content
        return torch.nn.functional.layer_norm(x, x.shape[-1:]) if self.normalize else x
