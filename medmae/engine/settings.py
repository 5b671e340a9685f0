"""How to train, as one frozen value: every knob of the loop, its default, and what may not be meant.

No torch here: the command line and the configuration check settings before anything heavy is imported.
Fields are divided in two: those that change the weights a run ends with (a resumed run must have the same),
and those that only change where, how fast and how often something is written (a resumed run may change them).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from medmae.core.errors import UsageError

PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("cosine", "constant")
UNITS = ("step", "epoch")
PARALLEL = ("ddp", "fsdp")
LOGGERS = ("tensorboard", "wandb", "mlflow")

# Changing one of these in a resumed run would make it another run.
DECISIVE = [
    "lr",
    "weight_decay",
    "betas",
    "eps",
    "decay_all",
    "warmup",
    "schedule",
    "schedule_unit",
    "cosine_period",
    "lr_floor",
    "clip",
    "ema",
    "precision",
    "seed",
]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Every knob of the training loop.

    Length: ``steps`` or ``epochs``, not both (neither: 100 epochs). ``batch`` is the number of samples per process and
    micro-step; ``accumulate`` micro-steps make one optimizer step. ``warmup`` below 1 is a share of the run, otherwise
    counted in ``schedule_unit``s, as is ``cosine_period`` (None: the length of the run). ``validate_every``,
    ``checkpoint_every`` and ``picture_every`` count optimizer steps; 0 is never. None chooses: once an epoch, but at
    most every 10 and at least every 1000 steps; ten times a run for pictures. ``probe_every`` is the same for probes
    of the features: never by default, None is ten times a run. ``patience`` is the number of validations without a
    lower loss after which training stops (None: never). ``keep`` is the number of trainer checkpoints kept, ``ema``
    the decay of the averaged weights (None: no average), ``clip`` the largest gradient norm (None: no clipping).
    """

    steps: int | None = None
    epochs: float | int | None = None
    batch: int = 2
    accumulate: int = 1
    lr: float | int = 1e-4
    weight_decay: float | int = 0.05
    betas: tuple[float | int, float | int] = (0.9, 0.95)
    eps: float | int = 1e-8
    decay_all: bool = False
    warmup: float | int = 0.05
    schedule: str = "cosine"
    schedule_unit: str = "step"
    cosine_period: float | int | None = None
    lr_floor: float | int = 0.0
    clip: float | int | None = 1.0
    ema: float | int | None = None
    precision: str = "fp32"
    compile: bool = False
    gradient_checkpointing: bool = False
    parallel: str = "ddp"
    device: str = "auto"
    seed: int = 0
    workers: int = 2
    validate_every: int | None = None
    checkpoint_every: int | None = None
    picture_every: int | None = None
    probe_every: int | None = 0
    log_every: int = 10
    patience: int | None = None
    keep: int = 2
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, every fault in one message (:class:`UsageError`)."""
        _refuse(_wrong_types(vars(self)))
        _refuse(_wrong_values(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def decisive(self) -> dict[str, Any]:
        """The values that a resumed run must share, without those that need the number of processes."""
        plain = self.to_dict()
        return {name: plain[name] for name in DECISIVE}

    def total_steps(self, *, size: int, world: int) -> int:
        """Optimizer steps of the whole run, given the samples of one epoch and the number of processes."""
        if self.steps is not None:
            return self.steps
        epochs = 100.0 if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * size / (self.batch * self.accumulate * world) - 1e-9))

    def given_up(self, *, best_step: int, validated: int, every: int) -> bool:
        """Whether ``patience`` validations, one every so many steps, came after the best without a lower loss."""
        return bool(self.patience and every and best_step and validated - best_step >= self.patience * every)

    def every(self, which: str, *, per_epoch: float | int, total: int) -> int:
        """Optimizer steps between two events: ``which`` is validate, checkpoint, picture or probe; 0: never."""
        value = getattr(self, f"{which}_every")
        if value is not None:
            return int(value)
        return max(10, math.ceil(total / 10) if which in ("picture", "probe") else min(1000, math.ceil(per_epoch)))


def train_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Build settings from plain values; an unknown name is a :class:`UsageError` that suggests the nearest."""
    known = [f.name for f in fields(TrainSettings)]
    faults = []
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean train.{near[0]}?" if near else f" Known: {', '.join(known)}."
            faults.append(f"train.{name} is not a setting.{hint}")
    if faults:
        raise UsageError("\n".join(faults))
    meant = dict(values)
    for name in ("betas", "loggers"):  # YAML has no tuples
        if isinstance(meant.get(name), list):
            meant[name] = tuple(meant[name])
        elif isinstance(meant.get(name), str):
            meant[name] = (meant[name],)
    _refuse(_wrong_types(meant))
    return TrainSettings(**meant)


