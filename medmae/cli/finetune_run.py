"""How any task is trained: cases, folds, what is fitted to outcomes, weights, the loop.

What is fitted to outcomes (names and weights of classes, time bins) is fitted on the training part. Runs that differ
in the checkpoint only have the same cases, folds, head weights, order of samples and schedule, so that what differs is
the pre-training. What tells one task from another is its :class:`Goal`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, Requeue, UsageError

from .console import emit, emit_json, flags, main_process, say
from .finetune_start import base, prepared_alike, weights

if TYPE_CHECKING:
    from medmae.data.cohort import Cohort
    from medmae.engine.settings import TrainSettings

INIT, HEAD = 0x696E6974, 0x68656164  # streams of the initial weights
DEFAULTS = {"epochs": 50, "batch": 4, "lr": 1e-4, "betas": [0.9, 0.999], "patience": 10}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The options that all tasks share, as they were given."""

    data: str
    out: Path
    checkpoint: Path | None
    from_scratch: bool
    method: str | None
    scale: str | None
    folds: int
    fold: int
    fraction: float = 1.0
    layer: int | None = None
    schedule: str
    layer_decay: float
    modality_dropout: float
    distill: float = 0.0
    epochs: float | None
    steps: int | None
    batch: int | None
    lr: float | None
    patience: int | None
    seed: int
    device: str
    precision: str
    workers: int
    cache: Path | None
    set_: list[str] | None
    resume: bool
    overwrite: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Wish:
        """From the arguments of a command; those of its own are left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


Outcome = Any
"""What is known of a case: role -> value for a clinical table, anything else for other tasks."""


@dataclass(frozen=True)
class Fitted:
    """What the training part decides.

    Attributes:
        objective: its recipe, see ``medmae.transfer.building.build_objective``.
        classes: names of the classes, in order.
        entries: further entries of the section ``task`` of the model folder.
        lines: what is said of the training part before the run.
    """

    objective: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    entries: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What tells one task from another.

    Attributes:
        kind: name of the task, as in model folders.
        target: what it is about, in a few words, such as the columns of the table.
        head: recipe of the head.
        outcomes: cohort, sequences of the model -> outcome of every case that can be used, by key. DataError or
            UsageError where there is none.
        fit: outcomes of the training part -> what they decide.
        stratum: outcome -> the group that folds are balanced by.
        columns: role -> column, of tasks of a table.
        volumes: further arguments of ``VolumeSource``.
        source: volumes, outcomes, what was fitted -> source of the training; None takes the volumes as they are.
        defaults: settings of training in place of the common ones.
        next: what to type next, with ``{folder}``, ``{data}`` and ``{out}``.
        after: keys of the test part -> what is done with the finished run, which prints its result in place of the
            folder; whether it printed one.
    """

    kind: str
    target: str
    head: Mapping[str, Any]
    outcomes: Callable[[Cohort, tuple[str, ...]], Mapping[str, Outcome]]
    fit: Callable[[Sequence[Outcome]], Fitted]
    stratum: Callable[[Outcome], str] = lambda outcome: ""
    columns: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, Any] = field(default_factory=dict)
    source: Callable[[Any, Mapping[str, Outcome], Fitted], Any] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    next: str = "medmae evaluate {kind} --checkpoint {folder} --data {data} --subsets all --out {out}/test"
    after: Callable[[frozenset[str]], bool] | None = None


