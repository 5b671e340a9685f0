"""The one interface between a method and whoever trains it.

The trainer hands over a batch and gets named losses; it never learns what a mask is. Inheritance ends here: a method is
this class and one leaf.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .pace import STEADY, Pace
from .tokens import Batch


class Method(nn.Module, ABC):
    """A pre-training method.

    Attributes:
        sequences: entries of a batch it reads, in the order of the columns of ``present``.
    """

    sequences: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch; their sum is minimized."""

    def after_step(self) -> None:
        """Called after every optimizer step (teachers follow here)."""
        return

    def after_epoch(self, epoch: int) -> None:
        """Called after every pass over the data, with its number from 0 (schedules of the method move here)."""
        return

    def pace(self, name: str) -> Pace:
        """How fast the parameter ``name`` learns next to the others; the default is that all learn alike."""
        return STEADY

    def check_training(self, *, batch: int, world: int) -> None:
        """Called once before data is opened, to refuse what cannot train; the default refuses nothing.

        Args:
            batch: samples of one forward pass.
            world: processes that train together.

        Raises:
            UsageError: settings that cannot train this method.
            MissingDependency: a package that only training needs.
        """
        return

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute activations in the backward pass, where the networks inside support it, to save memory."""
        for module in self.modules():
            if hasattr(module, "recompute"):
                setattr(module, "recompute", on)  # noqa: B010 - modules are duck-typed here

    @staticmethod
    def keys(batch: Batch) -> Tensor:
        """The random keys of the samples.

        Raises:
            ValueError: the batch has none. Plans are functions of the key, so a missing key is never replaced silently.
        """
        if "key" not in batch:
            raise ValueError(
                "the batch has no 'key' (Int64[b]); plans are pure functions of it, see medmae.core.random"
            )
        return batch["key"].to(torch.int64)
