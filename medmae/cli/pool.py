"""``medmae evaluate pool``: the folds of a cross-validation as one table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmae.core.errors import UsageError

from .console import emit, emit_json, flags

if TYPE_CHECKING:
    from medmae.evaluate.pooling import Pooled


def pool(
    folds: Annotated[list[Path], typer.Argument(help="Results (--out) of every fold, on its held-out part.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and pictures.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
) -> None:
    """Put the folds of a cross-validation together: one table over all patients.

    Intervals are 95 % bootstrap intervals over subjects. AUC, average precision and C-index rank the patients of all
    folds in one list, though every fold has a model of its own; their means over folds (auc_folds, ...) stand beside
    them. The folder can be compared with another one (--against, medmae compare).
    """
    from medmae.data.writing import writing
    from medmae.evaluate.pooling import pool as together
    from medmae.evaluate.pooling import write
    from medmae.evaluate.table import summary_json

    from .against import compared, open_results

    if len(folds) < 2:
        raise UsageError("give the results of two folds or more")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if any(os.path.realpath(fold) == os.path.realpath(out) for fold in folds):
        raise UsageError(f"--out {out} is one of the folds; choose another folder")
    if (out / "summary.json").exists() and not overwrite:
        raise UsageError(f"{out} holds results already; add --overwrite to replace them, or choose another --out")
    found = together([open_results(fold) for fold in folds], seed=seed)
    with writing(out):
        files = write(out, found)
        compared(out, None)
    if flags().json:
        whole = summary_json(found.cells, found.about)
        emit_json({**whole, "files": {name: str(path) for name, path in files.items()}})
        return
    _print(found, out)


def _print(found: Pooled, out: Path) -> None:
    from medmae.evaluate.cells import aligned, shown

    about = found.about
    emit(f"{about['cases']} case(s) of {about['subjects']} subject(s), {len(about['folds'])} folds")
    mine = [c for c in found.cells if c.method == "model" and not c.metric.endswith("_label")]
    metrics = list(dict.fromkeys(c.metric for c in mine))
    subsets = sorted({c.subset for c in mine}, key=lambda s: (s == "all", s.count("+"), s))
    table = {(c.target, c.subset, c.metric): c.interval for c in mine}
    lines = [["target", "given", "cases", *metrics]]
    for target in dict.fromkeys(c.target for c in mine):
        for subset in subsets:
            known = [table[target, subset, m] for m in metrics if (target, subset, m) in table]
            if known:
                entries = [shown(table.get((target, subset, m))) for m in metrics]
                lines.append([target, subset, str(known[0].cases), *entries])
    emit(aligned(lines))
    if "note" in about:
        emit(f"Note: {about['note']}.")
    emit(os.fspath(out))
