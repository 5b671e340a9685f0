"""``medmae evaluate segment``: overlap and surface distance of segmentations, per class and per subset of sequences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .console import emit, emit_json, flags, say
from .segmentation_model import open_model, predict_folder, refuse_leaks
from .segmentation_study import (
    ENDING,
    GIVEN,
    Predictions,
    Reference,
    Rules,
    find_dataset,
    measure_all,
    rules_of,
    rules_without_spec,
)

if TYPE_CHECKING:
    from medmae.data.cohort import Case, Cohort

PARTS = ("train", "val", "test", "all")
EMPTY = ("score", "skip")


def segment(
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
        Path | None, typer.Option(help="In place of --predictions: folder of a trained nnU-Net model, to predict with.")
    ] = None,
    subsets: Annotated[
        str, typer.Option(help="With --checkpoint: given (what a case has), all, or a list such as t1n,t1n+t2w.")
    ] = GIVEN,
    split: Annotated[str, typer.Option(help="Cases to measure: train, val, test or all.")] = "test",
    cases: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    targets: Annotated[
        str, typer.Option(help="What to measure: classes, regions, both; auto: regions where the spec has any.")
    ] = "auto",
    tolerance: Annotated[float, typer.Option(help="Millimeters within which a surface counts as found (NSD).")] = 1.0,
    empty: Annotated[
        str, typer.Option(help="Absent and not predicted: score (Dice 1, as BraTS) or skip (as nnU-Net).")
    ] = "score",
    fold: Annotated[list[str] | None, typer.Option(help="Folds of the model to average, repeatable.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and measure; 0 is this one.")] = 0,
    tta: Annotated[bool, typer.Option("--tta/--no-tta", help="Average over mirrored inputs.")] = True,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Measure on the model's training cases, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    identify: Annotated[
        bool, typer.Option("--identify", help="Write case names in place of short content hashes.")
    ] = False,
) -> None:
    """Measure segmentations: Dice, HD95 (mm) and surface Dice per class or region and per subset of sequences.

    With --checkpoint and --subsets all, an nnU-Net model predicts every case from every subset of its sequences, with
    placeholders for the others. Intervals are 95 % bootstrap intervals over cases. Where a class is absent and is not
    predicted, --empty says what counts.
    """
    if (data is None) == (references is None):
        raise UsageError("give --data (a spec with labels) or --references (a folder of labels), one of them")
    if (predictions is None) == (checkpoint is None):
        raise UsageError("give --predictions (a folder) or --checkpoint (a trained nnU-Net model folder), one of them")
    if checkpoint is not None and data is None:
        raise UsageError("--checkpoint needs --data: a folder of labels has no images to predict from")
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
    more: dict[str, Any] = {"tolerance": tolerance, "empty": empty}
    if references is not None and predictions is not None:
        found = _references(references)[:cases]
        dataset = find_dataset(predictions, references, references.parent)
        rules = rules_without_spec(dataset, found, **more)
        report(found, _folders(predictions, None), rules, out=out, workers=workers, seed=seed)
        return
    from medmae.data.cohort import open_cohort

    cohort = open_cohort(str(data))
    chosen = labeled(cohort, split=split)[:cases]
    if predictions is not None:
        dataset = find_dataset(predictions, predictions.parent)
        rules = rules_of(_label(cohort), dataset, targets=targets, on_mismatch=_mismatch(cohort), **more)
        parts = _folders(predictions, cohort.sequences)
        found = references_of(chosen, cohort.sequences, identify=identify)
        about: dict[str, Any] = {"split": split}
        by_name = {case.file_stem: frozenset(case.images) for case in chosen}
        parts = [
            p if p.given is None
            else Predictions(p.folder, p.given, frozenset(n for n, has in by_name.items() if set(p.given) <= has))
            for p in parts
        ]  # fmt: skip
        report(found, parts, rules, out=out, workers=workers, seed=seed, about=about)
        return
    evaluate_model(
        Path(str(checkpoint)),
        cohort,
        chosen,
        out=out,
        subsets=subsets,
        targets=targets,
        folds=fold,
        device=device,
        workers=workers,
        tta=tta,
        seed=seed,
        allow_leakage=allow_leakage,
        identify=identify,
        about={"split": split},
        **more,
    )


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
    rules = rules_of(_label(cohort), dataset, targets=targets, on_mismatch=_mismatch(cohort), **more)
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
                on_mismatch=_mismatch(cohort),
                workers=workers,
                quiet=flags().quiet,
            )
            predict_folder(model, inputs, folder, folds=folds, device=device, workers=workers, tta=tta)
            _remove(inputs)
        parts.append(Predictions(folder, given, frozenset(present.cases)))
    about = {"model": model.name, "sequences": list(known), "subsets": subsets, **(about or {})}
    report(found, parts, rules, out=out, workers=workers, seed=seed, about=about)


def report(
    references: Sequence[Reference],
    predictions: Sequence[Predictions],
    rules: Rules,
    *,
    out: Path,
    workers: int = 0,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Measure, write the tables and pictures, and print them."""
    from medmae.data.writing import writing
    from medmae.evaluate.segmentation_table import text, write
    from medmae.evaluate.statistics import summarize

    if not references:
        raise DataError("there is no case with a label to measure")
    rows = measure_all(references, predictions, rules, workers=workers)
    cells = summarize(rows, seed=seed)
    count = len({row.case for row in rows})
    about = {
        "task": "segmentation",
        "cases": count,
        "targets": {t.name: list(t.reference) for t in rules.targets},
        "empty": rules.empty,
        "nsd_tolerance_mm": rules.tolerance,
        "units": "hd95 in millimeters; dice and nsd between 0 and 1",
        "interval": "95 % percentile bootstrap over cases",
        "seed": seed,
        **(about or {}),
    }
    with writing(out):
        files = write(out, rows, cells, about=about, title=f"Segmentation of {count} case(s)")
    if flags().json:
        from medmae.evaluate.table import summary_json

        found = summary_json(cells, about)
        del found["verdict"]
        emit_json({**found, "files": {name: os.fspath(path) for name, path in files.items()}})
        return
    for metric, title in (("dice", "Dice"), ("hd95", "HD95 in mm"), ("nsd", f"NSD at {rules.tolerance:g} mm")):
        emit(f"{title}, mean over {count} case(s) [95 % interval]")
        emit(text(cells, metric=metric))
    emit(os.fspath(out))


