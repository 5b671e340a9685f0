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

from .completion_write import Request, complete_and_write
from .console import emit, emit_json, flags, say
from .given import given_options
from .reconstruct import named_inputs, target_names
from .task_model import TaskModel, open_task, usable

DENSE = {"probabilities": "--probabilities", "overlap": "--overlap"}
SYNTHESIS = {
    "targets": "--targets", "uncertainty": "--uncertainty", "reference": "--reference", "units": "--units",
    "match": "--match", "resample": "--resample", "hide_present": "--hide-present", "identify": "--identify",
}  # fmt: skip
PARTS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Patient:
    """One case to predict: its name in the result, and its files."""

    name: str
    images: Mapping[str, Path]
    mask: Path | None


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        out: file or folder.
        overwrite: replace what is there.
        cohort: whether the patients are those of a cohort, rather than one given by its files.
        probabilities: of segmentation: write probabilities, too.
        overlap: of windows, where every voxel has an answer.
        members: of synthesis: all models, the first one included.
        request: of synthesis.
    """

    out: Path
    overwrite: bool = False
    cohort: bool = False
    probabilities: bool = False
    overlap: float = 0.5
    members: tuple[TaskModel, ...] = ()
    request: Request | None = None


def run(
    ctx: typer.Context,
    checkpoint: Annotated[
        list[Path], typer.Option(help="Fine-tuned model or run folder; several that synthesize are an ensemble.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="To write: .csv (classes, survival), .nii.gz (images), or with --data their folder."),
    ],
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
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Segmentation: write the probability of each name, too.")
    ] = False,
    overlap: Annotated[float, typer.Option(help="Images: share of a window that others cover, per axis.")] = 0.5,
    targets: Annotated[
        str | None, typer.Option(help="Synthesis: sequences to make, such as t1c,t2f [default: all that are missing].")
    ] = None,
    uncertainty: Annotated[
        int, typer.Option(min=0, help="Synthesis: passes with dropout, whose deviation is written, too.")
    ] = 0,
    reference: Annotated[
        str | None, typer.Option(help="Synthesis: sequence whose grid is written [default: the first given].")
    ] = None,
    units: Annotated[str | None, typer.Option(help="Synthesis: cohort or zscore, as of `medmae reconstruct`.")] = None,
    match: Annotated[
        Path | None, typer.Option(help="Synthesis: image of the target sequence that gives the units.")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Synthesis: bring inputs of another grid to that of the reference.")
    ] = False,
    hide_present: Annotated[
        bool, typer.Option("--hide-present", help="Synthesis, with --data: make --targets that a case has, too.")
    ] = False,
    identify: Annotated[
        bool, typer.Option("--identify", help="Synthesis: write file and case names into the sidecar.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Predict with a fine-tuned model, from any subset of its sequences.

    Classes: the likeliest one and the probability of each. Survival: the risk (larger is sooner) and, in discrete time,
    the expected time up to the last interval and the probability to survive each interval. Whole volumes are covered by
    windows. Segmentation: a label map with the values of the spec that it was trained on, on the grid of the first
    image. Synthesis: every missing sequence, marked as synthetic, with a sidecar, in the units of `medmae reconstruct`.
    A research tool: not for diagnosis.
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
    models = [open_task(path, device=device, batch=batch, precision=precision) for path in checkpoint]
    model = models[0]
    kind = str(model.task.get("kind"))
    if kind not in KINDS:
        raise CheckpointError(
            f"{checkpoint[0]} is fine-tuned to {kind}, which this medmae cannot predict: upgrade medmae"
        )
    if kind != "synthesize" and len(models) > 1:
        raise UsageError(f"--checkpoint is given {len(models)} times: only models that synthesize make an ensemble")
    if kind != "synthesize" and (foreign := given_options(ctx, SYNTHESIS)):
        raise UsageError(f"{', '.join(foreign)}: of no use for a model that is fine-tuned to {kind}")
    if kind == "synthesize" and (foreign := given_options(ctx, {"probabilities": "--probabilities"})):
        raise UsageError(f"{', '.join(foreign)}: of no use for a model that is fine-tuned to {kind}")
    if KINDS[kind] is predict_table and (foreign := given_options(ctx, DENSE)):
        raise UsageError(f"{', '.join(foreign)}: of no use for a model that is fine-tuned to {kind}")
    if data is None:
        patients = [Patient(next(iter(named.values())).name.split(".")[0], named, mask)]
    else:
        from medmae.data.cohort import open_cohort

        cohort = open_cohort(data)
        cases = cohort.cases if split == "all" else cohort.split()[split]
        patients = [Patient(c.key, c.images, c.mask) for c in usable(cases, model, where=f"of {data}")]
    request = Request(
        named=named,
        targets=None if targets is None else target_names(targets),
        out=out,
        data=data,
        part=split,
        mask=mask,
        reference=reference,
        units=units,
        match=match,
        resample=resample,
        hide_present=hide_present,
        passes=uncertainty,
        overwrite=overwrite,
        identify=identify,
    )
    order = Order(out, overwrite, data is not None, probabilities, overlap, tuple(models), request)
    KINDS[kind](model, patients, order)


def predict_table(model: TaskModel, patients: Sequence[Patient], order: Order) -> None:
    """One line per patient as CSV. Nothing is written where a patient cannot be read; all faults are told at once."""
    from medmae.atomic import write_text
    from medmae.data.workers import progress
    from medmae.data.writing import writing
    from medmae.evaluate.cells import cell, csv_text

    out = order.out
    if out.is_dir() or out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: name a .csv file")
    if out.exists() and not order.overwrite:
        raise UsageError(f"{out} exists already; add --overwrite to replace it")
    lines: list[list[object]] = []
    faults: list[str] = []
    with progress("predicting", len(patients), quiet=flags().quiet) as advance:
        for patient in patients:
            try:
                loaded = model.load(patient.images, mask=patient.mask, name=patient.name)
                if odd := [name for name in loaded.odd if name not in loaded.images]:
                    say(f"{patient.name}: {', '.join(odd)} has one value only: left out", style="yellow")
                given = "+".join(name for name in model.sequences if name in loaded.images)
                lines.append([patient.name, given, *model.values(model.predict(loaded))])
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


def predict_labels(model: TaskModel, patients: Sequence[Patient], order: Order) -> None:
    """Label maps; see ``predict_segment``."""
    from .predict_segment import predict_segment

    predict_segment(model, patients, order)


def predict_images(model: TaskModel, patients: Sequence[Patient], order: Order) -> None:
    """What patients lack, as NIfTI; see :mod:`medmae.cli.completion_write`."""
    from .synthesizer import synthesizer_of

    assert order.request is not None
    complete_and_write(order.request, lambda: synthesizer_of(order.members, overlap=order.overlap), verb="synthesized")


KINDS: Mapping[str, Callable[[TaskModel, Sequence[Patient], Order], None]] = {
    "classify": predict_table,
    "regress": predict_table,
    "segment": predict_labels,
    "survive": predict_table,
    "synthesize": predict_images,
}
"""Kind of a task -> what predicts it and writes the result."""
