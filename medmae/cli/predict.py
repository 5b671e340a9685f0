"""``medmae predict``: what a fine-tuned model says of patients, with whatever sequences they have.

The kind of the model decides what is written; each kind has one function, in :data:`KINDS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medmae.core.errors import CheckpointError, DataError, UsageError

from .console import emit, emit_json, flags
from .reconstruct import named_inputs
from .task_model import TaskModel, open_task, usable

PARTS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Patient:
    """One case to predict: its name in the result, and its files."""

    name: str
    images: Mapping[str, Path]
    mask: Path | None


def run(
    checkpoint: Annotated[Path, typer.Option(help="Fine-tuned model or run folder.")],
    out: Annotated[Path, typer.Option(help="File to write: .csv for classes and survival.")],
    data: Annotated[str | None, typer.Option(help="A cohort: spec, folder, data list or CSV.")] = None,
    t1n: Annotated[Path | None, typer.Option(help="T1-weighted image.")] = None,
    t1c: Annotated[Path | None, typer.Option(help="T1-weighted image with contrast agent.")] = None,
    t2w: Annotated[Path | None, typer.Option(help="T2-weighted image.")] = None,
    t2f: Annotated[Path | None, typer.Option(help="FLAIR image.")] = None,
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="Any other sequence: NAME=FILE; repeatable.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Foreground (brain) mask; estimated where there is none.")] = None,
    split: Annotated[str, typer.Option(help="With --data: train, val, test or all of its cases.")] = "all",
    batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Predict with a fine-tuned model, from any subset of its sequences.

    Classes: the likeliest one and the probability of each. Survival: the risk (larger is sooner) and, in discrete time,
    the expected time up to the last interval and the probability to survive each interval. Whole volumes are covered by
    windows. A research tool: not for diagnosis.
    """
    named = named_inputs({"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}, input_ or [])
    if data is not None and (named or mask is not None):
        raise UsageError("--data names whole cases; it cannot be combined with single files or --mask")
    if data is None and not named:
        raise UsageError(
            "no input: give at least one sequence (--t1n FILE, --input NAME=FILE), or a cohort with --data"
        )
    if split not in PARTS:
        raise UsageError(f"--split must be one of {', '.join(PARTS)}, not {split!r}")
    model = open_task(checkpoint, device=device, batch=batch, precision=precision)
    kind = str(model.task.get("kind"))
    if kind not in KINDS:
        raise CheckpointError(f"{checkpoint} is fine-tuned to {kind}, which this medmae cannot predict: upgrade medmae")
    if data is None:
        patients = [Patient(next(iter(named.values())).name.split(".")[0], named, mask)]
    else:
        from medmae.data.cohort import open_cohort

        cohort = open_cohort(data)
        cases = cohort.cases if split == "all" else cohort.split()[split]
        patients = [Patient(c.key, c.images, c.mask) for c in usable(cases, model, where=f"of {data}")]
    KINDS[kind](model, patients, out, overwrite)


def predict_table(model: TaskModel, patients: Sequence[Patient], out: Path, overwrite: bool) -> None:
    """One line per patient as CSV. Nothing is written where a patient cannot be read; all faults are told at once."""
    from medmae.atomic import write_text
    from medmae.data.workers import progress
    from medmae.data.writing import writing
    from medmae.evaluate.cells import cell, csv_text

    if out.is_dir() or out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: name a .csv file")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; add --overwrite to replace it")
    lines: list[list[object]] = []
    faults: list[str] = []
    with progress("predicting", len(patients), quiet=flags().quiet) as advance:
        for patient in patients:
            try:
                found = model.predict(patient.images, mask=patient.mask, name=patient.name)
                given = "+".join(name for name in model.sequences if name in patient.images)
                lines.append([patient.name, given, *model.values(found)])
            except DataError as error:
                faults.append(str(error))
            advance()
    if faults:
        raise DataError(
            f"{len(faults)} of {len(patients)} case(s) cannot be predicted, nothing was written:\n  - "
            + "\n  - ".join(faults)
        )
    head = ["case", "given", *model.columns()]
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shown = [[cell(v) if isinstance(v, str) else v for v in line] for line in lines]
        write_text(out, csv_text([cell(name) for name in head], shown))
    if flags().json:
        emit_json([dict(zip(head, line, strict=True)) for line in lines])
    else:
        emit(os.fspath(out))


KINDS: Mapping[str, Callable[[TaskModel, Sequence[Patient], Path, bool], None]] = {
    "classify": predict_table,
    "survive": predict_table,
}
"""Kind of a task -> what predicts it and writes the result."""