def labeled(cohort: Cohort, *, split: str) -> list[Case]:
    """The cases of a part that have a label.

    Raises:
        UsageError: the spec has no labels.
        DataError: no case of the part has one.
    """
    _label(cohort)
    part = cohort.cases if split == "all" else cohort.split()[split]
    found = [case for case in part if case.label is not None]
    if not found:
        raise DataError(
            f"none of the {len(part)} case(s) of the {split} part has a label: correct label.file in the spec, "
            "or choose another --split"
        )
    if len(found) < len(part):
        say(f"{len(part) - len(found)} of {len(part)} case(s) have no label and are left out", style="yellow")
    return found


def references_of(cases: Sequence[Case], sequences: Sequence[str], *, identify: bool = False) -> list[Reference]:
    """The labels of cases; tables call a case by a hash of its images, or by its name."""
    from medmae.data.fingerprint import Fingerprints, case_files, case_hash

    prints = Fingerprints(None)
    return [
        Reference(
            key=case.key,
            name=case.file_stem,
            code=case.key if identify else case_hash(case_files(case, prints)),
            path=case.label,
            given=tuple(name for name in sequences if name in case.images),
        )
        for case in cases
        if case.label is not None
    ]


def _label(cohort: Cohort) -> Any:
    if cohort.spec.label is None:
        raise UsageError(
            f"{cohort.spec.path or cohort.spec.name}: the spec has no 'label', so there is nothing to measure against: "
            "add label: {file: ..., classes: {background: 0, ...}}"
        )
    return cohort.spec.label


def _mismatch(cohort: Cohort) -> str:
    return cohort.spec.geometry.on_mismatch


def _references(folder: Path) -> list[Reference]:
    from medmae.data.fingerprint import Fingerprints

    if not folder.is_dir():
        raise UsageError(f"--references {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDING) and not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no label; they are called case{ENDING}")
    prints = Fingerprints(None)
    names = [path.name.removesuffix(ENDING) for path in found]
    return [Reference(n, n, prints.of(path)[:16], path) for n, path in zip(names, found, strict=True)]


def _folders(folder: Path, sequences: Sequence[str] | None) -> list[Predictions]:
    """The folder itself, or one folder of predictions per subset in it."""
    if not folder.is_dir():
        raise UsageError(f"--predictions {folder}: no such folder")
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob(f"*{ENDING}"))]
    parts = []
    for path in inside:
        names = tuple(path.name.split("+"))
        if path.name == GIVEN:
            parts.append(Predictions(path))
        elif sequences is None or set(names) <= set(sequences):
            parts.append(Predictions(path, names))
    if any(folder.glob(f"*{ENDING}")) or not parts:
        return [Predictions(folder)]
    return parts


def chosen_subsets(text: str, known: Sequence[str], cases: Sequence[Case]) -> list[tuple[str, ...] | None]:
    """What ``--subsets`` means; None stands for what each case has."""
    from medmae.core.sequences import canonical
    from medmae.evaluate.protocol import subsets

    if text == GIVEN:
        return [None]
    if text == "all":
        every = [*subsets(tuple(known)), tuple(known)]
        return [s for s in every if any(set(s) <= set(case.images) for case in cases)]
    found: list[tuple[str, ...] | None] = []
    for word in text.split(","):
        try:
            names = {canonical(name) for name in word.split("+")}
        except ValueError as error:
            raise UsageError(f"--subsets {text!r}: {error}") from error
        unknown = sorted(names - set(known))
        if unknown:
            raise UsageError(
                f"--subsets {word}: the model has no {', '.join(unknown)}; it knows {', '.join(known)}. "
                "Write subsets such as t1n,t1n+t2w, or 'all', or 'given'"
            )
        if not any(names <= set(case.images) for case in cases):
            raise DataError(f"--subsets {word}: no case to measure has {' and '.join(sorted(names))}")
        found.append(tuple(name for name in known if name in names))
    return list(dict.fromkeys(found))


def _remove(folder: Path) -> None:
    """Remove the links and placeholders that a prediction was made from."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
