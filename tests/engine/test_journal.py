"""No row twice, no row lost, and listeners hear the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medmae.core.errors import MissingDependency
from medmae.engine import listeners
from medmae.engine.journal import Journal, read_rows
from medmae.engine.listeners import open_listeners


def _row(step: int, split: str = "train", **more: float) -> dict[str, object]:
    return {"step": step, "split": split, "loss": step / 3, **more}


def test_truncated_on_resume(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add([_row(1), _row(2)])
    journal.add([_row(2, "val", extra=1.0)])
    journal.add([_row(3), _row(4)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')  # killed while writing
    Journal(tmp_path, step=2).add([_row(3)])
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["split"]) for r in rows] == [(1, "train"), (2, "train"), (2, "val"), (3, "train")]
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [r["step"] for r in table] == ["1", "2", "2", "3"]
    assert table[2]["extra"] == "1.0"
    assert float(table[3]["loss"]) == 1.0


def test_not_finite_is_null(tmp_path: Path) -> None:
    Journal(tmp_path).add([_row(1, odd=float("nan"))])
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["odd"] is None


def test_new_run_starts_empty(tmp_path: Path) -> None:
    Journal(tmp_path).add([_row(1)])
    Journal(tmp_path)
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_listeners_hear_everything(tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, float]]] = []

    class Ear:
        def add(self, step: int, values: dict[str, float]) -> None:
            heard.append((step, values))

        def close(self) -> None:
            heard.append((-1, {}))

    journal = Journal(tmp_path, listeners=[Ear()])
    journal.add([_row(1)])
    journal.close()
    assert heard == [(1, {"train/loss": 1 / 3}), (-1, {})]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, listeners=open_listeners(["tensorboard"], folder=tmp_path, step=0, settings={}))
    journal.add([_row(1), _row(2)])
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train/loss")] == [(1, 0.3333), (2, 0.6667)]


@pytest.mark.slow
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (0, 1):
        journal = Journal(
            tmp_path,
            step=step,
            listeners=open_listeners(["mlflow"], folder=tmp_path, step=step, settings={"lr": 1}),
        )
        journal.add([_row(step + 1)])
        journal.close()
    run = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    history = mlflow.MlflowClient().get_metric_history(run, "train/loss")
    assert sorted(m.step for m in history) == [1, 2]


@pytest.mark.slow
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    journal = Journal(tmp_path, listeners=open_listeners(["wandb"], folder=tmp_path, step=0, settings={"lr": 1}))
    journal.add([_row(1)])
    journal.close()
    assert json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_missing_package_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(listeners, "import_module", gone)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[log\]'|pip install 'wandb'"):
        open_listeners(["wandb"], folder=tmp_path, step=0, settings={})
