"""What the medmae trainer is told, in one value that travels.

nnU-Net builds trainers itself, with a fixed signature, sometimes in processes it spawned. So the settings go through
one environment variable as JSON; ``medmae nnunet train`` sets it, and ``nnUNetv2_train -tr MedMAETrainer`` takes it
from the user's shell. What stands in a checkpoint counts when a training is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from medmae.core.errors import UsageError

VARIABLE, CHECKPOINT_VARIABLE = "MEDMAE_NNUNET", "MEDMAE_CHECKPOINT"
SCHEDULES = ("sawtooth", "warmup", "scratch")


@dataclass(frozen=True)
class Settings:
    """Options of the medmae trainer; None keeps nnU-Net's own value, or what fits the weights.

    Attributes:
        checkpoint: weights to start from: a model or run folder, an exported file, a published checkpoint.
        from_scratch: start from random weights, whatever is named elsewhere.
        schedule: ``sawtooth`` (default for CNN weights), ``warmup`` (default for ViT weights) or ``scratch``
            (nnU-Net's own; default without weights).
        epochs: number of epochs (nnU-Net: 1000).
        iterations: training batches per epoch (nnU-Net: 250).
        validation_iterations: validation batches per epoch (nnU-Net: 50).
        warmup_epochs: length of each warm-up; default: 50, but at most a quarter of the epochs.
        learning_rate: peak learning rate; default: 1e-3 (sawtooth), 1e-4 (warmup), 1e-2 (scratch).
        layer_decay: factor of the learning rate per stage or block away from the output, in (0, 1].
        modality_dropout: probability that a training sample loses a random part of its sequences, in [0, 1].
        deep_supervision: train the coarser outputs too.
        channels: what the channels are, in order, where dataset.json calls them something else.
        min_loaded: fail where a smaller share of the network's pre-trainable part finds weights, in [0, 1].
    """

    checkpoint: str | None = None
    from_scratch: bool = False
    schedule: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    validation_iterations: int | None = None
    warmup_epochs: int | None = None
    learning_rate: float | None = None
    layer_decay: float = 1.0
    modality_dropout: float = 0.0
    deep_supervision: bool = True
    channels: tuple[str, ...] | None = None
    min_loaded: float | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise UsageError(f"there is no schedule {self.schedule!r}; there is {', '.join(SCHEDULES)}")
        if self.from_scratch and self.checkpoint is not None:
            raise UsageError(f"--from-scratch and the weights {self.checkpoint} exclude one another: give one of them")
        for name in ("epochs", "iterations", "validation_iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', '-')} is {value}, which must be at least 1")
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise UsageError(f"warmup-epochs is {self.warmup_epochs}, which must not be negative")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise UsageError(f"learning-rate is {self.learning_rate}, which must be positive")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"layer-decay is {self.layer_decay}, which must lie in (0, 1]; 1 switches it off")
        for name in ("modality_dropout", "min_loaded"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name.replace('_', '-')} is {value}, which must lie in [0, 1]")

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON values."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from JSON values.

        Raises:
            UsageError: an entry is unknown or out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"unknown setting(s) {', '.join(unknown)}; there is {', '.join(sorted(known))}")
        if values.get("channels") is not None:
            values = {**values, "channels": tuple(values["channels"])}
        return cls(**values)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings that the environment carries: ``MEDMAE_NNUNET`` (JSON), then ``MEDMAE_CHECKPOINT`` (a path).

        Raises:
            UsageError: the JSON cannot be read.
        """
        given = os.environ if environment is None else environment
        try:
            values = json.loads(given.get(VARIABLE) or "{}")
            if not isinstance(values, dict):
                raise ValueError("it is not a mapping")
        except ValueError as error:
            raise UsageError(
                f"the environment variable {VARIABLE} cannot be read ({error}); it looks like "
                '{"schedule": "sawtooth", "epochs": 100}'
            ) from error
        settings = cls.from_dict(values)
        path = given.get(CHECKPOINT_VARIABLE)
        if path and settings.checkpoint is None and not settings.from_scratch:
            settings = cls(**{**asdict(settings), "checkpoint": path})
        return settings

    def resumed_from(self, saved: Settings) -> Settings:
        """The settings of a resumed training: those it began with; only its lengths may be changed.

        Raises:
            UsageError: something that shapes the optimizer was asked for and differs.
        """
        for name in ("schedule", "learning_rate", "layer_decay", "deep_supervision"):
            mine, theirs = getattr(self, name), getattr(saved, name)
            default = type(self).__dataclass_fields__[name].default
            if mine != default and mine != theirs:
                raise UsageError(
                    f"this training began with {name.replace('_', ' ')} {theirs}, and cannot go on with {mine}: "
                    "leave the option out, or start a new training without --resume"
                )
        lengths = {
            name: value
            for name in ("epochs", "iterations", "validation_iterations")
            if (value := getattr(self, name)) is not None
        }
        return type(self)(**{**asdict(saved), **lengths})

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Hand the settings to trainers that nnU-Net builds while the block runs."""
        before = {name: os.environ.get(name) for name in (VARIABLE, CHECKPOINT_VARIABLE)}
        os.environ[VARIABLE] = json.dumps(self.to_dict())
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
