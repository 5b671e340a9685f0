"""``medmae evaluate segment``: overlap and surface distance of segmentations, per class and per subset of sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .against import HELP, check_against
from .console import flags, say
from .dense_model import is_task_folder
from .given import given_options
from .segmentation_cases import (
    GIVEN,
    chosen_subsets,
    folders_in,
    label_of,
    labeled,
    mismatch,
    references_in,
    references_of,
    report,
)
from .segmentation_model import open_model, predict_folder, refuse_leaks
from .segmentation_study import Predictions, find_dataset, rules_of, rules_without_spec

__all__ = ["GIVEN", "chosen_subsets", "evaluate_model", "labeled", "report", "segment"]

if TYPE_CHECKING:
    from medmae.data.cohort import Case, Cohort

HELD_OUT = "heldout"
PARTS = (HELD_OUT, "train", "val", "test", "all")
EMPTY = ("score", "skip")
NNUNET = {"fold": "--fold", "tta": "--tta"}
OWN = {"batch": "--batch", "overlap": "--overlap", "precision": "--precision"}


def segment(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the tables, pictures and predictions.")],
    data: Annotated[
        str | None, typer.Option(help="Cohort with labels: spec, nnU-Net folder, data list or CSV.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="In place of --data: folder of true labels, case.nii.gz.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Folder of predictions, case.nii.gz; or one such folder per subset, t1n+t2w.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="In place of --predictions: fine-tuned model or trained nnU-Net model folder.")
    ] = None,
    subsets: Annotated[
        str, typer.Option(help="With --checkpoint: given (what a case has), all, or a list such as t1n,t1n+t2w.")
    ] = GIVEN,
    split: Annotated[
        str | None,
        typer.Option(
            help="Cases to measure: train, val, test, all; heldout, the default of fine-tuned models: cases it was "
            "neither trained nor chosen on [else: test]."
        ),
    ] = None,
    cases: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    targets: Annotated[
        str, typer.Option(help="What to measure: classes, regions, both; auto: regions where the spec has any.")
    ] = "auto",
    tolerance: Annotated[float, typer.Option(help="Millimeters within which a surface counts as found (NSD).")] = 1.0,
    empty: Annotated[
        str, typer.Option(help="Absent and not predicted: score (Dice 1, as BraTS) or skip (as nnU-Net).")
    ] = "score",
    fold: Annotated[list[str] | None, typer.Option(help="nnU-Net: folds to average, repeatable.")] = None,
    batch: Annotated[int, typer.Option(help="Fine-tuned models: windows per forward pass.")] = 4,
    overlap: Annotated[float, typer.Option(help="Fine-tuned models: share of a window that others cover.")] = 0.5,
    precision: Annotated[str, typer.Option(help="Fine-tuned models: fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and measure; 0 is this one.")] = 0,
    tta: Annotated[bool, typer.Option("--tta/--no-tta", help="nnU-Net: average over mirrored inputs.")] = True,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Measure on the model's training cases, too.")
    ] = False,
    against: Annotated[Path | None, typer.Option(help=HELP)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    identify: Annotated[
        bool, typer.Option("--identify", help="Write case names in place of short content hashes.")
    ] = False,
) -> None:
    """Measure segmentations: Dice, HD95 (mm) and surface Dice per class or region and per subset of sequences.

    With --checkpoint and --subsets all, a model predicts every case from every subset of its sequences; nnU-Net's see
    placeholders for the others. Intervals are 95 % bootstrap intervals over cases. Where a class is absent and is not
    predicted, --empty says what counts.
    """
    if (data is None) == (references is None):
        raise UsageError("give --data (a spec with labels) or --references (a folder of labels), one of them")
    if (predictions is None) == (checkpoint is None):
        raise UsageError("give --predictions (a folder) or --checkpoint (a trained model), one of them")
    if checkpoint is not None and data is None:
        raise UsageError("--checkpoint needs --data: a folder of labels has no images to predict from")
    own = checkpoint is not None and is_task_folder(checkpoint)
    foreign = given_options(ctx, NNUNET if own else OWN)
    if foreign:
        raise UsageError(f"{', '.join(foreign)}: of no use for {'a fine-tuned model' if own else 'nnU-Net'}")
    split = (HELD_OUT if own else "test") if split is None else split
    if split == HELD_OUT and not own:
        raise UsageError("--split heldout needs a model that was fine-tuned with medmae, which knows whom it has seen")
    if split not in PARTS:
        raise UsageError(f"--split must be one of {', '.join(PARTS)}, not {split!r}")
    if empty not in EMPTY:
        raise UsageError(f"--empty must be one of {', '.join(EMPTY)}, not {empty!r}")
    if not tolerance >= 0 or tolerance == float("inf"):
        raise UsageError(f"--tolerance is {tolerance}; it is a distance in millimeters, 0 or larger")
    if cases is not None and cases < 1:
        raise UsageError("--cases must be at least 1")
    if predictions is not None and subsets != GIVEN:
        raise UsageError("--subsets needs --checkpoint: predictions that are there were made from what they were")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if (out / "summary.json").exists() and not overwrite:
        raise UsageError(f"{out} holds results already; add --overwrite to replace them, or choose another --out")
    if own and (out / "predictions").exists() and not overwrite:
        raise UsageError(f"{out / 'predictions'} exists; add --overwrite to replace it, or choose another --out")
    check_against(against, out)
    more: dict[str, Any] = {"tolerance": tolerance, "empty": empty}
    if references is not None and predictions is not None:
        found = references_in(references)[:cases]
        dataset = find_dataset(predictions, references, references.parent)
        rules = rules_without_spec(dataset, found, **more)
        report(found, folders_in(predictions, None), rules, out=out, workers=workers, seed=seed, against=against)
        return
    from medmae.data.cohort import open_cohort

    cohort = open_cohort(str(data))
    shared: dict[str, Any] = {
        "out": out, "subsets": subsets, "targets": targets, "device": device, "workers": workers, "seed": seed,
        "allow_leakage": allow_leakage, "identify": identify, "against": against, **more,
    }  # fmt: skip
    if own and checkpoint is not None:
        from .evaluate_dense import evaluate_segmenter

        evaluate_segmenter(
            checkpoint, cohort, split=split, cases=cases, batch=batch, overlap=overlap, precision=precision, **shared
        )
        return
    chosen = labeled(cohort, split=split)[:cases]
    if predictions is not None:
        dataset = find_dataset(predictions, predictions.parent)
        rules = rules_of(label_of(cohort), dataset, targets=targets, on_mismatch=mismatch(cohort), **more)
        parts = folders_in(predictions, cohort.sequences)
        found = references_of(chosen, cohort.sequences, identify=identify)
        about: dict[str, Any] = {"split": split}
        by_name = {case.file_stem: frozenset(case.images) for case in chosen}
        parts = [
            p if p.given is None
            else Predictions(p.folder, p.given, frozenset(n for n, has in by_name.items() if set(p.given) <= has))
            for p in parts
        ]  # fmt: skip
        report(found, parts, rules, out=out, workers=workers, seed=seed, about=about, against=against)
        return
    evaluate_model(Path(str(checkpoint)), cohort, chosen, folds=fold, tta=tta, about={"split": split}, **shared)


def evaluate_model(
    model: Path,
    cohort: Cohort,
    cases: Sequence[Case],
    *,
    out: Path,
    subsets: str = GIVEN,
    targets: str = "auto",
    folds: Sequence[str] | None = None,
    device: str = "auto",
    workers: int = 0,
    tta: bool = True,
    seed: int = 0,
    allow_leakage: bool = False,
    identify: bool = False,
    about: Mapping[str, Any] | None = None,
    against: Path | None = None,
    **more: Any,
) -> None:
    """Predict ``cases`` with an nnU-Net model from every subset asked for, measure, write and print.

    Raises:
        CheckpointError: not a model folder of nnU-Net.
        DataError: a subset that no case has, or training cases of the model.
        UsageError: a sequence the model does not know.
    """
    from medmae.data.writing import writing
    from medmae.transfer.nnunet.placeholders import sequences_of, write_inputs

    dataset, plans, configuration = open_model(model)
    rules = rules_of(label_of(cohort), dataset, targets=targets, on_mismatch=mismatch(cohort), **more)
    known = sequences_of(dataset)
    chosen = [case for case in cases if set(case.images) & set(known)]
    if not chosen:
        raise DataError(f"no case has any of the model's sequences ({', '.join(known)})")
    wanted = chosen_subsets(subsets, known, chosen)
    refuse_leaks(model, chosen, known, allowed=allow_leakage)
    found = references_of(chosen, known, identify=identify)
    parts = []
    for given in wanted:
        having = [case for case in chosen if given is None or set(given) <= set(case.images)]
        name = GIVEN if given is None else "+".join(given)
        folder, inputs = out / "predictions" / name, out / "inputs" / name
        say(f"predicting {len(having)} case(s) from {'what each has' if given is None else name}")
        with writing(out):
            present = write_inputs(
                having,
                dataset=dataset,
                plans=plans,
                out=inputs,
                name=configuration,
                keep=given,
                on_mismatch=mismatch(cohort),
                workers=workers,
                quiet=flags().quiet,
            )
            predict_folder(model, inputs, folder, folds=folds, device=device, workers=workers, tta=tta)
            _remove(inputs)
        parts.append(Predictions(folder, given, frozenset(present.cases)))
    about = {"model": model.name, "sequences": list(known), "subsets": subsets, **(about or {})}
    report(found, parts, rules, out=out, workers=workers, seed=seed, about=about, against=against)


def _remove(folder: Path) -> None:
    """Remove the links and placeholders that a prediction was made from."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
