"""How a task of the clinical table is trained: cases, folds, what is fitted to outcomes, weights, the loop.

What is fitted to outcomes (names and weights of classes, time bins) is fitted on the training part. Runs that differ
in the checkpoint only have the same cases, folds, head weights, order of samples and schedule, so that what differs is
the pre-training.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, DataError, Requeue, UsageError

from .console import emit, emit_json, flags, main_process, say

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.data.cohort import Cohort
    from medmae.engine.settings import TrainSettings

INIT, HEAD = 0x696E6974, 0x68656164  # streams of the initial weights
DEFAULTS = {"epochs": 50, "batch": 4, "lr": 1e-4, "betas": [0.9, 0.999], "patience": 10}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The options that all tasks of a table share, as they were given."""

    data: str
    out: Path
    checkpoint: Path | None
    from_scratch: bool
    method: str | None
    scale: str | None
    folds: int
    fold: int
    head: str
    pool: str
    layer: int | None
    schedule: str
    layer_decay: float
    modality_dropout: float
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
        return cls(**{field.name: values[field.name] for field in fields(cls)})


Fit = Callable[[Sequence[Any]], tuple[dict[str, Any], tuple[str, ...]]]
"""Outcomes of the training cases -> recipe of the objective, names of the classes."""


def run(wish: Wish, *, kind: str, columns: Mapping[str, str], fit: Fit) -> None:
    """Open the cohort, divide it, fit what is fitted to outcomes, build the model, say what will run, and train.

    Args:
        wish: the options.
        kind: ``classify`` or ``survive``.
        columns: role of a target -> column of the table.
        fit: makes the recipe of the objective.

    Raises:
        UsageError: options that cannot be meant.
        DataError: outcomes that nothing can be learned from.
        CheckpointError: a checkpoint that does not fit.
    """
    import torch

    from medmae.core.random import mix
    from medmae.data.cohort import open_cohort
    from medmae.data.loader import VolumeSource
    from medmae.data.targets import TargetSource, read_outcomes
    from medmae.engine.allocator import keep_freed_memory
    from medmae.engine.distributed import Processes, leave
    from medmae.engine.run_folder import check_free
    from medmae.engine.trainer import pretrain
    from medmae.transfer.finetuned import build
    from medmae.transfer.task_folder import save_task

    _check(wish)
    settings = _settings(wish)
    cohort = open_cohort(wish.data)
    outcomes = read_outcomes(cohort.cases, cohort.spec, columns=columns)
    if lacking := len(cohort.cases) - len(outcomes):
        say(f"{lacking} case(s) left aside: no {' or '.join(columns.values())}", style="yellow")
    if main_process():
        check_free(wish.out, resume=wish.resume, overwrite=wish.overwrite)
    name, recipe, pretrained = _base(wish, cohort)
    sequences = tuple(recipe["sequences"])
    cohort = _prepared_alike(cohort, pretrained)
    cohort = _divided(cohort, outcomes, wish, kind=kind)
    parts = cohort.split()
    train = [outcomes[case.key] for case in parts["train"] if set(case.images) & set(sequences)]
    if not train:
        raise DataError(f"no training case has both {', '.join(columns.values())} and any of {', '.join(sequences)}")
    objective, classes = fit(train)
    whole = {
        "backbone": {"method": name, "recipe": recipe, "layer": wish.layer},
        "head": {"kind": wish.head, "pool": wish.pool},
        "objective": objective,
        "modality_dropout": wish.modality_dropout if len(sequences) > 1 else 0.0,
        "schedule": wish.schedule,
        "layer_decay": wish.layer_decay,
    }
    team = Processes(device=settings.device, parallel=settings.parallel)
    try:
        if team.device.type == "cpu":
            keep_freed_memory()
        method = _weights(wish, name, recipe, seed=mix(wish.seed, INIT))
        torch.manual_seed(mix(wish.seed, HEAD))
        model = build(whole, method=method)
        model.check_training(batch=settings.batch, world=team.world)
        x, y, z = recipe["size"]
        volumes = VolumeSource(
            cohort,
            size=(x, y, z),
            cache=wish.cache,
            sequences=sequences,
            workers=settings.workers,
            quiet=flags().quiet or not main_process(),
        )
        for note in volumes.notes:
            say(note)
        source = TargetSource(volumes, outcomes, classes=classes)
        for line in _summary(wish, kind, columns, parts, outcomes, source, classes, pretrained):
            say(line)
        task = {
            "kind": kind,
            "columns": dict(columns),
            "classes": list(classes),
            "recipe": whole,
            "pretrained": None if wish.from_scratch else pretrained,
            "folds": {"count": wish.folds, "held_out": wish.fold, "seed": wish.seed} if wish.folds > 1 else None,
        }

        def save(path: Path, trained: Any, about: dict[str, Any]) -> None:
            told = {"data": about.pop("data"), "training": about, "license": cohort.spec.license}
            save_task(path, trained, task=task, about=told)

        split = {part: [case.key for case in cases] for part, cases in parts.items()}
        origin = None if pretrained is None else pretrained["weights"]
        result = pretrain(
            model,
            source,
            settings,
            folder=wish.out,
            recipe={
                "method": {"name": "finetuned", "task": kind, "columns": dict(columns), "weights": origin, **whole}
            },
            save_model=save,
            resume=wish.resume,
            overwrite=wish.overwrite,
            manifest={"split": split},
            say=say,
            quiet=flags().quiet,
            processes=team,
        )
        leave()
    except (Requeue, KeyboardInterrupt):
        leave()
        raise
    folder = wish.out / "model"
    say(
        f"The model is in {folder}. Next: medmae evaluate {kind} --checkpoint {folder} --data {wish.data} --subsets all"
        f" --out {wish.out / 'test'}"
    )
    if flags().json:
        emit_json({"folder": os.fspath(folder), "steps": result.steps, "best": result.best, "classes": list(classes)})
    else:
        emit(os.fspath(folder))


