"""``medmae report`` on run folders in every state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from medmae.cli import main
from medmae.report.png import gray_png

SECRET = "Smith_John_1970"


def run_folder(folder: Path) -> Path:
    """What a training leaves, with names of patients where they are allowed to be."""
    (folder / "data").mkdir(parents=True)
    (folder / "qc").mkdir()
    rows = [{"step": s, "split": "train", "loss": 1 / s, "lr": 1e-3} for s in range(1, 40)]
    rows += [{"step": s, "split": "val", "loss": 2 / s} for s in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 40, "spl')
    config = {
        "method": {"name": "bm_mae", "width": 48},
        "data": {"path": f"/data/{SECRET}.yaml"},
        "train": {"lr": 0.001},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {"sequences": ["t1n", "t2w"], "cases": {"train": 3, "validation": 1}, "split": {"train": [SECRET]}}
    manifest |= {"subjects": ["0123"], "preprocess": {"spacing": [1, 1, 1]}}
    (folder / "data" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.13"}}))
    for step in (10, 20):
        (folder / "qc" / f"step_{step:06d}_1.png").write_bytes(gray_png(np.zeros((4, 4), np.uint8)))
    row = {"step": 20, "mae": 0.4, "mae_mean": 0.8, "sequences": {"t1n": {"mae": 0.4, "mae_mean": 0.8}}}
    (folder / "qc" / "quality.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_run_becomes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything there is, and no name of a patient."""
    folder = run_folder(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    text = (folder / "report.html").read_text("utf-8")
    for expected in ("0.06667", "not finished", "Step 20, sample 1", "50 % below guessing the mean", "torch", "Cases"):
        assert expected in text
    assert SECRET not in text
    assert "0123" not in text


def test_an_evaluation_is_shown(tmp_path: Path) -> None:
    """``evaluation/summary.json`` of the run folder becomes tables."""
    folder = run_folder(tmp_path / "run")
    (folder / "evaluation").mkdir()
    entries = [
        {"method": m, "target": "t1n", "given": g, "metric": "mae", "mean": v, "low": v, "high": v, "cases": 2}
        for m, v in (("model", 0.4), ("mean", 0.8))
        for g in ("all", "t2w")
    ]
    (folder / "evaluation" / "summary.json").write_text(json.dumps({"summary": entries}))
    assert main(["report", str(folder), "--out", str(tmp_path / "other.html")]) == 0
    text = (tmp_path / "other.html").read_text("utf-8")
    assert "beats mean intensity" in text
    assert "1 of 1" in text
    assert not (folder / "report.html").exists()


def test_what_is_not_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit codes and messages."""
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    folder = run_folder(tmp_path / "run")
    (folder / "environment.json").write_text("{")
    assert main(["report", str(folder)]) == 3
    assert "environment.json" in capsys.readouterr().err
