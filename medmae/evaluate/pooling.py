"""The folds of a cross-validation as one table.

Every patient was measured once, by a model that had not seen him, so the folds together say more than any of them, and
the interval over patients is one of all patients. It does not hold the chance in training, and models of different
folds share most of their training cases: the interval is for this cohort, not for a new training.

Numbers of cases (Dice, PSNR) are simply put together. Areas and concordances compare patients with one another, hence
scores of different models; see ``medmae.evaluate.cohort_scores`` for the two answers that are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmae.atomic import write_text
from medmae.core.errors import DataError

from .cells import cell, csv_text
from .cohort_scores import by_subset, measure_of, outcomes
from .paired import ALL, Measured, clustered
from .protocol import Row
from .results import MEASUREMENTS, PREDICTIONS, SUMMARY, TABLE_TASKS, Results, Said, refuse_other_study
from .scores import Scored, summarize
from .statistics import Cell
from .table import picture, rows_csv, summary_csv, summary_json

NOTE = (
    "the metrics rank patients of all folds in one list, though each fold has a model of its own; those that end in "
    "_folds are means over folds and rank inside folds only"
)
_COUNTS = ("training_cases", "validation_cases", "pretraining_cases", "training_cases_of_the_model")
_KEPT = ("sequences", "columns", "classes", "targets", "empty", "nsd_tolerance_mm", "units", "method", "split")


@dataclass(frozen=True)
class Pooled:
    """The folds as one.

    Attributes:
        results: as if they were of one model; ``folder`` is that of the first fold.
        cells: the summary.
        about: how it was made.
    """

    results: Results
    cells: Sequence[Cell]
    about: Mapping[str, Any]


def pool(folds: Sequence[Results], *, seed: int = 0) -> Pooled:
    """Put the held-out parts of a cross-validation together.

    Raises DataError where the folds are of different tasks or settings, or share a case or a subject.
    """
    first = folds[0]
    for other in folds[1:]:
        refuse_other_study(first, other)
    _refuse_shared(folds)
    said = tuple(replace(row, fold=str(k)) for k, fold in enumerate(folds) for row in fold.said)
    measured = tuple(row for fold in folds for row in fold.measured)
    whole = Results(first.folder, first.task, {}, measured, said, any(fold.subjects_known for fold in folds))
    cells = _scored(whole, first.about, seed) if first.task in TABLE_TASKS else _summary(measured, seed)
    if not cells:
        raise DataError(f"nothing can be measured on the {len(whole.cases)} case(s) of {len(folds)} folds")
    about: dict[str, Any] = {"task": first.task, **{key: first.about[key] for key in _KEPT if key in first.about}}
    about |= {
        "folds": [
            {"folder": fold.folder.name, "cases": len(fold.cases), "weights": fold.about.get("weights")}
            for fold in folds
        ],
        "cases": len(whole.cases),
        "subjects": len(set(whole.cases.values())),
        **{key: sum(int(fold.about.get(key) or 0) for fold in folds) for key in _COUNTS if key in first.about},
        "interval": "95 % percentile bootstrap over subjects"
        + (" within classes (or events)" if first.task in TABLE_TASKS else "")
        + ("" if whole.subjects_known else "; every case counts as a subject, since none was written"),
        "seed": seed,
    }
    if first.task in TABLE_TASKS:
        about["note"] = NOTE
    return Pooled(replace(whole, about=about), cells, about)


def write(folder: str | Path, pooled: Pooled) -> dict[str, Path]:
    """Write the cases of all folds (``predictions.csv`` with a column ``fold``, or ``measurements.csv``),
    ``summary.csv``, ``summary.json`` and a picture per metric, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary, results = summary_json(pooled.cells, pooled.about), pooled.results
    if not any(c.gain is not None for c in pooled.cells):
        del summary["verdict"]
    files = {"summary": folder / "summary.csv", "json": folder / SUMMARY}
    if results.said:
        files["predictions"] = write_text(folder / PREDICTIONS, _predictions(results.said))
    else:
        files["measurements"] = write_text(folder / MEASUREMENTS, _measurements(results))
    write_text(files["summary"], summary_csv(pooled.cells))
    title = f"{pooled.about['cases']} case(s) of {len(pooled.about['folds'])} folds"
    metrics = dict.fromkeys(c.metric for c in pooled.cells)
    for metric in [m for m in metrics if not m.endswith("_label")]:
        files[metric] = picture(pooled.cells, folder / f"{metric}.png", metric=metric, title=title, heading="{}")
    write_text(files["json"], json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return files


def _refuse_shared(folds: Sequence[Results]) -> None:
    """Raises DataError where a case, or a subject whose name was written, is in two folds."""
    for what in ("case", "subject"):
        seen: dict[str, Path] = {}
        for fold in folds:
            names = set(fold.cases) if what == "case" else set(fold.cases.values())
            shared = sorted(name for name in names if name in seen)
            if shared:
                raise DataError(
                    f"{len(shared)} {what}(s) of {fold.folder} are in {seen[shared[0]]}, too "
                    f"({', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}): folds hold different patients, "
                    "each evaluated on its held-out part (--split heldout or test). Give every fold once"
                )
            seen |= dict.fromkeys(names, fold.folder)


def _scored(whole: Results, about: Mapping[str, Any], seed: int) -> list[Cell]:
    cases, subjects, strata = outcomes(whole.said, whole.task)
    row, classes = {case: i for i, case in enumerate(cases)}, list(about.get("classes") or ())
    parts = []
    for subset, own in by_subset(whole.said).items():
        index = np.array([row[case] for case in own])
        parts.append(Scored(subset, index, measure_of(list(own.values()), task=whole.task, classes=classes)))
    target = ", ".join((about.get("columns") or {}).values()) or whole.task
    return summarize(parts, subjects, strata=strata, target=target, seed=seed)


def _summary(measured: Sequence[Measured], seed: int) -> list[Cell]:
    """As ``medmae.evaluate.statistics.summarize``, with intervals over subjects."""
    table: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    owner = {row.case: row.subject for row in measured}
    for row in measured:
        for subset in (row.subset, ALL):
            key = (row.method, row.target, subset, row.metric)
            table.setdefault(key, {}).setdefault(row.case, []).append(row.value)
    means = {key: {case: m for case, v in cases.items() if (m := _mean(v)) is not None} for key, cases in table.items()}
    cells = []
    for (method, target, subset, metric), cases in means.items():
        if not cases:
            continue
        mine = means.get(("model", target, subset, metric), {})
        both = [case for case in cases if case in mine]
        gain = None
        if method != "model" and both:
            gain = clustered(np.array([mine[c] - cases[c] for c in both]), [owner[c] for c in both], seed=seed)
        interval = clustered(np.array(list(cases.values())), [owner[case] for case in cases], seed=seed)
        cells.append(Cell(method, target, subset, metric, interval, gain))
    return cells


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _predictions(said: Sequence[Said]) -> str:
    roles, values = list(said[0].truth), list(said[0].values)
    head = ["case", "subject", "fold", "given", *(f"true_{role}" for role in roles), *map(cell, values)]
    lines = [
        [cell(r.case), cell(r.subject), r.fold, r.subset, *(cell(r.truth[role]) for role in roles), *r.values.values()]
        for r in said
    ]
    return csv_text(head, lines)


def _measurements(results: Results) -> str:
    """The columns of every other evaluation."""
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for r in results.measured:
        found.setdefault((r.case, r.subset, r.target, r.method), {})[r.metric] = r.value
    rows = [
        Row(case, tuple(subset.split("+")), target, method, values)
        for (case, subset, target, method), values in found.items()
    ]
    return rows_csv(rows, subjects=results.cases if results.subjects_known else None)
