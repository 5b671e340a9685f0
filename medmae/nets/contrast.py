"""What contrastive methods put on top of an encoder: a mean over places, small heads, and a teacher that follows.

The heads normalize over features and never over the batch. Batches of 3-D volumes are small, so batch statistics would
be noise; and a head that mixes samples would need synchronization, and could not embed a single patient.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from medmae.core.errors import MissingDependency


def pooled(
    level: Float[Tensor, "b d *size"], foreground: Shaped[Tensor, "b 1 *fine"] | None = None
) -> Float[Tensor, "b d"]:
    """Mean of a map over its places, each weighed by its share of foreground; over all where there is no foreground.

    Args:
        level: a map of an encoder.
        foreground: voxels that count, at any resolution.
    """
    values = level.flatten(2).float()
    if foreground is None:
        return values.mean(-1)
    shrink: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[level.ndim - 2]
    return weighted_mean(values.mT, shrink(foreground.float(), level.shape[2:]).flatten(1))


def weighted_mean(values: Float[Tensor, "b n d"], weight: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """Weighted mean over ``n``; the plain mean where all weights are zero."""
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, torch.ones_like(weight))
    return (values * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


class Head(nn.Module):
    """Linear, layer norm, ReLU, linear: the projection and prediction heads of SimCLR and BYOL.

    Args:
        width: features that come in.
        hidden: features in between.
        out: features that go out.
    """

    def __init__(self, width: int, *, hidden: int, out: int) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, out)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b out"]:
        """The projection."""
        y: Tensor = self.outer(F.relu(self.norm(self.inner(x))))
        return y


class Following(nn.Module):
    """A teacher that trails behind encoder and projection head, and is never trained.

    Args:
        encoder: to copy, as ``teacher``.
        projector: to copy.
        momentum: share of the teacher that stays at each :meth:`follow`, in [0, 1].
        epochs: epochs over which the momentum rises to one, along half a cosine; None keeps it.

    Raises:
        ValueError: momentum or epochs out of range.
    """

    momentum: Tensor

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, *, momentum: float = 0.99, epochs: int | None = None
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], not {momentum}")
        if epochs is not None and epochs < 1:
            raise ValueError(f"the momentum rises over at least 1 epoch, not {epochs}")
        self.first, self.epochs = momentum, epochs
        self.teacher = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.projector = copy.deepcopy(projector).eval().requires_grad_(False)
        # Part of the state: a run that is resumed in the middle of an epoch goes on with the momentum it had.
        self.register_buffer("momentum", torch.tensor(float(momentum)))

    def train(self, mode: bool = True) -> Following:
        """Keep the teacher in evaluation mode whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        self.projector.eval()
        return self

    @torch.no_grad()
    def follow(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Move the teacher towards the student."""
        for mine, student in ((self.teacher, encoder), (self.projector, projector)):
            for held, given in zip(mine.parameters(), student.parameters(), strict=True):
                held.lerp_(given.to(held.dtype), (1 - self.momentum).to(held.dtype))
            for state, news in zip(mine.buffers(), student.buffers(), strict=True):
                state.copy_(news)

    def after_epoch(self, epoch: int) -> None:
        """Set the momentum of the epoch after ``epoch`` (from 0)."""
        if self.epochs is not None:
            way = min((epoch + 1) / self.epochs, 1.0)
            self.momentum.fill_(1 - (1 - self.first) * (math.cos(math.pi * way) + 1) / 2)


def lightly_losses() -> Any:
    """The losses of lightly, which this toolkit uses in place of losses of its own.

    Raises:
        MissingDependency: it is not installed.
    """
    from medmae.torchvision_guard import guard

    guard()  # lightly imports torchvision
    try:
        import lightly.loss
    except ImportError as error:
        raise MissingDependency(
            f"contrastive losses come from lightly, which cannot be imported ({error}): "
            "pip install 'medmae[contrastive]'"
        ) from error
    return lightly.loss
