"""``medmae convert``: published weights become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    layout: Annotated[str, typer.Argument(help="Published layout, for example bm_mae.")],
    file: Annotated[Path, typer.Argument(help="Weights: a .pth state dict or a safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in an existing folder.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Refuse a file of which a tensor is missing or left over.")
    ] = True,
) -> None:
    """Convert a published checkpoint into a model folder; nothing in the file is executed."""
    import importlib

    from medmae.cli.console import emit_json, flags, say
    from medmae.convert import check_name

    converter = importlib.import_module(f"medmae.convert.{check_name(layout)}")
    say(f"License of these weights: {converter.LICENSE}. {converter.NOTICE}")
    converted = converter.convert(file, strict=strict)
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
