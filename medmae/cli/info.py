"""``medmae info``: what a model folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import emit, emit_json, flags


def run(checkpoint: Annotated[Path, typer.Argument(help="Model folder or run folder.")]) -> None:
    """Show the method, recipe, data and license of a model folder, and check its weights."""
    from medmae.checkpoint import TASK_METHOD, WEIGHTS, file_hash, load_model, model_folder, read_config

    folder = model_folder(checkpoint)
    if read_config(folder)["method"] == TASK_METHOD:
        from medmae.transfer.task_folder import describe_task, load_task

        task = load_task(folder, strict=False)
        config, report = task.config, task.report
    else:
        loaded = load_model(folder, strict=False)
        config, report = loaded.config, loaded.report
    intact = config.get("weights_sha256") == file_hash(folder / WEIGHTS)
    if flags().json:
        emit_json({**config, "weights_intact": intact, "load_report": str(report)})
        return
    data = config.get("data", {})
    emit(f"{config['method']}, {config['parameters']:,} parameters, written by medmae {config['medmae']}")
    emit(f"  weights: {report}; {'as written' if intact else 'CHANGED since they were written'}")
    if "task" in config:
        emit(f"  it {describe_task(config['task'])}")
    stated = config.get("license") or data.get("license") or "not stated"
    emit(f"  license: {stated}; reference: {config['method_license']}")
    for key, value in config["recipe"].items():
        emit(f"  {key}: {value}")
    if data:
        hashes = ("subjects", "validation_subjects", "statistics", "files", "voxels")
        shown = {key: value for key, value in data.items() if key not in hashes}
        emit(f"  data: {', '.join(f'{key}={value}' for key, value in shown.items())}")
