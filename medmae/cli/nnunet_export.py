"""``medmae nnunet export``: weights for nnU-Net's own training command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Model or run folder; or a checkpoint file of nnssl, OpenMind, nnFoundation or nnU-Net."),
    ],
    dataset: Annotated[str, typer.Option("--dataset", help="Number, name or folder of the nnU-Net data set.")],
    plans: Annotated[str, typer.Option("--plans", help="Its plans, by name or file.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, such as weights.pth.")],
    configuration: Annotated[str, typer.Option("--configuration", help="Configuration of the plans.")] = "3d_fullres",
    min_loaded: Annotated[
        float, typer.Option("--min-loaded", help="Fail below this share of parameters that come from the checkpoint.")
    ] = 0.8,
    channels: Annotated[
        str | None, typer.Option("--channels", help="What the channels are, if dataset.json does not: t1n,t1c,...")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    nnunet_root: Annotated[
        Path | None,
        typer.Option("--nnunet-root", help="Folder of nnUNet_raw, nnUNet_preprocessed and nnUNet_results."),
    ] = None,
) -> None:
    """Fit pre-trained weights to the network of your plans, and write what nnU-Net takes as -pretrained_weights."""
    from medmae.cli.console import emit_json, flags, say
    from medmae.transfer.nnunet.export import export as write

    names = None if channels is None else [name.strip() for name in channels.split(",")]
    done = write(
        checkpoint,
        dataset=dataset,
        plans=plans,
        configuration=configuration,
        out=out,
        min_loaded=min_loaded,
        overwrite=overwrite,
        root=nnunet_root,
        channels=names,
    )
    target = done.target
    say(f"{target.file.stem}, {configuration}: channels {', '.join(name or 'labels' for name in target.channels)}")
    for note in target.notes:
        say(f"Note: {note}")
    say(str(done.report))
    say(f"Wrote {done.path}")
    data, name = target.plans.get("dataset_name") or dataset, target.plans.get("plans_name") or target.file.stem
    line = shlex.join(map(str, (data, configuration, 0, "-p", name, "-pretrained_weights", done.path)))
    say(f"Next: nnUNetv2_train {line}")
    if flags().json:
        emit_json({"out": str(done.path), "notes": list(target.notes), **done.report.to_dict()})
