"""``medmae compare``: two evaluations that are there already, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmae.core.errors import UsageError

from .against import compare
from .console import emit_json, flags


def run(
    results: Annotated[Path, typer.Argument(help="Results (--out) of an evaluation: this model.")],
    against: Annotated[Path, typer.Argument(help="Results of another model on the same cases.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the picture.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison.")] = False,
) -> None:
    """Compare two evaluations of the same cases: paired differences with intervals, tests and a verdict.

    Intervals are 95 % bootstrap intervals over subjects of the first minus the second. Metrics of cases are tested
    with Wilcoxon's signed rank, those of a cohort (AUC, C-index) by drawing subjects again; p values are corrected
    after Holm.
    """
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if (out / "against.json").exists() and not overwrite:
        raise UsageError(f"{out} holds a comparison already; add --overwrite to replace it, or choose another --out")
    found = compare(results, against, seed=seed, to=out)
    if flags().json:
        emit_json(found)
