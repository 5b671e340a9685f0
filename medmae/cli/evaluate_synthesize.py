"""``medmae evaluate synthesize``: a synthesis model next to what anybody gets without one, subset by subset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .against import HELP
from .completion_study import HELD_OUT, measure


def synthesize(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Fine-tuned model or run folder; several are an ensemble, the mean of them.")
    ],
    data: Annotated[str, typer.Option(help="Cohort: spec, folder, data list or CSV.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and pictures.")],
    split: Annotated[
        str, typer.Option(help="heldout: cases it was neither trained nor chosen on; or train, val, test, all.")
    ] = HELD_OUT,
    cases: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    fit: Annotated[
        str | None, typer.Option(help="Cohort whose training cases the baselines are fitted on [default: --data].")
    ] = None,
    fit_cases: Annotated[int, typer.Option(help="At most so many of them.")] = 50,
    boosting: Annotated[
        bool, typer.Option("--boosting/--no-boosting", help="Gradient boosting of single voxels as a baseline.")
    ] = True,
    overlap: Annotated[float, typer.Option(help="Share of a window that others cover, per axis.")] = 0.5,
    batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of the bootstrap, and of the voxels that boosting is fitted on.")] = 0,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Measure on cases of training or pre-training, too.")
    ] = False,
    against: Annotated[Path | None, typer.Option(help=HELP)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    identify: Annotated[
        bool, typer.Option("--identify", help="Write case names in place of short content hashes.")
    ] = False,
) -> None:
    """Synthesize every sequence from every subset of the others, and compare with baselines.

    Metrics, regions and intervals are those of ``evaluate reconstruct``. Gradient boosting has a model for each subset
    and target, so none is held back by the others; like all baselines it is fitted on training cases only.
    """
    from .synthesizer import open_synthesizer

    measure(
        lambda: open_synthesizer(checkpoint, device=device, overlap=overlap, batch=batch, precision=precision),
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
