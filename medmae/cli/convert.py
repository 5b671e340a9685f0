"""``medmae convert``: published weights become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    layout: Annotated[
        str, typer.Argument(help="bm_mae, nnssl (also OpenMind, nnU-Net), inflate (2-D ViT), or to_nnssl.")
    ],
    file: Annotated[Path, typer.Argument(help="Weights: a .pth or safetensors file; for to_nnssl a model folder.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write; for to_nnssl a file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in an existing folder.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Refuse a file of which a tensor is missing or left over.")
    ] = True,
    sequence: Annotated[
        str | None, typer.Option("--sequence", help="nnssl, inflate: what the channels are, such as t1n or t1n,t2w.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="inflate only: bm_mae (default) or eva_mae.")] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="inflate only: scale the file must fit; else read off it.")
    ] = None,
    inflation: Annotated[
        str | None, typer.Option("--inflation", help="inflate only: average (default) or center, over the third axis.")
    ] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="inflate only: attention heads.")] = None,
) -> None:
    """Convert a published checkpoint into a model folder, or back; nothing in the file is executed."""
    import importlib

    from medmae.cli.console import emit_json, flags, say
    from medmae.convert import check_name
    from medmae.core.errors import UsageError

    converter = importlib.import_module(f"medmae.convert.{check_name(layout)}")
    say(f"License of these weights: {converter.LICENSE}. {converter.NOTICE}")
    given = {"sequence": sequence, "method": method, "scale": scale, "inflation": inflation, "heads": heads}
    options = {name: value for name, value in given.items() if value is not None}
    takes = {"nnssl": {"sequence"}, "inflate": set(given)}.get(layout, set())
    if wrong := [name for name in options if name not in takes]:
        why = "the layout names its own sequences" if wrong == ["sequence"] else "they are for inflate"
        raise UsageError(f"{layout} takes no {', '.join('--' + name for name in wrong)}: {why}")
    converted = converter.convert(file, strict=strict, **options)
    say(str(converted.report))
    folder = converter.save(converted, out, overwrite=overwrite)
    say(f"Wrote {folder}")
    if flags().json:
        report = converted.report
        emit_json(
            {
                "out": str(folder),
                "license": converter.LICENSE,
                "used": len(report.used),
                "unused": list(report.unused),
                "missing": list(report.missing),
            }
        )
