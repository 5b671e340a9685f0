"""``medmae data synthesize``: the options of :func:`medmae.data.synthetic.cohort.synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run_synthesize(
    out: Annotated[Path, typer.Option("--out", help="Folder of the cohort; a run that was interrupted goes on there.")],
    cases: Annotated[int, typer.Option("--cases", min=1, help="Number of patients.")] = 40,
    spacing: Annotated[
        float, typer.Option("--spacing", help="Voxel size in millimeters: 2 is quick, 1 is real.")
    ] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Case i depends on the seed and i alone.")] = 0,
    missing: Annotated[
        float, typer.Option("--missing", help="Probability of each sequence of each patient to be lacking (one stays).")
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cohort made with other settings.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes (default: one per core).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True)] = False,
) -> None:
    """Make a synthetic cohort: four-sequence brain MRI with tumors, labels, masks and a clinical table.

    The path of its data spec is printed. Nothing is downloaded and no patient is involved: the anatomy is a deformed
    public template (extra 'demo'). Scores measured on it overstate what to expect of patients.
    """
    from medmae.data.synthetic.cohort import synthesize
    from medmae.data.writing import writing

    with writing(out):
        spec = synthesize(
            out,
            cases=cases,
            spacing=spacing,
            seed=seed,
            missing=missing,
            overwrite=overwrite,
            workers=workers,
            quiet=quiet,
        )
    typer.echo(str(spec))
