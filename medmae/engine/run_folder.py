"""The folder of a run: who may write into it, what is in it, and when it is done.

``config.yaml  environment.json  data/manifest.json  log.txt  metrics.jsonl  metrics.csv  checkpoints/  model/
qc/ report.html  DONE``. An existing run is never overwritten unless told, a resumed one must be the same run,
and two processes cannot train into one folder. ``DONE`` is written last.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from medmae.atomic import write_text
from medmae.config import differences, plain, save_config
from medmae.core.errors import UsageError
from medmae.engine.journal import append_text
from medmae.engine.settings import TrainSettings

OURS = [
    "config.yaml",
    "environment.json",
    "data",
    "log.txt",
    "metrics.jsonl",
    "metrics.csv",
    "checkpoints",
    "model",
    "model-last",
    "qc",
    "report.html",
    "DONE",
    "tensorboard",
    "wandb",
    "wandb.json",
    "mlflow",
    "mlflow.json",
    ".lock",
]
PACKAGES = [
    "medmae",
    "torch",
    "numpy",
    "accelerate",
    "monai",
    "nibabel",
    "SimpleITK",
    "torchio",
    "blosc2",
    "safetensors",
]


class RunFolder:
    """One run on disk. Open it with :func:`open_run`; close it to release its lock."""

    def __init__(self, path: Path, *, lock: IO[str] | None) -> None:
        """Use :func:`open_run` instead."""
        self.path = path
        self._lock = lock
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.last_model = path / "model-last"
        self.log = path / "log.txt"

    def note(self, text: str) -> None:
        """Append to ``log.txt`` with the time (UTC)."""
        append_text(self.log, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")

    def describe(self, *, config: Mapping[str, Any], data: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, ``environment.json`` and ``data/manifest.json``."""
        save_config(config, self.path / "config.yaml")
        write_text(self.path / "environment.json", json.dumps({**environment(), **machine}, indent=2) + "\n")
        write_text(self.path / "data" / "manifest.json", json.dumps(data, indent=2) + "\n")

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.path / "DONE").exists()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``DONE``."""
        write_text(self.path / "DONE", json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run may not be written into; :class:`UsageError` as in :func:`open_run`."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude one another.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out names the folder of the run.")
    holds = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    # config.yaml, data/ and model/ are common names: only the lock or environment.json says that a run wrote them.
    claimed = any(name in holds for name in (".lock", "environment.json"))
    is_run = claimed and any(name in holds for name in ("config.yaml", "checkpoints", "metrics.jsonl", "DONE"))
    foreign = [name for name in holds if name not in OURS or not claimed]
    if not is_run and foreign:
        raise UsageError(f"{folder} is not empty and not a run (it holds {foreign[0]}); choose another --out.")
    if is_run and not (resume or overwrite):
        state = "a finished run" if "DONE" in holds else "an unfinished run"
        raise UsageError(
            f"{folder} holds {state}. Go on with --resume, replace it with --overwrite, or choose another --out."
        )


def open_run(folder: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    """Claim ``folder`` for a run.

    Raises :class:`UsageError` when it holds a run and neither ``resume`` nor ``overwrite`` is set, when it holds
    something that is not a run, or when another process is training into it. With ``overwrite`` the files of the old
    run (and nothing else) are removed.
    """
    check_free(folder, resume=resume, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if overwrite:
        for name in OURS:
            if name == "data":  # only the manifest in it is ours
                (folder / "data" / "manifest.json").unlink(missing_ok=True)
            elif name != ".lock" and (folder / name).exists():
                _remove(folder / name)
    return RunFolder(folder, lock=lock)


def require_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a resume whose result would not be that of the run; every difference is named."""
    found = differences(old, new)
    if found:
        shown = "\n  ".join(found[:12]) + (f"\n  and {len(found) - 12} more" if len(found) > 12 else "")
        raise UsageError(
            "This is not the run that is to be resumed (then -> now):\n  "
            + shown
            + "\nResume with the same settings; to continue from its weights under others, "
            "start a new run with --init."
        )


def run_identity(
    settings: TrainSettings,
    *,
    per_step: int,
    total: int,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    paced: bool = False,
) -> dict[str, Any]:
    """What must be equal for a resumed run to be the same run: decisive settings, method, data.

    The number of steps is part of it only where the learning rate depends on it. ``per_step`` is the number
    of samples in an optimizer step over all processes, so that the processes may change when batch and
    accumulation make up for it. ``paced`` says that rates of the method depend on the length of the run.
    """
    s = settings
    elastic = (
        not paced and (s.schedule == "constant" or s.cosine_period is not None) and (s.warmup >= 1 or s.warmup == 0)
    )
    train = s.decisive() | {"samples_per_step": per_step, "steps": None if elastic else total}
    identity: dict[str, Any] = plain({"train": train, "method": recipe.get("method"), "data": data})
    return identity


def environment() -> dict[str, Any]:
    """Versions and machine, without names of hosts, users or files."""
    import torch

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _lock(folder: Path) -> IO[str] | None:
    """An advisory lock that the system releases even when the process is killed; None where there are no
    locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = (folder / ".lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(f"Another process is training into {folder}; wait for it or choose another --out.") from error
    except OSError:  # a file system without locks: go on without
        file.close()
        return None
    return file


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
