"""Plan, train and predict with nnU-Net in this process: one call each, no environment variables to set.

nnU-Net finds trainers by searching its own folders and those of a variable. Here the class is shown to it directly, as
an attribute of the module it searches first, and the variable is set besides for processes that it starts itself.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from medmae.core.errors import CheckpointError, DataError, UsageError

from .folders import Folders, require, shim
from .own_plans import ENTRY, plans_for
from .planning import Planned, check_fold, ensure_splits, plan, prepared_cases
from .plans import configuration as configuration_of
from .plans import plan_names, read_plans
from .pools import workers as use_workers
from .prediction import Predicted, model_folder, predict
from .settings import CHECKPOINT_VARIABLE, Settings

__all__ = ["Folders", "Planned", "Predicted", "Settings", "Trained", "plan", "predict", "shim", "train"]

TRAINER = "MedMAETrainer"
SEARCHED_FIRST = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
EXTERNAL = "nnUNet_extTrainer"


@dataclass(frozen=True)
class Trained:
    """A training that ended.

    Attributes:
        folder: of the model: plans.json, dataset.json and one folder per fold.
        plans: name of the plans it used.
        dice: mean foreground Dice of the final validation; None where it was left out, or nothing was to be found.
    """

    folder: Path
    plans: str
    dice: float | None = None


def register() -> Any:
    """Show the medmae trainer to nnU-Net in this process, and to processes it starts; returns the class."""
    from .trainer import MedMAETrainer

    setattr(import_module(SEARCHED_FIRST), TRAINER, MedMAETrainer)
    known = [part for part in os.environ.get(EXTERNAL, "").split(os.pathsep) if part]
    if str(shim()) not in known:
        os.environ[EXTERNAL] = os.pathsep.join([*known, str(shim())])
    return MedMAETrainer


def train(
    dataset: str | int,
    *,
    folders: Folders,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    plans: str | None = None,
    settings: Settings | None = None,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    validate: bool = True,
    workers: int = 0,
    gpus: int = 1,
    seed: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train one fold with the medmae trainer.

    Args:
        dataset: name or number of a dataset that was planned.
        folders: where nnU-Net's data lies.
        configuration: of the plans.
        fold: from 0, or ``all``.
        plans: name of the plans; may be left out where there is only one.
        settings: weights (else those of ``MEDMAE_CHECKPOINT``), schedule, lengths; see :class:`Settings`.
        device: ``cuda``, ``cpu`` or ``mps``; default: what there is.
        resume: go on from the last checkpoint; the pre-trained weights are not loaded again.
        overwrite: replace a training of this fold that has ended or was interrupted.
        validate: predict and score the fold's validation cases at the end.
        workers: processes that prepare batches and validation; 0 works in this one.
        gpus: graphics cards to share the batch; needs ``device="cuda"``.
        seed: of the random numbers of this process; fully reproducible only with ``workers=0``.
        say: told what happens.

    Raises:
        MissingDependency: no nnU-Net.
        UsageError: unknown dataset, plans, configuration or fold; or a training that would be replaced.
        DataError: no preprocessed data, or too few cases.
        CheckpointError: weights that do not fit, or nothing to resume from.
    """
    require()
    wanted = settings or Settings()
    full = folders.dataset(dataset)
    home = folders.preprocessed / full
    name = find_plans(home, plans)
    told = read_plans(home / f"{name}.json")
    values = configuration_of(told, configuration)
    if wanted.checkpoint is None and not (wanted.from_scratch or resume):
        wanted = replace(wanted, checkpoint=os.environ.get(CHECKPOINT_VARIABLE) or None)
        if wanted.checkpoint is None and "checkpoint" not in (told.get(ENTRY) or {}):
            say("No weights are given (--checkpoint): the training starts from random ones")
    if wanted.checkpoint is not None:
        wanted = replace(wanted, checkpoint=str(Path(wanted.checkpoint).expanduser().absolute()))
    cases = prepared_cases(home / str(values["data_identifier"]), full, name, configuration)
    if fold != "all" and (done := ensure_splits(home, cases)) is not None:
        say(done)
    chosen = _fold(fold)
    check_fold(home, chosen)
    if wanted.checkpoint is not None:
        name = plans_for(
            wanted.checkpoint,
            home=home,
            raw=folders.raw / full,
            name=name,
            configuration=configuration,
            names=wanted.channels,
            say=say,
        )
    register()
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if gpus > 1 and where != "cuda":
        raise UsageError(f"--gpus {gpus} needs --device cuda, not {where}")
    if seed is not None:
        import numpy as np

        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
    folder = model_folder(folders, full, trainer=TRAINER, plans=name, configuration=configuration)
    if resume and not any((folder / f"fold_{chosen}" / f"checkpoint_{kind}.pth").is_file() for kind in _KINDS):
        raise CheckpointError(
            f"{folder / f'fold_{chosen}'} holds no checkpoint to resume from: leave --resume out, or look at "
            "--plans and --fold"
        )
    begun = next((kind for kind in _KINDS if (folder / f"fold_{chosen}" / f"checkpoint_{kind}.pth").is_file()), None)
    if begun is not None and not (resume or overwrite):
        what, then = ("has ended", "train it longer") if begun == "final" else ("was interrupted", "go on with it")
        raise UsageError(
            f"{folder / f'fold_{chosen}'} holds a training that {what}: give --overwrite to replace it, --resume to "
            f"{then}, or --results FOLDER to keep both"
        )
    with use_workers(workers), wanted.in_environment():
        if gpus > 1:
            _on_many(full, configuration, chosen, name, gpus=gpus, resume=resume)
        else:
            _on_one(full, configuration, chosen, name, device=where, resume=resume, validate=validate)
    return Trained(folder, name, _dice(folder / f"fold_{chosen}") if validate else None)