def run(wish: Wish, goal: Goal) -> None:
    """Open the cohort, divide it, fit what is fitted to outcomes, build the model, say what will run, and train.

    Raises:
        UsageError: options that cannot be meant.
        DataError: outcomes that nothing can be learned from.
        CheckpointError: a checkpoint that does not fit.
    """
    import torch

    from medmae.checkpoint import WEIGHTS, file_hash
    from medmae.core.random import mix
    from medmae.data.cohort import open_cohort
    from medmae.data.loader import VolumeSource
    from medmae.engine.allocator import keep_freed_memory
    from medmae.engine.distributed import Processes, leave
    from medmae.engine.run_folder import check_free
    from medmae.engine.trainer import pretrain
    from medmae.transfer.building import build
    from medmae.transfer.task_folder import save_task

    _check(wish)
    settings = _settings(wish, goal)
    cohort = open_cohort(wish.data)
    if main_process():
        check_free(wish.out, resume=wish.resume, overwrite=wish.overwrite)
    name, recipe, pretrained = base(wish, cohort)
    sequences = tuple(recipe["sequences"])
    cohort = prepared_alike(cohort, pretrained)
    outcomes = goal.outcomes(cohort, sequences)
    if lacking := len(cohort.cases) - len(outcomes):
        say(f"{lacking} case(s) left aside: no {goal.target}", style="yellow")
    cohort = _divided(cohort, outcomes, wish, goal)
    if wish.fraction < 1:
        cohort = _fewer(cohort, outcomes, wish, goal)
    parts = cohort.split()
    train = [outcomes[case.key] for case in parts["train"] if set(case.images) & set(sequences)]
    if not train:
        raise DataError(f"no training case has both {goal.target} and any of {', '.join(sequences)}")
    fitted = goal.fit(train)
    whole = {
        "backbone": {"method": name, "recipe": recipe, "layer": wish.layer},
        "head": dict(goal.head),
        "objective": dict(fitted.objective),
        "modality_dropout": wish.modality_dropout if len(sequences) > 1 else 0.0,
        "schedule": wish.schedule,
        "layer_decay": wish.layer_decay,
        **({"distill": wish.distill} if wish.distill else {}),
    }
    team = Processes(device=settings.device, parallel=settings.parallel)
    try:
        if team.device.type == "cpu":
            keep_freed_memory()
        method = weights(wish, name, recipe, seed=mix(wish.seed, INIT))
        torch.manual_seed(mix(wish.seed, HEAD))
        model = build(whole, method=method)
        model.check_training(batch=settings.batch, world=team.world)
        x, y, z = recipe["size"]
        source: Any = VolumeSource(
            cohort,
            size=(x, y, z),
            cache=wish.cache,
            sequences=sequences,
            workers=settings.workers,
            quiet=flags().quiet or not main_process(),
            **goal.volumes,
        )
        for note in source.notes:
            say(note)
        if goal.source is not None:
            source = goal.source(source, outcomes, fitted)
        for line in _summary(wish, goal, parts, fitted, source, pretrained):
            say(line)
        task = {
            "kind": goal.kind,
            "columns": dict(goal.columns),
            "classes": list(fitted.classes),
            **fitted.entries,
            "recipe": whole,
            "pretrained": None if wish.from_scratch else pretrained,
            "folds": {"count": wish.folds, "held_out": wish.fold, "seed": wish.seed} if wish.folds > 1 else None,
        }

        def save(path: Path, trained: Any, about: dict[str, Any]) -> None:
            told = {"data": about.pop("data"), "training": about, "license": cohort.spec.license}
            save_task(path, trained, task=task, about=told)
            if path.name == "model":
                _forget(wish.out / "test", file_hash(path / WEIGHTS))

        split = {part: [case.key for case in cases] for part, cases in parts.items()}
        origin = None if pretrained is None else pretrained["weights"]
        result = pretrain(
            model,
            source,
            settings,
            folder=wish.out,
            recipe={
                "method": {
                    "name": "finetuned", "task": goal.kind, "columns": dict(goal.columns), "weights": origin, **whole,
                }
            },
            save_model=save,
            resume=wish.resume,
            overwrite=wish.overwrite,
            manifest={"split": split},
            say=say,
            quiet=flags().quiet,
            processes=team,
        )  # fmt: skip
        leave()
    except (Requeue, KeyboardInterrupt):
        leave()
        raise
    folder = wish.out / "model"
    told = {"kind": goal.kind, "folder": folder, "data": wish.data, "out": wish.out}
    say(f"The model is in {folder}. Next: {goal.next.format(**told)}")
    if goal.after is not None and main_process() and goal.after(frozenset(split["test"])):
        return
    if flags().json:
        emit_json(
            {"folder": os.fspath(folder), "steps": result.steps, "best": result.best, "classes": list(fitted.classes)}
        )
    else:
        emit(os.fspath(folder))


def _check(wish: Wish) -> None:
    from medmae.transfer.finetuned import SCHEDULES

    if wish.checkpoint is None and not wish.from_scratch:
        raise UsageError("give --checkpoint (weights to start from) or --from-scratch")
    if (wish.method or wish.scale) and (wish.checkpoint is not None or not wish.from_scratch):
        raise UsageError("--method and --scale need --from-scratch without --checkpoint, which names its own network")
    if wish.fold >= wish.folds:
        raise UsageError(f"--fold {wish.fold}: with --folds {wish.folds} it is a number from 0 to {wish.folds - 1}")
    if wish.schedule not in SCHEDULES:
        raise UsageError(f"--schedule must be one of {', '.join(SCHEDULES)}, not {wish.schedule!r}")
    if not 0 < wish.fraction <= 1:
        raise UsageError(f"--fraction {wish.fraction}: a share of the training subjects, above 0 and at most 1")
    if not 0 <= wish.distill < float("inf"):
        raise UsageError(f"--distill {wish.distill}: a weight of at least 0, such as 1")
    if not 0 <= wish.modality_dropout <= 1:
        raise UsageError(f"--modality-dropout {wish.modality_dropout}: a probability between 0 and 1")
    if not 0 < wish.layer_decay <= 1:
        raise UsageError(f"--layer-decay {wish.layer_decay}: a factor above 0 and at most 1, such as 0.75")
    if wish.out.is_file():
        raise UsageError(f"--out {wish.out} is a file; give a folder")


