"""Write a synthetic cohort to disk: one folder per case, a clinical table, and the spec that describes it all.

Every case is finished in a hidden folder and then renamed, so that an interrupted run leaves only whole cases and the
next run makes the rest. What a cohort was made with is kept beside it: a folder never holds cases of two recipes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from medmae.atomic import flush, write_text
from medmae.core.errors import DataError, UsageError
from medmae.data.synthetic.anatomy import load_template
from medmae.data.synthetic.case import case_name, make_case, present_sequences
from medmae.data.synthetic.signal import SEQUENCES
from medmae.data.synthetic.tumor import LABELS
from medmae.data.workers import each, progress

VERSION = 1  # of what is drawn: raise it when the same seed gives other images
RECIPE, FACTS, TABLE, SPEC = "cohort.json", "case.json", "clinical.csv", "spec.yaml"
COARSEST_MM, FINEST_MM = 8.0, 0.5
_CASE = re.compile(r"synth_\d{5,}")
_UNFINISHED = re.compile(r"\.synth_\d{5,}\.\d+")


def synthesize(
    out: str | Path,
    *,
    cases: int,
    spacing: float | int = 2.0,
    seed: int = 0,
    missing: float | int = 0.0,
    overwrite: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> Path:
    """Write ``cases`` synthetic patients under ``out`` and return the path of their ``spec.yaml``.

    Args:
        out: each case is ``<out>/<case>/{t1n,t1c,t2w,t2f,seg,mask}.nii.gz``, the images int16, RAS. Called again on the
            same folder, only what is not there is made.
        cases: number of patients.
        spacing: voxel size in millimeters.
        seed: case ``i`` depends on ``seed`` and ``i`` alone.
        missing: probability of each sequence of each case to be lacking; one always stays.
        overwrite: remove a cohort that ``out`` holds first.
        workers: processes (default: one per core); 0 or 1 is this process.
        quiet: show no progress bar.

    Raises:
        UsageError: impossible settings, or a folder with something else in it.
        MissingDependency: nilearn is not installed.
    """
    _check(cases=cases, spacing=spacing, seed=seed, missing=missing, workers=workers)
    folder = Path(out)
    recipe = {"version": VERSION, "spacing": float(spacing), "seed": int(seed), "missing": float(missing)}
    load_template(float(spacing))  # fails here, once, rather than in every worker
    if overwrite:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, recipe, cases)
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):  # what an interrupted run left
            shutil.rmtree(path)
    todo = [index for index in range(cases) if not (folder / case_name(index)).is_dir()]
    _make(folder, todo, recipe, workers if workers is not None else os.cpu_count() or 1, quiet)
    write_text(folder / TABLE, _table(folder, cases))
    write_text(folder / SPEC, _spec(recipe))
    return folder / SPEC


def _check(*, cases: int, spacing: float | int, seed: int, missing: float | int, workers: int | None) -> None:
    faults = []
    if cases < 1:
        faults.append(f"cases is {cases}; make at least 1")
    if not FINEST_MM <= spacing <= COARSEST_MM:
        faults.append(f"spacing is {spacing} mm; choose {FINEST_MM} to {COARSEST_MM} (2 is quick, 1 is real)")
    if seed < 0:
        faults.append(f"seed is {seed}; choose 0 or larger")
    if not 0 <= missing < 1:
        faults.append(f"missing is {missing}; it is a probability, 0 or larger and less than 1")
    if workers is not None and workers < 0:
        faults.append(f"workers is {workers}; choose 0 or 1 (this process), or more")
    if faults:
        raise UsageError("cannot synthesize a cohort: " + "; ".join(faults))


def _claim(folder: Path, recipe: dict[str, Any], cases: int) -> None:
    """Make sure that ``folder`` is empty or holds the beginning of exactly this cohort."""
    path = folder / RECIPE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [f"{key} {found.get(key)}, now {value}" for key, value in recipe.items() if found.get(key) != value]
        present = sum(1 for entry in folder.iterdir() if _CASE.fullmatch(entry.name))
        if present > cases:
            other.append(f"{present} cases, now {cases}")
        if other:
            raise UsageError(
                f"{folder} holds a cohort made with {'; '.join(other)}: "
                "choose another --out, or --overwrite to replace it"
            )
        return
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no synthetic cohort: choose an empty or new folder as --out")
    write_text(path, json.dumps(recipe, indent=2) + "\n")


def _clear(folder: Path) -> None:
    """Remove a cohort this module made, and nothing else."""
    if not (folder / RECIPE).is_file():
        return
    for path in folder.iterdir():
        if _CASE.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)
    for name in (TABLE, SPEC, RECIPE):
        (folder / name).unlink(missing_ok=True)


def _make(folder: Path, todo: list[int], recipe: dict[str, Any], workers: int, quiet: bool) -> None:
    """Write the cases ``todo``, in this process or in several."""
    jobs = [(folder, index, recipe) for index in todo]
    in_processes = min(workers, len(todo)) if min(workers, len(todo)) > 1 else 0
    with progress("synthesizing", len(todo), quiet=quiet) as advance:
        for _, outcome in each(write_case, jobs, workers=in_processes, preload=(__name__,)):
            if outcome.died:
                raise DataError(
                    f"a worker that wrote synthetic cases to {folder} was killed, most likely for lack of memory: "
                    "finished cases are kept, run it again with fewer --workers"
                )
            if outcome.error is not None:
                raise outcome.error
            advance()


def write_case(folder: Path, index: int, recipe: dict[str, Any]) -> None:
    """Make case ``index`` and put its folder in place all at once."""
    import nibabel
    import numpy as np

    image_of: Any = nibabel.Nifti1Image
    name = case_name(index)
    case = make_case(index, seed=recipe["seed"], spacing=recipe["spacing"])
    present = present_sequences(index, seed=recipe["seed"], missing=recipe["missing"])
    unfinished = folder / f".{name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    arrays = {sequence: case.images[sequence] for sequence in present}
    arrays |= {"seg": case.label, "mask": case.mask.astype(np.uint8)}
    for stem, array in arrays.items():
        image = image_of(array, case.affine)
        image.set_sform(case.affine, code=1)
        image.set_qform(case.affine, code=1)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"medmae synthetic cohort"
        nibabel.save(image, unfinished / f"{stem}.nii.gz")
    facts = {"case": name, "sequences": list(present)} | case.describe()
    (unfinished / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for path in unfinished.iterdir():
        flush(path)
    try:
        os.replace(unfinished, folder / name)
    except OSError:
        if not (folder / name).is_dir():
            raise
        shutil.rmtree(unfinished)  # another run was faster; what it wrote is the same


def _table(folder: Path, cases: int) -> str:
    """The clinical table of all cases, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for index in range(cases):
        facts = json.loads((folder / case_name(index) / FACTS).read_text(encoding="utf-8"))
        if index == 0:
            writer.writerow(["case", *facts["patient"]])
        writer.writerow([facts["case"], *facts["patient"].values()])
    return text.getvalue()