def _refuse(faults: list[str]) -> None:
    if faults:
        raise UsageError("These training settings cannot be meant:\n  " + "\n  ".join(faults))


def _wrong_types(values: Mapping[str, Any]) -> list[str]:
    faults = []
    kinds = {field.name: str(field.type).replace("float | int", "float") for field in fields(TrainSettings)}
    for name, value in values.items():
        kind = kinds[name]
        if value is None:
            if "None" not in kind:
                faults.append(f"train.{name} needs a value ({kind}).")
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        real = whole or (isinstance(value, float) and math.isfinite(value))
        if kind.startswith("bool"):
            good = isinstance(value, bool)
        elif kind.startswith("int"):
            good = whole
        elif kind.startswith("float"):
            good = real
        elif kind.startswith("str"):
            good = isinstance(value, str)
        elif name == "betas":
            good = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, float | int) for v in value)
        else:
            good = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        if not good:
            hint = ""
            if isinstance(value, str) and kind.startswith(("int", "float")):
                hint = " Text is not a number: write 0.0001 or 1.0e-4, without quotes."
            faults.append(f"train.{name} = {value!r} is not {kind}.{hint}")
    return faults


def _wrong_values(s: TrainSettings) -> list[str]:
    faults = []

    def need(good: bool, text: str) -> None:
        if not good:
            faults.append(text)

    need(
        s.steps is None or s.epochs is None,
        f"steps ({s.steps}) and epochs ({s.epochs}) are both given: choose one.",
    )
    for name in ("steps", "batch", "accumulate", "log_every", "keep", "patience"):
        value = getattr(s, name)
        need(value is None or value >= 1, f"{name} = {value}: must be at least 1.")
    for name in (
        "weight_decay",
        "warmup",
        "workers",
        "validate_every",
        "checkpoint_every",
        "picture_every",
        "probe_every",
        "seed",
    ):
        value = getattr(s, name)
        need(value is None or value >= 0, f"{name} = {value}: must not be negative.")
    for name in ("lr", "eps", "epochs", "cosine_period", "clip"):
        value = getattr(s, name)
        hint = " (null switches clipping off)" if name == "clip" else ""
        need(value is None or value > 0, f"{name} = {value}: must be above 0{hint}.")
    need(all(0 <= b < 1 for b in s.betas), f"betas = {s.betas}: both must be in [0, 1).")
    need(
        s.ema is None or 0 < s.ema < 1,
        f"ema = {s.ema}: a decay between 0 and 1, such as 0.999, or null for none.",
    )
    need(0 <= s.lr_floor < 1, f"lr_floor = {s.lr_floor}: a share of lr in [0, 1).")
    for name, words in (
        ("precision", PRECISIONS),
        ("schedule", SCHEDULES),
        ("schedule_unit", UNITS),
        ("parallel", PARALLEL),
    ):
        need(getattr(s, name) in words, f"{name} = {getattr(s, name)!r}: one of {', '.join(words)}.")
    for logger in s.loggers:
        need(logger in LOGGERS, f"loggers: {logger!r} is not one of {', '.join(LOGGERS)}.")
    kind, _, number = s.device.partition(":")
    good = kind in ("auto", "cpu", "cuda", "mps") and (not number or (kind == "cuda" and number.isdigit()))
    need(good, f"device = {s.device!r}: auto, cpu, cuda, cuda:N or mps.")
    return faults
