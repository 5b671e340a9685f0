"""Predict with a model that nnU-Net trained, with whatever sequences there are.

nnU-Net stacks the files it finds, so a missing channel is an error at best, and a shift of the others at worst. Here a
folder of links is made first in which every gap is closed with the value that the network sees as nothing; which
sequences a case really had is written beside the predictions. A checkpoint is looked through before nnU-Net opens it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medmae.checkpoint import WEIGHTS
from medmae.core.errors import CheckpointError, UsageError

from .checkpoints import read_checkpoint
from .folders import Folders, require
from .placeholders import fill_missing
from .plans import read_dataset, read_plans
from .pools import workers as use_workers
from .presence import Presence

FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class Predicted:
    """Segmentations that were written.

    Attributes:
        out: their folder; ``presence.json`` in it says which sequences each case had.
        model: the model's folder.
        folds: whose predictions were averaged.
        files: one segmentation per case.
        presence: the sequences of each case.
    """

    out: Path
    model: Path
    folds: tuple[int | str, ...]
    files: tuple[Path, ...]
    presence: Presence


def model_folder(folders: Folders, dataset: str, *, trainer: str, plans: str, configuration: str) -> Path:
    """Where nnU-Net keeps a trained model."""
    return folders.results / dataset / f"{trainer}__{plans}__{configuration}"


def predict(
    dataset: str | int | Path,
    *,
    folders: Folders,
    images: str | Path,
    out: str | Path,
    configuration: str = "3d_fullres",
    plans: str | None = None,
    trainer: str | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = FINAL,
    device: str | None = None,
    mirror: bool = True,
    keep: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Predicted:
    """Segment every case of a folder.

    Args:
        dataset: name or number of the dataset the model was trained on, or a model's folder itself.
        folders: where nnU-Net's data lies.
        images: folder with files such as ``case_0000.nii.gz``; a case may lack channels.
        out: folder for the segmentations.
        configuration: of the plans.
        plans: name of the plans; may be left out where one model fits.
        trainer: name of the trainer; may be left out where one model fits.
        folds: whose predictions are averaged; default: all that were trained to the end.
        checkpoint: which of each fold's checkpoints.
        device: ``cuda``, ``cpu`` or ``mps``; default: what there is.
        mirror: average over mirrored copies (eight times the work).
        keep: use these sequences only, as if the others were missing.
        overwrite: replace segmentations that exist.
        workers: processes that prepare and export; 0 works in this one.
        say: told what happens.

    Raises:
        MissingDependency: no nnU-Net.
        UsageError: unknown dataset or model, or segmentations that exist.
        DataError: a case that cannot be used; all faults are listed.
        CheckpointError: a checkpoint that cannot be read or holds more than numbers.
    """
    require()
    target = Path(out).expanduser().absolute()
    _check_out(target, Path(images).expanduser().absolute())
    model = find_model(dataset, folders=folders, configuration=configuration, plans=plans, trainer=trainer)
    chosen = _folds(model, folds, checkpoint)
    for fold in chosen:
        _check_checkpoint(model / f"fold_{fold}" / checkpoint)
    about, told = read_dataset(model), read_plans(model / "plans.json")
    name = str(read_checkpoint(model / f"fold_{chosen[0]}" / checkpoint)["init_args"]["configuration"])
    with tempfile.TemporaryDirectory(prefix="medmae-nnunet-") as inputs:
        presence = fill_missing(images, dataset=about, plans=told, out=inputs, name=name, keep=keep)
        files = tuple(target / f"{case}{about['file_ending']}" for case in sorted(presence.cases))
        there = [file.name for file in files if file.exists()]
        if there and not overwrite:
            raise UsageError(f"{target} holds {', '.join(there[:5])} already: give another folder, or --overwrite")
        for case in sorted(presence.cases):
            if lacking := presence.missing(case):
                say(f"{case}: without {', '.join(lacking)}")
        target.mkdir(parents=True, exist_ok=True)
        with use_workers(workers):
            _predict(model, chosen, checkpoint, inputs, target, device=device, mirror=mirror, workers=workers)
    presence = replace(presence, predicted=True)
    presence.save(target)
    return Predicted(target, model, chosen, files, presence)


def _predict(
    model: Path,
    folds: tuple[int | str, ...],
    checkpoint: str,
    inputs: str,
    out: Path,
    *,
    device: str | None,
    mirror: bool,
    workers: int,
) -> None:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor: Any = nnUNetPredictor(
        use_mirroring=mirror,
        perform_everything_on_device=where == "cuda",
        device=torch.device(where),
        allow_tqdm=False,
    )
    try:
        predictor.initialize_from_trained_model_folder(str(model), folds, checkpoint)
    except RuntimeError as error:
        why = " ".join(str(error).split()[:60])
        raise CheckpointError(f"{checkpoint} in {model} does not fit the plans beside it: {why}") from error
    if workers == 0:
        predictor.predict_from_files_sequential(inputs, str(out), overwrite=True)
    else:
        predictor.predict_from_files(
            inputs,
            str(out),
            overwrite=True,
            num_processes_preprocessing=workers,
            num_processes_segmentation_export=workers,
        )


def find_model(
    dataset: str | int | Path,
    *,
    folders: Folders,
    configuration: str,
    plans: str | None = None,
    trainer: str | None = None,
) -> Path:
    """The folder of the one trained model that fits.

    Raises:
        UsageError: none fits, or several do; the message lists what there is.
        CheckpointError: a path, and no trained model is there.
    """
    given = Path(str(dataset)).expanduser()
    if (given / "plans.json").is_file():
        return given.absolute()
    try:
        full = folders.dataset(str(dataset))
    except UsageError:
        if given.exists() or len(given.parts) > 1:
            raise not_a_model(given) from None
        raise
    home = folders.results / full
    there = sorted(path.parent.name for path in home.glob("*__*__*/plans.json"))
    fits = []
    for name in there:
        its_trainer, its_plans, its_configuration = name.split("__", 1)[0], name.split("__", 1)[1], ""
        its_plans, _, its_configuration = its_plans.rpartition("__")
        if its_configuration == configuration and plans in (None, its_plans) and trainer in (None, its_trainer):
            fits.append(name)
    if len(fits) == 1:
        return home / fits[0]
    wanted = "__".join((trainer or "*", plans or "*", configuration))
    if fits:
        raise UsageError(f"{full} has several models {wanted}: {', '.join(fits)}. Say which with --plans and --trainer")
    listed = ", ".join(there) or "none"
    raise UsageError(
        f"{full} has no trained model {wanted} in {home}; there is {listed}. Train one with `medmae nnunet train`"
    )


def not_a_model(path: Path) -> CheckpointError:
    """The error for something that was given in place of a model folder."""
    if any((path / place / WEIGHTS).is_file() for place in (".", "model")):
        return CheckpointError(
            f"{path} is a pre-trained model, which segments nothing yet: fine-tune it first (medmae finetune segment "
            "or medmae nnunet train), then give the folder that this prints"
        )
    return CheckpointError(
        f"{path} is no model folder of nnU-Net: it looks like nnUNet_results/Dataset501_Name/"
        "MedMAETrainer__nnUNetPlans__3d_fullres and holds plans.json, dataset.json and fold_0"
    )


def _check_out(out: Path, images: Path) -> None:
    """nnU-Net writes a dataset.json beside predictions, which must not be that of a data set."""
    if out.is_file():
        raise UsageError(f"{out} is a file; give a folder for the segmentations")
    if out.resolve() == images.resolve() or (out / "imagesTr").is_dir() or (out / "fold_0").is_dir():
        what = "the folder of the images" if out.resolve() == images.resolve() else "a data set or model"
        raise UsageError(f"{out} is {what}: the segmentations need a folder of their own")


def _folds(model: Path, folds: Sequence[int | str] | None, checkpoint: str) -> tuple[int | str, ...]:
    there = {path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}")}
    wanted = [str(fold) for fold in folds] if folds else sorted(there - {"all"}) or sorted(there)
    lacking = [fold for fold in wanted if fold not in there]
    if lacking or not wanted:
        begun = sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*"))
        unfinished = f"; begun: {', '.join(begun)}" if begun else ""
        raise UsageError(
            f"{model} has no {checkpoint} of fold {', '.join(lacking) or 'any'}; there is "
            f"{', '.join(sorted(there)) or 'none'}{unfinished}. Finish the training, or give --use checkpoint_best.pth"
        )
    return tuple(int(fold) if fold.isdecimal() else fold for fold in wanted)


def _check_checkpoint(path: Path) -> None:
    """Look a checkpoint through before nnU-Net executes what is in it, and see that its trainer can be found."""
    found = read_checkpoint(path)
    name = found.get("trainer_name")
    if name is None or "configuration" not in (found.get("init_args") or ()):
        raise CheckpointError(
            f"{path} holds weights, but not how they were trained (trainer_name, init_args): it is no checkpoint that "
            "nnU-Net's training wrote"
        )
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        recursive_find_trainer_class_by_name(str(name))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} was written by the trainer {name}, which nnU-Net does not find: set nnUNet_extTrainer to the "
            "folder that holds it"
        ) from error
