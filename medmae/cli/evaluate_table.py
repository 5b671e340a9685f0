"""``medmae evaluate classify``, ``survive`` and ``regress``: a model on held-out patients, subset by subset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .against import HELP, check_against, compared
from .console import emit, emit_json, flags, say
from .evaluate_segment import GIVEN, chosen_subsets
from .task_model import TaskModel, open_task, usable

if TYPE_CHECKING:
    import numpy as np

    from medmae.data.inference import InferenceCase

HELD_OUT = "heldout"
METRICS = ("auc", "ap", "balanced_accuracy", "c_index", "r2", "mae", "spearman")
PARTS = (HELD_OUT, "train", "val", "test", "all")

Checkpoint = Annotated[Path, typer.Option(help="Fine-tuned model or run folder.")]
Data = Annotated[str, typer.Option(help="Cohort: spec with a table.")]
Out = Annotated[Path, typer.Option(help="Folder for the tables and pictures.")]
Subsets = Annotated[str, typer.Option(help="given (what a case has), all, or a list such as t1n,t1n+t2w.")]
Split = Annotated[
    str, typer.Option(help="heldout: cases it was neither trained nor chosen on; or train, val, test, all.")
]
Cases = Annotated[int | None, typer.Option(help="At most so many cases.")]
Batch = Annotated[int, typer.Option(help="Windows per forward pass.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]
Leakage = Annotated[bool, typer.Option("--allow-leakage", help="Measure on the model's training cases, too.")]
Against = Annotated[Path | None, typer.Option(help=HELP)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
Identify = Annotated[bool, typer.Option("--identify", help="Write case names in place of short content hashes.")]


def classify(
    checkpoint: Checkpoint,
    data: Data,
    out: Out,
    subsets: Subsets = GIVEN,
    against: Against = None,
    split: Split = HELD_OUT,
    cases: Cases = None,
    batch: Batch = 1,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    allow_leakage: Leakage = False,
    overwrite: Overwrite = False,
    identify: Identify = False,
) -> None:
    """Measure a classifier: AUC, average precision and balanced accuracy per subset of sequences.

    Two classes: AUC and average precision of the second one by name. More: means over classes, one against the rest.
    Intervals are 95 % bootstrap intervals over patients within classes.
    """
    _run("classify", locals())


def survive(
    checkpoint: Checkpoint,
    data: Data,
    out: Out,
    subsets: Subsets = GIVEN,
    against: Against = None,
    split: Split = HELD_OUT,
    cases: Cases = None,
    batch: Batch = 1,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    allow_leakage: Leakage = False,
    overwrite: Overwrite = False,
    identify: Identify = False,
) -> None:
    """Measure a survival model: Harrell's concordance per subset of sequences.

    Intervals are 95 % bootstrap intervals over patients, events and censored apart.
    """
    _run("survive", locals())


def regress(
    checkpoint: Checkpoint,
    data: Data,
    out: Out,
    subsets: Subsets = GIVEN,
    against: Against = None,
    split: Split = HELD_OUT,
    cases: Cases = None,
    batch: Batch = 1,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    allow_leakage: Leakage = False,
    overwrite: Overwrite = False,
    identify: Identify = False,
) -> None:
    """Measure predictions of a number: R2, mean absolute error and rank correlation per subset of sequences.

    R2 is 0 for whoever always says the mean of these cases, below for worse. Intervals are 95 % bootstrap
    intervals over patients.
    """
    _run("regress", locals())


def _run(kind: str, options: Mapping[str, Any]) -> None:
    from medmae.data.cohort import open_cohort
    from medmae.data.targets import read_outcomes
    from medmae.data.writing import writing
    from medmae.evaluate.results import subject_codes

    out, split, limit = options["out"], options["split"], options["cases"]
    if split not in PARTS:
        raise UsageError(f"--split must be one of {', '.join(PARTS)}, not {split!r}")
    if limit is not None and limit < 1:
        raise UsageError("--cases must be at least 1")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if (out / "summary.json").exists() and not options["overwrite"]:
        raise UsageError(f"{out} holds results already; add --overwrite to replace them, or choose another --out")
    check_against(options["against"], out)
    model = open_task(
        options["checkpoint"],
        kind=kind,
        device=options["device"],
        batch=options["batch"],
        precision=options["precision"],
    )
    cohort = open_cohort(options["data"])
    part = cohort.cases if split in (HELD_OUT, "all") else cohort.split()[split]
    outcomes = read_outcomes(part, cohort.spec, columns=model.task["columns"])
    if lacking := len(part) - len(outcomes):
        say(f"{lacking} case(s) left aside: no {' or '.join(model.task['columns'].values())}", style="yellow")
    known = [case for case in part if case.key in outcomes]
    chosen, codes, seen = held_out(usable(known, model, where=f"with an outcome in {options['data']}"), model, options)
    chosen, codes = chosen[:limit], codes[:limit]
    wanted = chosen_subsets(options["subsets"], model.sequences, chosen)
    found = _predict_all(model, chosen, wanted)
    truth = [outcomes[case.key] for case in chosen]
    names = [case.key for case in chosen] if options["identify"] else codes
    subjects = [case.subject for case in chosen]
    owners = subjects if options["identify"] else subject_codes(codes, subjects)
    cells = _cells(kind, model, chosen, truth, found, seed=options["seed"])
    about = {
        "task": kind,
        "columns": model.task["columns"],
        "classes": model.task.get("classes") or [],
        "weights": model.weights,
        "sequences": list(model.sequences),
        "cases": len(chosen),
        "subjects": len({case.subject for case in chosen}),
        "split": split,
        **seen,
        "interval": "95 % percentile bootstrap over subjects within classes (or events)",
        "seed": options["seed"],
        "precision": options["precision"],
    }
    with writing(out):
        files = _write(out, model, names, owners, truth, found, cells, about)
    if flags().json:
        from medmae.evaluate.table import summary_json

        whole = summary_json(cells, about)
        emit_json(
            {
                "about": whole["about"],
                "summary": whole["summary"],
                "files": {k: str(v) for k, v in files.items()},
                **compared(out, options["against"], seed=options["seed"]),
            }
        )
        return
    emit(f"{', '.join(model.task['columns'].values())} of {len(chosen)} case(s) [95 % interval over subjects]")
    emit(_text(cells))
    emit(os.fspath(out))
    compared(out, options["against"], seed=options["seed"])


def held_out(
    cases: Sequence[Any], model: TaskModel, options: Mapping[str, Any]
) -> tuple[list[Any], list[str], dict[str, int]]:
    """The cases to measure, their codes, and how many of them the model has seen in which way."""
    from .leakage import leaks, prints_of, refuse_training_cases

    data = model.loaded.data
    chosen_on = {"subjects": data.get("validation_subjects") or ()}
    prints = prints_of(cases, model.sequences)
    pairs = list(zip(cases, prints, strict=True))
    if options["split"] == HELD_OUT:
        pairs = [(case, found) for case, found in pairs if not leaks(found, data) and not leaks(found, chosen_on)]
        if not pairs:
            raise DataError(
                f"the model was trained or chosen on all {len(cases)} case(s): there is none to measure. "
                "Give other cases, or --split all --allow-leakage"
            )
    prints = [found for _, found in pairs]
    leaked = refuse_training_cases(prints, data, allow=options["allow_leakage"])
    validated = sum(leaks(found, chosen_on) for found in prints)
    pretrained = (model.task.get("pretrained") or {}).get("data") or {}
    unlabeled = sum(leaks(found, pretrained) for found in prints)
    if validated:
        say(f"{validated} case(s) decided which weights were kept: the numbers flatter the model", style="yellow")
    if unlabeled:
        say(f"{unlabeled} case(s) were in pre-training, without labels", style="yellow")
    seen = {"training_cases": leaked, "validation_cases": validated, "pretraining_cases": unlabeled}
    return [case for case, _ in pairs], [found.code for found in prints], seen


Predictions = dict[str, dict[int, "dict[str, np.ndarray]"]]
"""Subset -> row of the case -> what the model says."""


def _predict_all(model: TaskModel, cases: Sequence[Any], wanted: Sequence[tuple[str, ...] | None]) -> Predictions:
    """Every case from every subset that it has. Foregrounds are estimated from the subset alone, as in use.

    DataError with the faults of all cases that cannot be read.
    """
    from medmae.data.workers import progress

    found: Predictions = {GIVEN if subset is None else "+".join(subset): {} for subset in wanted}
    faults: list[str] = []
    with progress("predicting", len(cases), quiet=flags().quiet) as advance:
        for row, case in enumerate(cases):
            try:
                for subset in wanted:
                    if subset is None or set(subset) <= set(case.images):
                        images = {n: path for n, path in case.images.items() if subset is None or n in subset}
                        loaded = _loaded(model, case, images, whole=subset is None)
                        if loaded is not None:
                            name = GIVEN if subset is None else "+".join(subset)
                            found[name][row] = model.predict(loaded)
            except DataError as error:
                faults.append(str(error))
            advance()
    if faults:
        raise DataError(f"{len(faults)} of {len(cases)} case(s) cannot be read:\n  - " + "\n  - ".join(faults))
    return found


def _loaded(model: TaskModel, case: Any, images: Mapping[str, Path], *, whole: bool) -> InferenceCase | None:
    """The case, prepared; None where an image of a subset has one value only: then the case does not have it."""
    from medmae.data.preprocess import SkippedCaseError

    try:
        loaded = model.load(images, mask=case.mask, name=f"case {case.key}")
    except SkippedCaseError:
        if whole:
            raise
        return None
    return loaded if whole or set(images) <= set(loaded.images) else None


def _cells(
    kind: str, model: TaskModel, cases: Sequence[Any], truth: Sequence[Any], found: Predictions, *, seed: int
) -> list[Any]:
    """The metrics of every subset, with intervals."""
    import numpy as np

    from medmae.evaluate.probe_scores import value_scores
    from medmae.evaluate.scores import Scored, class_measure, summarize, survival_measure

    names = list(model.task.get("classes") or ())
    if kind == "classify":
        strange = sorted({str(t["class"]) for t in truth} - set(names))
        if strange:
            raise DataError(f"the cases have the class {', '.join(strange)}; the model knows {', '.join(names)}")
        labels = np.array([names.index(t["class"]) for t in truth])
        if len(set(labels.tolist())) < 2:
            raise DataError(f"all {len(truth)} case(s) have the class {truth[0]['class']!r}: nothing to tell apart")
        strata: list[Any] = labels.tolist()
    elif kind == "regress":
        value = np.array([float(t["value"]) for t in truth])
        strata = [""] * len(truth)
    else:
        time, event = (np.array([float(t[role]) for t in truth]) for role in ("time", "event"))
        if not event.any():
            raise DataError(f"all {len(truth)} case(s) are censored: no pair can be compared")
        strata = event.tolist()
    parts = []
    for subset, rows in found.items():
        if not rows:
            continue
        index = np.array(list(rows))
        if kind == "classify":
            probability = np.stack([rows[i]["probability"] for i in rows])
            parts.append(Scored(subset, index, class_measure(probability, labels[index])))
        elif kind == "regress":
            guess = np.array([float(rows[i]["value"]) for i in rows])
            parts.append(Scored(subset, index, value_scores(guess, value[index])))
        else:
            risk = np.array([float(rows[i]["risk"]) for i in rows])
            parts.append(Scored(subset, index, survival_measure(risk, time[index], event[index] > 0)))
    target = ", ".join(model.task["columns"].values())
    cells = summarize(parts, [case.subject for case in cases], strata=strata, target=target, seed=seed)
    if not cells:
        raise DataError(f"nothing can be measured on {len(cases)} case(s): no two of them can be compared")
    measured = {cell.subset for cell in cells}
    if lacking := [part.subset for part in parts if part.subset not in measured]:
        say(f"not measured, no two of their cases can be compared: {', '.join(lacking)}", style="yellow")
    return cells


def _write(
    out: Path,
    model: TaskModel,
    names: Sequence[str],
    owners: Sequence[str],
    truth: Sequence[Any],
    found: Predictions,
    cells: Sequence[Any],
    about: Mapping[str, Any],
) -> dict[str, Path]:
    """``predictions.csv``, ``summary.csv``, ``summary.json`` and a picture per metric, each whole or not at all."""
    import json

    from medmae.atomic import write_text
    from medmae.evaluate.cells import cell, csv_text
    from medmae.evaluate.table import picture, summary_csv, summary_json

    out.mkdir(parents=True, exist_ok=True)
    roles = list(model.task["columns"])
    head = ["case", "subject", "given", *(f"true_{role}" for role in roles), *model.columns()]
    lines = [
        [cell(names[row]), cell(owners[row]), subset, *(truth[row][role] for role in roles), *model.values(said)]
        for subset, rows in found.items()
        for row, said in rows.items()
    ]
    shown = [[cell(v) if isinstance(v, str) else v for v in line] for line in lines]
    summary = summary_json(cells, about)
    del summary["verdict"]  # there is nothing beside the model
    files = {name: out / file for name, file in (("predictions", "predictions.csv"), ("summary", "summary.csv"),
                                                 ("json", "summary.json"))}  # fmt: skip
    write_text(files["predictions"], csv_text([cell(name) for name in head], shown))
    write_text(files["summary"], summary_csv(cells))
    for metric in dict.fromkeys(c.metric for c in cells):
        files[metric] = picture(
            cells, out / f"{metric}.png", metric=metric, title=f"{about['cases']} case(s)", heading="{}"
        )
    write_text(files["json"], json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return files


def _text(cells: Sequence[Any]) -> str:
    """Subsets down, metrics across."""
    from medmae.evaluate.cells import aligned, shown

    metrics = [name for name in METRICS if any(c.metric == name for c in cells)]
    subsets = sorted({c.subset for c in cells} - {"all"}, key=lambda s: (s.count("+"), s))
    found = {(c.subset, c.metric): c.interval for c in cells}
    rows = [*subsets, *(["all"] if any(c.subset == "all" for c in cells) else [])]
    cases = {c.subset: c.interval.cases for c in cells}
    lines = [[row, str(cases[row]), *(shown(found.get((row, m))) for m in metrics)] for row in rows]
    return aligned([["given", "cases", *metrics], *lines])
