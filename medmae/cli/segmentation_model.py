"""A model that nnU-Net trained, as the segmentation commands see it: what it is, its training cases, its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, UsageError

from .console import chatter_aside, detail
from .leakage import image_hashes, prints_of, refuse_training_cases

if TYPE_CHECKING:
    from medmae.data.cohort import Case

TRAINED_ON = "medmae_training.json"


def open_model(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """dataset.json, plans and configuration of a folder that nnU-Net trained.

    Raises:
        CheckpointError: it is something else.
    """
    from medmae.transfer.nnunet.plans import read_dataset, read_plans
    from medmae.transfer.nnunet.prediction import not_a_model

    if not (folder / "plans.json").is_file() or not (folder / "dataset.json").is_file():
        raise not_a_model(folder)
    configuration = folder.resolve().name.split("__")[-1]
    try:
        plans = read_plans(folder / "plans.json")
        if configuration not in plans["configurations"]:
            configuration = "3d_fullres"
        return read_dataset(folder), plans, configuration
    except UsageError as error:
        raise CheckpointError(str(error)) from error


def remember_training(model: Path, cases: Sequence[Case], sequences: Sequence[str]) -> Path:
    """Leave hashes of a model's training cases in its folder, for :func:`segment` to refuse them."""
    from medmae.data.fingerprint import read_json, write_json

    path = model / TRAINED_ON
    before = read_json(path, {})
    prints = prints_of(cases, sequences)
    found = {
        "subjects": {p.code for p in prints} | set(before.get("subjects", ())),
        "files": {digest[:16] for p in prints for digest in image_hashes(p.files)} | set(before.get("files", ())),
        "voxels": {digest for p in prints for digest in p.voxels} | set(before.get("voxels", ())),
    }
    write_json(path, {name: sorted(values) for name, values in found.items()})
    return path


def refuse_leaks(model: Path, cases: Sequence[Case], sequences: Sequence[str], *, allowed: bool) -> None:
    """Refuse to measure on what a model was fine-tuned on, where ``finetune`` left a record of that."""
    from medmae.data.fingerprint import read_json

    record = read_json(model / TRAINED_ON, {})
    if record:
        refuse_training_cases(prints_of(cases, sequences), record, allow=allowed)


def predict_folder(
    model: Path, inputs: Path, out: Path, *, folds: Sequence[str] | None, device: str, workers: int, tta: bool
) -> None:
    """Predict a complete folder of input with a trained nnU-Net model."""
    from medmae.transfer.nnunet.folders import Folders
    from medmae.transfer.nnunet.run import predict

    with chatter_aside(show=False):
        predict(
            model,
            folders=Folders.use(),
            images=inputs,
            out=out,
            folds=folds,
            device=None if device == "auto" else device,
            mirror=tta,
            overwrite=True,
            workers=workers,
            say=detail,
        )
