"""What the answers are.

A target is a module because some carry weights (a teacher, a code book). Its output is aligned with the full set of
tokens; the plan picks from it afterwards, so a target never learns what is hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

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
    """

    def __init__(self, *, eps: float = 1e-6, floor: float = 0.0, channels: int = 1, eps_outside: bool = False) -> None:
        super().__init__()
        self.eps, self.floor, self.channels, self.eps_outside = eps, floor, channels, eps_outside

    def scale(self, content: Float[Tensor, "b n what"]) -> tuple[Tensor, Tensor]:
        """Mean and divisor of every token, each [b n 1 channels]; needed to show a guess in intensity units."""
        x = content.reshape(*content.shape[:-1], -1, self.channels)
        variance = x.var(-2, keepdim=True).clamp_min(self.floor)
        divisor = variance.sqrt() + self.eps if self.eps_outside else (variance + self.eps).sqrt()
        return x.mean(-2, keepdim=True), divisor

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n what"]:
        """The normalized content of all tokens."""
        mean, divisor = self.scale(tokens.content)
        x = tokens.content.reshape(*tokens.content.shape[:-1], -1, self.channels)
        return ((x - mean) / divisor).flatten(-2)


class Codes(nn.Module):
    """Class index of every token under a frozen code book (BEiT style).

    Args:
        book: maps content [b n what] to logits or distances [b n classes] of which the largest wins.
    """

    def __init__(self, book: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.book = book
        if isinstance(book, nn.Module):
            book.requires_grad_(False)

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
