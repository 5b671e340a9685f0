"""``medmae info``: what a model folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import emit, emit_json, flags


def run(checkpoint: Annotated[Path, typer.Argument(help="Model folder or run folder.")]) -> None:
    """Show the method, recipe, data and license of a model folder, and check its weights."""
    from medmae.checkpoint import WEIGHTS, file_hash, load_model, model_folder

    folder = model_folder(checkpoint)
    loaded = load_model(folder, strict=False)
    config = loaded.config
    intact = config.get("weights_sha256") == file_hash(folder / WEIGHTS)
    if flags().json:
        emit_json({**config, "weights_intact": intact, "load_report": str(loaded.report)})
        return
    data = config.get("data", {})
    emit(f"{config['method']}, {config['parameters']:,} parameters, written by medmae {config['medmae']}")
    emit(f"  weights: {loaded.report}; {'as written' if intact else 'CHANGED since they were written'}")
    stated = config.get("license") or data.get("license") or "not stated"
    emit(f"  license: {stated}; reference: {config['method_license']}")
    for key, value in config["recipe"].items():
        emit(f"  {key}: {value}")
    if data:
        shown = {key: value for key, value in data.items() if key not in ("subjects", "statistics", "files")}
        emit(f"  data: {', '.join(f'{key}={value}' for key, value in shown.items())}")
