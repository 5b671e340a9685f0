"""An exponential moving average of the trained weights, which usually generalizes better than the last ones.

Only trained parameters are averaged; buffers and teachers are what they are. Early on the decay is smaller,
``(1 + step) / (10 + step)``, so that the average forgets the random initialization.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averaged copies of the trainable parameters of ``method``, by name (sharded where the parameter is)."""

    def __init__(self, method: nn.Module, *, decay: float | int) -> None:
        """Start at the present weights."""
        self.decay = decay
        self._method = method
        self.weights: dict[str, Tensor] = {
            n: p.detach().clone() for n, p in method.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the present weights after optimizer step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._method.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the method has the averaged weights; afterwards exactly the trained ones again."""
        held = {n: p for n, p in self._method.named_parameters() if n in self.weights}
        trained = {n: p.detach().clone() for n, p in held.items()}
        self._fill(held, self.weights)
        try:
            yield
        finally:
            self._fill(held, trained)

    @staticmethod
    @torch.no_grad()
    def _fill(held: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, parameter in held.items():
            parameter.copy_(values[name])
