"""Segmentations of patients as label maps that overlay on their images.

Everything is written beside its place first and moved there when the last patient is done, so that a fault in one of a
hundred leaves nothing that looks like a result.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .console import emit, emit_json, flags, say
from .dense_model import Segmenter, write_labels
from .task_model import TaskModel

if TYPE_CHECKING:
    from .predict import Order, Patient

ENDINGS = (".nii.gz", ".nii")
DATASET = "dataset.json"


def predict_segment(model: TaskModel, patients: Sequence[Patient], order: Order) -> None:
    """One label map per patient; with probabilities, one more image per name.

    The values are those of the spec that the model was trained on: for classes the likeliest; regions are painted over
    one another from large to small. A folder also gets a ``dataset.json`` that says what the values mean.

    Raises:
        UsageError: files that exist, or a name that does not fit.
        DataError: patients that cannot be read: all of them at once; nothing is written then.
    """
    from medmae.data.workers import progress
    from medmae.data.writing import writing

    segmenter = Segmenter.of(model, overlap=order.overlap)
    places = _places(patients, order, segmenter)
    home = order.out if order.cohort else order.out.parent
    written = [path for files in places for path in files.values()]
    written += [home / DATASET] if order.cohort else []
    _spare_inputs(patients, written)
    there = [path for path in written if path.exists()]
    if there and not order.overwrite:
        raise UsageError(f"{there[0]} exists already; add --overwrite to replace it")
    if home.exists() and not home.is_dir():
        raise UsageError(f"--out {order.out}: {home} is a file; give a folder")
    faults: list[str] = []
    told: list[dict[str, Any]] = []
    new = [folder for folder in home.parents if not folder.exists()]  # the deepest first
    with writing(order.out):
        home.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{order.out.name[:40]}-", dir=home if home.is_dir() else home.parent))
    try:
        with progress("predicting", len(patients), quiet=flags().quiet) as advance:
            for patient, files in zip(patients, places, strict=True):
                try:
                    told.append(_predict(segmenter, patient, files, aside, home, probabilities=order.probabilities))
                except DataError as error:
                    faults.append(str(error))
                advance()
        if faults:
            raise DataError(
                f"{len(faults)} of {len(patients)} case(s) cannot be predicted, nothing was written:\n  - "
                + "\n  - ".join(faults)
            )
        with writing(order.out):
            if order.cohort:
                _describe(aside / DATASET, segmenter)
            for path in sorted(p for p in aside.rglob("*") if p.is_file()):
                target = home / path.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in new:
            with suppress(OSError):  # not empty: the result is in it
                folder.rmdir()
    if flags().json:
        emit_json(told)
    else:
        emit(os.fspath(order.out))


def _places(patients: Sequence[Patient], order: Order, segmenter: Segmenter) -> list[dict[str, Path]]:
    """Files of every patient: ``""`` is the label map, the others are probabilities by name.

    Raises:
        UsageError: a name that does not fit.
    """
    from medmae.data.cohort import safe_stem

    out = order.out
    names = segmenter.meaning.names if order.probabilities else ()
    if order.cohort:
        if out.name.lower().endswith((*ENDINGS, ".csv")):
            raise UsageError(f"--out {out}: a cohort is written to a folder, one file per case; name a folder")
        stems = [safe_stem(patient.name) for patient in patients]
        return [
            {"": out / f"{stem}.nii.gz", **{n: out / f"probability_{safe_stem(n)}" / f"{stem}.nii.gz" for n in names}}
            for stem in stems
        ]
    ending = next((e for e in ENDINGS if out.name.lower().endswith(e)), None)
    if ending is None or out.is_dir():
        raise UsageError(f"--out {out}: name a .nii.gz file for the label map")
    stem = out.name[: -len(ending)]
    more = {name: out.with_name(f"{stem}_probability_{safe_stem(name)}{ending}") for name in names}
    return [{"": out, **more} for _ in patients]


def _spare_inputs(patients: Sequence[Patient], written: Sequence[Path]) -> None:
    """Raises UsageError where a result would replace an image or mask, which --overwrite does not mean either."""
    sources = {
        os.path.realpath(path)
        for patient in patients
        for path in (*patient.images.values(), *([patient.mask] if patient.mask else []))
    }
    for path in written:
        if os.path.realpath(path) in sources:
            raise UsageError(f"{path} is an input; choose another --out")


def _predict(
    segmenter: Segmenter, patient: Patient, files: dict[str, Path], aside: Path, home: Path, *, probabilities: bool
) -> dict[str, Any]:
    """Predict one patient and write it aside; what is told of it."""
    import numpy as np

    from medmae.data.nifti import write_like

    case = segmenter.load(patient.images, mask=patient.mask, name=f"case {patient.name}")
    if odd := [name for name in case.odd if name not in case.images]:
        say(f"{patient.name}: {', '.join(odd)} has one value only: left out", style="yellow")
    probability = segmenter.probability(case)
    labels = segmenter.labels(probability, case)
    write_labels(aside / files[""].relative_to(home), labels, case)
    if probabilities:
        for name, values in segmenter.maps(probability, case).items():
            path = aside / files[name].relative_to(home)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_like(path, values, case.header, description="medmae: research only")
    voxel = float(abs(np.linalg.det(np.asarray(case.header.affine)[:3, :3]))) / 1000
    meaning = segmenter.meaning
    return {
        "case": patient.name,
        "given": [name for name in segmenter.sequences if name in case.images],
        "out": os.fspath(files[""]),
        "milliliters": {
            name: round(float(np.isin(labels, held).sum()) * voxel, 3)
            for name, held in zip(meaning.names, meaning.values, strict=True)
        },
    }


def _describe(path: Path, segmenter: Segmenter) -> None:
    """What the values mean, as nnU-Net's dataset.json says it: ``evaluate segment --predictions`` reads it."""
    import json

    from medmae.atomic import write_text

    labels = {name: list(held) if len(held) > 1 else held[0] for name, held in segmenter.meaning.labels().items()}
    known = {"labels": {"background": 0, **labels}, "file_ending": ".nii.gz"}
    write_text(path, json.dumps(known, indent=2) + "\n")
