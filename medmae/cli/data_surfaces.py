"""``medmae data surfaces``: the options of :func:`medmae.data.kinds.surfaces.write_surfaces`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    data: Annotated[str, typer.Option("--data", help="A spec, nnU-Net folder or data list of labeled cases.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the surfaces, new or empty.")],
    classes: Annotated[
        str, typer.Option("--classes", help="Classes or regions of the spec, separated by commas (default: all).")
    ] = "",
    smoothing: Annotated[
        int, typer.Option("--smoothing", min=0, help="Pairs of Taubin passes over the steps between voxels; 0: none.")
    ] = 10,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace surfaces made before.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0 works in this one.")] = 0,
) -> None:
    """Make a data set of surfaces from segmentations: one mesh per case and class, in millimeters.

    The path of its spec is printed, for `medmae pretrain --method point_mae --data`. Patients keep the parts (train,
    val, test) that they have in the cohort.
    """
    from medmae.cli.console import emit, emit_json, flags, say
    from medmae.data.kinds.surfaces import write_surfaces
    from medmae.data.writing import writing

    names = [name.strip() for name in classes.split(",") if name.strip()]
    with writing(out):
        made = write_surfaces(
            data, out, classes=names, smoothing=smoothing, workers=workers, overwrite=overwrite, quiet=flags().quiet
        )
    for note in made.notes:
        say(note)
    say(f"{sum(made.counts.values())} surfaces: " + ", ".join(f"{n} of {name}" for name, n in made.counts.items()))
    if flags().json:
        emit_json({"spec": str(made.spec), "surfaces": dict(made.counts), "notes": list(made.notes)})
    else:
        emit(str(made.spec))
