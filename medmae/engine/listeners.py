"""Experiment trackers that listen to the journal: TensorBoard, wandb, mlflow. Each is imported when it is asked for.

wandb and mlflow keep their own history: after a resume they may hold some steps twice, which
``metrics.jsonl`` does not. They get numbers and settings only, no file names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.core.errors import MissingDependency
from medmae.engine.journal import Listener


def open_listeners(names: Sequence[str], *, folder: Path, step: int, settings: Mapping[str, Any]) -> list[Listener]:
    """One listener per name; a package that is not installed is a :class:`MissingDependency` with its pip
    line.
    """
    makers: dict[str, Callable[..., Listener]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
    return [makers[name](folder, step=step, settings=settings) for name in names]


def check_listeners(names: Sequence[str]) -> None:
    """Refuse loggers whose package is not installed, before anything is prepared or written."""
    needs = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
    for name in names:
        _need(needs[name], package="mlflow-skinny" if name == "mlflow" else name)


class TensorBoard:
    """Event files in ``folder/tensorboard``."""

    def __init__(self, folder: Path, *, step: int, settings: Mapping[str, Any]) -> None:
        """Open the writer; events after ``step`` of an earlier attempt are purged."""
        writer = _need("torch.utils.tensorboard", package="tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Wandb:
    """A wandb run in ``folder/wandb``, continued when the training is resumed."""

    def __init__(self, folder: Path, *, step: int, settings: Mapping[str, Any]) -> None:
        """Start or continue the run; its id is kept in ``folder/wandb.json``."""
        wandb = _need("wandb", package="wandb")
        note = folder / "wandb.json"
        known = json.loads(note.read_text(encoding="utf-8"))["id"] if step and note.exists() else None
        self._run = wandb.init(
            project="medmae",
            name=folder.name,
            dir=str(folder),
            id=known,
            resume="allow",
            config=dict(settings),
        )
        write_text(note, json.dumps({"id": self._run.id}))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers under their step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Mlflow:
    """An mlflow run: the tracking server of the environment, or a local ``folder/mlflow``."""

    def __init__(self, folder: Path, *, step: int, settings: Mapping[str, Any]) -> None:
        """Start or continue the run; its id is kept in ``folder/mlflow.json``."""
        import os

        self._mlflow = _need("mlflow", package="mlflow-skinny")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self._mlflow.set_tracking_uri((folder / "mlflow").resolve().as_uri())
        note = folder / "mlflow.json"
        known = json.loads(note.read_text(encoding="utf-8"))["id"] if step and note.exists() else None
        self._run = self._mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        write_text(note, json.dumps({"id": self._run.info.run_id}))
        if not known:
            self._mlflow.log_params({k: str(v) for k, v in settings.items()})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers under their step."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def _need(module: str, *, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"The logger {package} is not installed: pip install '{package}' (or pip install 'medmae[log]')."
        ) from error