def _check(wish: Wish) -> None:
    from medmae.transfer.finetuned import SCHEDULES
    from medmae.transfer.heads import KINDS
    from medmae.transfer.pooling import POOLS

    if wish.checkpoint is None and not wish.from_scratch:
        raise UsageError("give --checkpoint (weights to start from) or --from-scratch")
    if (wish.method or wish.scale) and (wish.checkpoint is not None or not wish.from_scratch):
        raise UsageError("--method and --scale need --from-scratch without --checkpoint, which names its own network")
    if wish.fold >= wish.folds:
        raise UsageError(f"--fold {wish.fold}: with --folds {wish.folds} it is a number from 0 to {wish.folds - 1}")
    for option, value, legal in (("head", wish.head, KINDS), ("pool", wish.pool, POOLS),
                                 ("schedule", wish.schedule, SCHEDULES)):  # fmt: skip
        if value not in legal:
            raise UsageError(f"--{option} must be one of {', '.join(legal)}, not {value!r}")
    if not 0 <= wish.modality_dropout <= 1:
        raise UsageError(f"--modality-dropout {wish.modality_dropout}: a probability between 0 and 1")
    if not 0 < wish.layer_decay <= 1:
        raise UsageError(f"--layer-decay {wish.layer_decay}: a factor above 0 and at most 1, such as 0.75")
    if wish.out.is_file():
        raise UsageError(f"--out {wish.out} is a file; give a folder")


def _settings(wish: Wish) -> TrainSettings:
    from medmae.config import assignments
    from medmae.engine.settings import train_settings

    more = assignments(wish.set_ or [])
    if strange := [name for name in more if name != "train"]:
        raise UsageError(
            f"--set {strange[0]}...: fine-tuning takes settings of training alone, such as train.ema=0.999"
        )
    values: dict[str, Any] = dict(DEFAULTS)
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


