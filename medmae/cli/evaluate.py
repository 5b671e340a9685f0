"""``medmae evaluate reconstruct``: a model next to what anybody gets without one, subset by subset.

Without a command, ``medmae evaluate --fractions`` measures a label curve.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import evaluate_synthesize, evaluate_table
from .against import HELP
from .completion_study import measure
from .evaluate_segment import segment
from .label_curve import label_curve
from .pool import pool

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


app.callback(invoke_without_command=True)(label_curve)
app.command()(segment)
app.command()(evaluate_table.classify)
app.command()(evaluate_table.survive)
app.command("survival", hidden=True)(evaluate_table.survive)
app.command()(evaluate_table.regress)
app.command()(evaluate_synthesize.synthesize)
app.command()(pool)


@app.command()
def reconstruct(
    data: Annotated[str, typer.Option(help="Cohort: spec, folder, data list or CSV.")],
    checkpoint: Annotated[Path, typer.Option(help="Model folder or run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and pictures.")],
    split: Annotated[str, typer.Option(help="Cases to measure: train, val, test, all, or heldout.")] = "test",
    cases: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    fit: Annotated[
        str | None, typer.Option(help="Cohort whose training cases the baselines are fitted on [default: --data].")
    ] = None,
    fit_cases: Annotated[int, typer.Option(help="At most so many of them.")] = 50,
    boosting: Annotated[
        bool, typer.Option("--boosting", help="One more baseline: gradient boosting of single voxels; slow.")
    ] = False,
    overlap: Annotated[float, typer.Option(help="Share of a window that others cover, per axis.")] = 0.5,
    batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
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
    """Reconstruct every sequence from every subset of the others, and compare with baselines.

    PSNR, SSIM, MAE and R2 are taken inside the foreground, and inside the label where a case has one, in units of the
    normalized volume. The baselines (mean intensity, best single sequence after a linear fit, linear regression from
    all given sequences) are fitted on training cases only. Intervals are 95 % bootstrap intervals over cases.
    """
    from .completion import open_completer

    measure(
        lambda: open_completer(checkpoint, device=device, overlap=overlap, batch=batch, precision=precision),
        data=data,
        out=out,
        split=split,
        cases=cases,
        fit=fit,
        fit_cases=fit_cases,
        boosting=boosting,
        seed=seed,
        allow_leakage=allow_leakage,
        overwrite=overwrite,
        identify=identify,
        against=against,
    )
