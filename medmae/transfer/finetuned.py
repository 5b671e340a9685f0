"""A pre-trained encoder with a head: one model for every subset of the sequences it knows.

It is a method like those of pre-training, so the same loop trains it, with the same exact resume. In training, patients
lose sequences at random, as a change of what is present: a sequence that was dropped is a sequence that is missing.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.method import Method
from medmae.core.pace import STEADY, Pace
from medmae.core.random import uniform
from medmae.core.tokens import Batch
from medmae.nets.contrast import Following

from .backbone import Backbone
from .objectives import Objective

SCHEDULES = ("full", "frozen", "warmup", "sawtooth")
_DROP = 0x64726F70


def drop_sequences(
    present: Bool[Tensor, "b m"], key: Int[Tensor, " b"], *, probability: float | int, proper: bool = False
) -> Bool[Tensor, "b m"]:
    """With ``probability``, keep a random subset of what a patient has: uniform over its non-empty subsets.

    A pure function of the key of each sample. A patient with nothing stays one with nothing. With ``proper`` at least
    one is lost, where there are two.

    Raises:
        ValueError: more than 20 sequences, whose subsets cannot be counted in 24 random bits.
    """
    if present.shape[1] > 20:
        raise ValueError(f"modality dropout knows at most 20 sequences, not {present.shape[1]}")
    u = uniform(key, 2, stream=_DROP).to(present.device)
    place = (present.long().cumsum(1) - 1).clamp_min(0)
    subsets = ((2 ** present.sum(1)) - 1 - int(proper)).clamp_min(1)
    chosen = (u[:, 0].double() * subsets).long() + 1  # in [1, 2^k - 1]: bit j says whether the j-th one stays
    kept = present & ((chosen[:, None] >> place) & 1).bool()
    return torch.where((u[:, 1] < probability)[:, None], kept, present)


class Finetuned(Method):
    """Features of an encoder, a head, and what its numbers are compared with.

    Args:
        backbone: everything visible.
        head: ``head(features, batch) -> raw``; the raw numbers of several windows are averaged by whoever predicts.
        objective: loss and reading of the raw numbers.
        modality_dropout: probability that a sample loses sequences in training. In validation the loss is the mean of
            that with all sequences and that with one subset, which is always the same for a sample.
        schedule: ``full`` trains everything from the start; ``frozen`` the head alone; ``warmup`` lets the encoder wait
            for a share of the run and then rise; ``sawtooth`` lets the head rise alone, then both together.
        layer_decay: factor of the learning rate from one layer to the one below it, in (0, 1].
        wait: share of the run that the encoder waits, and then rises, with ``warmup`` and ``sawtooth``.
        distill: weight of what a teacher says, the trailing mean of the model itself, which sees all that a patient
            has while the model sees a subset; 0 is without a teacher. It is used in training only.
        momentum: share of the teacher that stays at each step, in [0, 1).

    Raises:
        UsageError: values that cannot be meant.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        objective: Objective,
        modality_dropout: float | int = 0.0,
        schedule: str = "full",
        layer_decay: float | int = 1.0,
        wait: float | int = 0.1,
        distill: float | int = 0.0,
        momentum: float | int = 0.99,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise UsageError(f"there is no schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
        if not 0 <= modality_dropout <= 1 or not 0 < layer_decay <= 1 or not 0 < wait <= 0.5:
            raise UsageError(
                f"modality dropout {modality_dropout} is a probability, layer decay {layer_decay} a factor in (0, 1], "
                f"wait {wait} a share of the run of at most 0.5"
            )
        self.backbone, self.head, self.objective = backbone, head, objective
        self.sequences = backbone.sequences
        self.modality_dropout, self.schedule = modality_dropout, schedule
        self.layer_decay, self.wait = layer_decay, wait
        if distill and (modality_dropout == 0 or len(self.sequences) == 1 or objective.hides):
            raise UsageError("a teacher of all sequences needs a student that lacks some: set the modality dropout")
        if not 0 <= distill < float("inf") or not 0 <= momentum < 1:
            raise UsageError(f"distill {distill} is a weight of at least 0, momentum {momentum} is in [0, 1)")
        self.distill = distill
        self.teacher = Following(backbone, head, momentum=float(momentum)) if distill else None

    def answer(self, batch: Batch) -> Any:
        """The raw numbers of every sample, with all sequences it has; of several scales, where a head has them."""
        return self.objective.completed(self.head(self.backbone(batch), batch), batch)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """What the model says of every sample, by name; see the objective's ``read``."""
        return self.objective.read(self.answer(batch))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the objective."""
        if self.objective.hides:
            return self._losses(self._dropped(batch, 1.0, proper=True))
        if self.modality_dropout == 0 or len(self.sequences) == 1:
            return self._losses(batch)
        if not self.training:
            whole, part = self._losses(batch), self._losses(self._dropped(batch, 1.0))
            return {name: (whole[name] + part[name]) / 2 for name in whole}
        part_batch = self._dropped(batch, self.modality_dropout)
        if self.teacher is None:
            return self._losses(part_batch)
        raw = self.answer(part_batch)
        with torch.no_grad():
            target = self.teacher.projector(self.teacher.teacher(batch), batch)
        return {**self.objective(raw, part_batch), "distillation": self.distill * self.objective.agree(raw, target)}

    def after_step(self) -> None:
        """The teacher follows."""
        if self.teacher is not None:
            self.teacher.follow(self.backbone, self.head)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.objective(self.answer(batch), batch)
        return found

    def _dropped(self, batch: Batch, probability: float | int, *, proper: bool = False) -> Batch:
        """The batch with fewer sequences present; ``had`` says which there were."""
        key = self.keys(batch)
        present = batch.get("present")
        if present is None:
            present = torch.ones(len(key), len(self.sequences), dtype=torch.bool, device=key.device)
        return {
            **batch,
            "present": drop_sequences(present, key, probability=probability, proper=proper),
            "had": present,
        }

    def pace(self, name: str) -> Pace:
        """Layers of the encoder learn slower the earlier they are, and may have to wait."""
        wait = self.wait
        if not name.startswith("backbone."):
            rise = ((0.0, 0.0), (wait, 1.0), (wait, 0.0), (2 * wait, 1.0))
            return Pace(course=rise) if self.schedule == "sawtooth" else STEADY
        above = self.backbone.levels + 1 - self.backbone.depth(name.removeprefix("backbone."))
        factor = float(self.layer_decay**above)
        if self.schedule in ("warmup", "sawtooth"):
            return Pace(factor, ((0.0, 0.0), (wait, 0.0), (2 * wait, 1.0)))
        return Pace(factor)

    def check_training(self, *, batch: int, world: int) -> None:
        """Refuse batches that give no gradient."""
        if batch < self.objective.batch_size:
            raise UsageError(
                f"{type(self.objective).__name__} compares the samples of a batch: {batch} is too few, "
                f"{self.objective.batch_size} are the least and 16 or more are better (--batch)"
            )