def _base(wish: Wish, cohort: Cohort) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Method and recipe of the encoder, and what is known of its pre-training (None from scratch).

    Preprocessing follows the checkpoint even where its weights are not used, so that both runs see the same voxels.
    """
    from medmae.checkpoint import TASK_METHOD, WEIGHTS, file_hash, model_folder, read_config
    from medmae.find import find

    if wish.checkpoint is None:
        name = wish.method or "bm_mae"
        found = find(name)
        recipe = found.recipe(scale=wish.scale)
        if found.card.kind != "volume" or "sequences" not in recipe or "size" not in recipe:
            raise UsageError(f"--method {name}: that is no method for volumes of named sequences and a fixed window")
        return name, {**recipe, "sequences": list(cohort.sequences)}, None
    folder = model_folder(wish.checkpoint)
    config = read_config(folder)
    if config["method"] == TASK_METHOD:
        raise CheckpointError(f"{wish.checkpoint} is fine-tuned already: start from the pre-trained model it came from")
    recipe = config["recipe"]
    known = recipe.get("sequences")
    if not known or len(recipe.get("size") or ()) != 3:
        raise CheckpointError(f"{wish.checkpoint} holds {config['method']}, which has no encoder of volumes")
    if not set(known) & set(cohort.sequences):
        raise CheckpointError(
            f"{wish.checkpoint} knows {', '.join(known)}, and the cohort has {', '.join(cohort.sequences)}: "
            "none in common. Choose a checkpoint for these sequences"
        )
    if ignored := [name for name in cohort.sequences if name not in known]:
        say(f"{', '.join(ignored)} left aside: the checkpoint does not know them", style="yellow")
    about = {"method": config["method"], "weights": f"sha256:{file_hash(folder / WEIGHTS)}"}
    pretrained = {**about, "data": config.get("data") or {}}
    if wish.from_scratch:
        pretrained = {
            "method": config["method"],
            "weights": None,
            "data": {"preprocess": pretrained["data"].get("preprocess")},
        }
    return config["method"], dict(recipe), pretrained


def _weights(wish: Wish, name: str, recipe: Mapping[str, Any], *, seed: int) -> Method:
    import torch

    from medmae.checkpoint import load_model
    from medmae.find import find

    if wish.checkpoint is not None and not wish.from_scratch:
        loaded = load_model(wish.checkpoint)
        say(f"Starting from {wish.checkpoint}: {loaded.report}")
        return loaded.method
    torch.manual_seed(seed)
    return find(name).build(**recipe)


def _prepared_alike(cohort: Cohort, pretrained: Mapping[str, Any] | None) -> Cohort:
    """The cohort with the preprocessing of the checkpoint in place of the spec's."""
    from medmae.data.preprocess import PreprocessSettings
    from medmae.data.spec import Preprocess

    wanted = ((pretrained or {}).get("data") or {}).get("preprocess")
    if not wanted:
        if pretrained is not None:
            say("the checkpoint states no preprocessing: the spec's is used", style="yellow")
        return cohort
    own = PreprocessSettings.of(cohort.spec).describe()
    values = {name: wanted[name] for name in Preprocess.model_fields if name in wanted}
    if changed := [name for name in values if own.get(name) != wanted[name]]:
        say(f"preprocessing follows the checkpoint, not the spec: {', '.join(changed)}", style="yellow")
    spec = cohort.spec.model_copy(update={"preprocess": Preprocess.model_validate(values)})
    return replace(cohort, spec=spec)


def _divided(cohort: Cohort, outcomes: Mapping[str, Any], wish: Wish, *, kind: str) -> Cohort:
    """The cases with an outcome, in their parts: those of the spec (drawn over all cases, as pre-training drew them),
    or one fold held out as the test part and the validation part drawn from the others."""
    import numpy as np

    from medmae.data.targets import with_parts
    from medmae.evaluate.label_curve import assign_folds

    if wish.folds == 1:
        parts = cohort.split()
        return with_parts(cohort, {c.key: part for part, cases in parts.items() for c in cases if c.key in outcomes})
    cases = [case for case in cohort.cases if case.key in outcomes]
    strata = [str(outcomes[case.key]["class" if kind == "classify" else "event"]) for case in cases]
    names = sorted(set(strata))
    if kind == "survive" and len(names) == 1:  # nothing to balance; all censored is told where bins are fitted
        names, strata = ["", *names], [("", names[0])[i % 2] for i in range(len(strata))]
    fold = assign_folds(
        np.array([names.index(s) for s in strata]), [c.subject for c in cases],
        classes=names, folds=wish.folds, seed=wish.seed,
    )  # fmt: skip
    if int(fold.max()) + 1 < wish.folds:
        raise DataError(
            f"--folds {wish.folds}: a class has {int(fold.max()) + 1} subject(s) only. Use fewer folds or more cases"
        )
    held = {case.key: "test" if f == wish.fold else None for case, f in zip(cases, fold.tolist(), strict=True)}
    return with_parts(cohort, held)


def _summary(
    wish: Wish,
    kind: str,
    columns: Mapping[str, str],
    parts: Mapping[str, Sequence[Any]],
    outcomes: Mapping[str, Any],
    source: Any,
    classes: Sequence[str],
    pretrained: Mapping[str, Any] | None,
) -> list[str]:
    counts = ", ".join(f"{len(parts[part])} {word}" for part, word in
                       (("train", "to train"), ("val", "to validate"), ("test", "held out")))  # fmt: skip
    start = "from scratch" if wish.from_scratch or pretrained is None else f"from {pretrained['method']}"
    lines = [f"Fine-tuning to {kind} {', '.join(columns.values())}, {start}", f"  cases     {counts}"]
    mine = [outcomes[case.key] for case in parts["train"]]
    if classes:
        found = Counter(str(outcome["class"]) for outcome in mine)
        lines.append("  classes   " + ", ".join(f"{name} {found[name]}" for name in classes))
    else:
        lines.append(f"  events    {sum(bool(outcome['event']) for outcome in mine)} of {len(mine)} in training")
    if not source.validation_size:
        lines.append("  There is no validation case: the last weights are kept, and nothing stops early.")
    return lines