def _spec(recipe: dict[str, Any]) -> str:
    """The data spec of the cohort."""
    spacing = f"{recipe['spacing']:g}"
    classes = ", ".join(f"{name}: {value}" for name, value in LABELS.items())
    return f"""\
# Synthetic four-sequence brain MRI with tumors (medmae data synthesize, seed {recipe["seed"]}).
medmae: 1
name: synthetic
root: .
pattern: "{{case}}/{{seq}}.nii.gz"
sequences: [{", ".join(SEQUENCES)}]
subject: "^(synth_\\\\d+)$"
require: 1
label:
  file: "{{case}}/seg.nii.gz"
  classes: {{{classes}}}
  regions: {{whole_tumor: [1, 2, 3], tumor_core: [1, 3], enhancing: [3]}}
mask: {{file: "{{case}}/mask.nii.gz"}}
table:
  file: {TABLE}
  key: case
  columns: {{idh: class, age: number, os_days: time, os_event: event}}
geometry: {{on_mismatch: error}}
preprocess:
  orientation: RAS
  spacing: [{spacing}, {spacing}, {spacing}]
  crop: foreground
  normalize: zscore_foreground
split: {{by: subject, seed: 0, val: 0.1, test: 0.1}}
license: "synthetic images, no patient; anatomy from the MNI ICBM152 2009a maps"
"""
