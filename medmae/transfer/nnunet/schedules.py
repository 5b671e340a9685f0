"""Learning rates for fine-tuning inside nnU-Net.

nnU-Net gives every parameter the same rate at every epoch. Pre-trained weights want more care: a random decoder must
not spoil them in the first epochs, and early layers should move less than late ones. So parameters are grouped by
their depth, each group has a factor, and a course says what the rate of an epoch is, for the encoder and for the rest.

Sawtooth (Revisiting MAE pre-training for 3-D medical image segmentation, CVPR 2025): the decoder alone warms up, then
everything warms up, then it decays polynomially. Warm-up (OpenMind, ICCV 2025): one linear warm-up of everything, with
AdamW, which is what transformers want.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from medmae.core.errors import UsageError

EXPONENT = 0.9
"""Of the polynomial decay; nnU-Net's own."""
PEAK = {"sawtooth": 1e-3, "warmup": 1e-4, "scratch": 1e-2}
WARMUP = 50
_LEVEL = re.compile(r"\b(?:stages|blocks)\.(?:blocks\.)?(\d+)\.")


@dataclass(frozen=True)
class Course:
    """The learning rate over a training.

    Attributes:
        epochs: length of the training.
        peak: highest rate.
        alone: first epochs in which only the decoder warms up, linearly.
        together: following epochs in which everything warms up, linearly.
    """

    epochs: int
    peak: float
    alone: int = 0
    together: int = 0

    def rate(self, epoch: int, *, encoder: bool) -> float:
        """The rate of an epoch (from 0); for the encoder it is 0 while the decoder warms up alone."""
        if epoch < self.alone:
            return 0.0 if encoder else self.peak * (epoch + 1) / self.alone
        since = epoch - self.alone
        if since < self.together:
            return self.peak * (since + 1) / self.together
        start = self.alone + self.together
        left = 1 - (epoch - start) / max(1, self.epochs - start)
        return float(self.peak * max(0.0, left) ** EXPONENT)


def course(schedule: str, *, epochs: int, peak: float | None = None, warmup: int | None = None) -> Course:
    """The course of a schedule.

    Args:
        schedule: ``sawtooth``, ``warmup`` or ``scratch``.
        epochs: length of the training.
        peak: highest rate; default by schedule.
        warmup: epochs of each warm-up; default 50, but at most a quarter of the training.

    Raises:
        UsageError: the training ends before its warm-ups do.
    """
    length = min(WARMUP, epochs // 4) if warmup is None else warmup
    top = PEAK[schedule] if peak is None else peak
    alone = length if schedule == "sawtooth" else 0
    together = length if schedule in ("sawtooth", "warmup") else 0
    if alone + together > epochs:
        raise UsageError(
            f"{epochs} epochs end before the warm-ups of {schedule} do, which take {alone + together}: give more "
            "--epochs or fewer --warmup-epochs"
        )
    return Course(epochs=epochs, peak=top, alone=alone, together=together)


def level(name: str) -> int | None:
    """Where in the encoder a parameter sits: 0 for stem and embedding, from 1 for stages or blocks; None elsewhere."""
    if not name.startswith("encoder."):
        return None
    found = _LEVEL.search(name)
    if found is not None:
        return int(found[1]) + 1
    return None if re.match(r"encoder\.norm\b", name) else 0


def groups(network: nn.Module, *, decay: float = 1.0, weight_decay: float, spare: bool) -> list[dict[str, Any]]:
    """The parameters of a network in groups for an optimizer, each tensor once.

    The part after the encoder comes first, so that nnU-Net's log shows its rate. Every group has ``encoder`` (whether
    it waits while the decoder warms up), ``factor`` (of the rate: ``decay`` to the power of the distance from the
    output) and ``weight_decay``.

    Args:
        network: with its encoder at ``encoder``.
        decay: factor per stage or block.
        weight_decay: of the weights.
        spare: no weight decay for biases, norms and other vectors, as transformers want it.
    """
    named = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    levels = {name: level(name) for name, _ in named}
    top = max((found for found in levels.values() if found is not None), default=0) + 1
    found: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, value in named:
        at = levels[name]
        inside = name.startswith("encoder.")
        found.setdefault((inside, top if at is None else at, spare and value.ndim <= 1), []).append(value)
    return [
        {
            "params": members,
            "encoder": inside,
            "factor": decay ** (top - at),
            "weight_decay": 0.0 if spared else weight_decay,
        }
        for (inside, at, spared), members in sorted(found.items(), key=lambda entry: entry[0])
    ]


def optimizer(schedule: str, members: Iterable[dict[str, Any]], *, rate: float) -> Optimizer:
    """AdamW for ``warmup``; for everything else nnU-Net's SGD."""
    if schedule == "warmup":
        return AdamW(list(members), lr=rate, betas=(0.9, 0.98))
    return SGD(list(members), lr=rate, momentum=0.99, nesterov=True)


class GroupedSchedule:
    """Sets the rate of every group at the start of an epoch; nnU-Net calls :meth:`step` with the epoch.

    While the decoder warms up alone, the encoder's gradients are thrown away before each step, so that neither a
    momentum nor a moment is collected for weights that must not move yet. Nothing is frozen by switching gradients
    off, because that would change the graph under ``torch.compile`` and distributed training.
    """

    def __init__(self, optimizer: Optimizer, course: Course) -> None:
        self.optimizer, self.course = optimizer, course
        optimizer.register_step_pre_hook(self._hold)
        self.step(0)

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.rate(epoch or 0, encoder=group["encoder"]) * group["factor"]

    def get_last_lr(self) -> list[float]:
        """The rates in force, by group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _hold(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if group["encoder"] and group["lr"] == 0.0:
                for value in group["params"]:
                    value.grad = None