def _settings(wish: Wish, goal: Goal) -> TrainSettings:
    from medmae.config import assignments
    from medmae.engine.settings import train_settings

    more = assignments(wish.set_ or [])
    if strange := [name for name in more if name != "train"]:
        raise UsageError(
            f"--set {strange[0]}...: fine-tuning takes settings of training alone, such as train.ema=0.999"
        )
    values: dict[str, Any] = {**DEFAULTS, **goal.defaults}
    if wish.schedule == "frozen":
        values["lr"] = 1e-3
    if wish.schedule == "sawtooth":
        values["warmup"] = 0.0  # it has its own
    given = {
        name: getattr(wish, name) for name in ("batch", "lr", "patience", "seed", "device", "precision", "workers")
    }
    values |= {name: value for name, value in given.items() if value is not None}
    if wish.steps is not None:
        values |= {"steps": wish.steps, "epochs": wish.epochs}
    elif wish.epochs is not None:
        values["epochs"] = wish.epochs
    values |= more.get("train") or {}
    if not values["patience"]:
        values["patience"] = None
    return train_settings(values)


def _divided(cohort: Cohort, outcomes: Mapping[str, Outcome], wish: Wish, goal: Goal) -> Cohort:
    """The cases with an outcome, in their parts: those of the spec (drawn over all cases, as pre-training drew them),
    or one fold held out as the test part and the validation part drawn from the others."""
    import numpy as np

    from medmae.data.targets import with_parts
    from medmae.evaluate.label_curve import assign_folds

    if wish.folds == 1:
        parts = cohort.split()
        return with_parts(cohort, {c.key: part for part, cases in parts.items() for c in cases if c.key in outcomes})
    cases = [case for case in cohort.cases if case.key in outcomes]
    strata = [goal.stratum(outcomes[case.key]) for case in cases]
    names = sorted(set(strata))
    alike = len(names) == 1 and goal.kind != "classify"
    if alike:  # nothing to balance
        order = sorted({case.subject for case in cases}, key=lambda subject: _place(subject, wish.seed))
        most = min(wish.folds, len(order))
        fold = np.array([order.index(case.subject) % wish.folds for case in cases])
    else:
        fold = assign_folds(
            np.array([names.index(s) for s in strata]), [c.subject for c in cases],
            classes=names, folds=wish.folds, seed=wish.seed,
        )  # fmt: skip
        most = int(fold.max()) + 1
    if most < wish.folds:
        who = "there are" if alike else "a class has"
        raise DataError(f"--folds {wish.folds}: {who} {most} subject(s) only. Use fewer folds or more cases")
    held = {case.key: "test" if f == wish.fold else None for case, f in zip(cases, fold.tolist(), strict=True)}
    return with_parts(cohort, held)


def _fewer(cohort: Cohort, outcomes: Mapping[str, Outcome], wish: Wish, goal: Goal) -> Cohort:
    """A share of the training subjects, the same share of every stratum; a larger share holds the smaller ones."""
    import math

    from medmae.data.targets import with_parts

    parts = cohort.split()
    strata: dict[str, dict[str, None]] = {}
    for case in parts["train"]:
        strata.setdefault(goal.stratum(outcomes[case.key]), {})[case.subject] = None

    kept: set[str] = set()
    for subjects in strata.values():
        order = sorted(subjects, key=lambda subject: _place(subject, wish.seed))
        kept.update(order[: math.ceil(wish.fraction * len(order))])
    found = {c.key: part for part, cases in parts.items() for c in cases if part != "train" or c.subject in kept}
    return with_parts(cohort, found)


def _place(subject: str, seed: int) -> str:
    """A place in an order that depends on the names and the seed alone."""
    return hashlib.sha256(f"{seed}/{subject}".encode(errors="surrogatepass")).hexdigest()


def _forget(results: Path, weights: str) -> None:
    """Remove measurements of other weights: beside the model of this run they would pass for its own."""
    try:
        known = json.loads((results / "summary.json").read_text(encoding="utf-8"))["about"]["weights"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if isinstance(known, str) and weights not in known:
        shutil.rmtree(results, ignore_errors=True)
        say(f"{results} was removed: it measured an earlier model")


def _summary(
    wish: Wish,
    goal: Goal,
    parts: Mapping[str, Sequence[Any]],
    fitted: Fitted,
    source: Any,
    pretrained: Mapping[str, Any] | None,
) -> list[str]:
    counts = ", ".join(f"{len(parts[part])} {word}" for part, word in
                       (("train", "to train"), ("val", "to validate"), ("test", "held out")))  # fmt: skip
    start = "from scratch" if wish.from_scratch or pretrained is None else f"from {pretrained['method']}"
    lines = [f"Fine-tuning to {goal.kind} {goal.target}, {start}", f"  cases     {counts}", *fitted.lines]
    if not source.validation_size:
        lines.append("  There is no validation case: the last weights are kept, and nothing stops early.")
    return lines