_KINDS = ("final", "latest", "best")


def _on_one(
    dataset: str, configuration: str, fold: int | str, plans: str, *, device: str, resume: bool, validate: bool
) -> None:
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    kept = torch.backends.cudnn.benchmark
    trainer = get_trainer_from_args(
        dataset, configuration, fold, TRAINER, plans, continue_training=resume, device=torch.device(device)
    )
    try:
        maybe_load_checkpoint(trainer, resume, False)
        torch.backends.cudnn.benchmark = True
        trainer.run_training()
        if validate:
            trainer.perform_actual_validation()
    finally:
        torch.backends.cudnn.benchmark = kept


def _on_many(dataset: str, configuration: str, fold: int | str, plans: str, *, gpus: int, resume: bool) -> None:
    import torch
    from nnunetv2.run.run_training import run_training

    run_training(
        dataset,
        configuration,
        fold,
        TRAINER,
        plans,
        num_gpus=gpus,
        continue_training=resume,
        device=torch.device("cuda"),
    )


def find_plans(home: Path, name: str | None) -> str:
    """The name of the plans to use: the given one, or the only one.

    Raises:
        DataError: the dataset was not planned.
        UsageError: no such plans, or several and none named; the message lists them.
    """
    there = plan_names(home)
    if not there:
        raise DataError(f"{home} has no plans: run `medmae nnunet plan {home.name}` first")
    if name is None:
        user = [item for item in there if ENTRY not in read_plans(home / f"{item}.json")]
        if len(user) == 1:
            return user[0]
        raise UsageError(f"{home.name} has several plans: give --plans {' or '.join(there)}")
    if name.removesuffix(".json") not in there:
        raise UsageError(f"{home.name} has no plans {name!r}; there is {', '.join(there)}")
    return name.removesuffix(".json")


def _fold(fold: int | str) -> int | str:
    if fold == "all":
        return fold
    if not str(fold).isdecimal():
        raise UsageError(f"fold {fold!r} is neither a number from 0 nor 'all'")
    return int(fold)


def _dice(fold: Path) -> float | None:
    summary = fold / "validation" / "summary.json"
    if not summary.is_file():
        return None
    value = float(json.loads(summary.read_text("utf-8"))["foreground_mean"]["Dice"])
    return value if math.isfinite(value) else None  # no class in any case, nor predicted: there is nothing to score
