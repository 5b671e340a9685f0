"""``medmae pretrain`` and ``medmae data check`` on clouds and sound: it trains, and broken files end in exit code 3."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from medmae.cli import main

METHODS = {"point_mae": "points", "audio_mae": "audio", "bird_mae": "audio"}


def pretrain(method: str, data: str | Path, out: Path, *more: str) -> int:
    line = ["pretrain", "--method", method, "--scale", "test", "--data", str(data), "--out", str(out)]
    return main([*line, "--steps", "3", "--device", "cpu", *more])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_toy_trains_the_same_with_and_without_workers(method: str, tmp_path: Path) -> None:
    toy = f"toy-{METHODS[method]}:40"
    losses = []
    for workers in ("0", "2"):
        out = tmp_path / workers
        assert pretrain(method, toy, out, "--workers", workers) == 0
        lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
        assert (out / "DONE").exists()
    assert losses[0] == losses[1] != []
    read = json.loads((tmp_path / "0" / "model" / "config.json").read_text())["data"]["reading"]
    assert read["kind"] == METHODS[method]


def test_clouds_have_pictures_and_a_report_that_says_what_they_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And without labels the run ends with features, which the command it names writes."""
    data, out = clouds(tmp_path / "data", "none"), tmp_path / "run"
    assert pretrain("point_mae", data, out, "--set", "train.picture_every=2") == 0
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in sorted((out / "qc").iterdir())] == ["step_000002_1.png", "step_000003_1.png"]
    report = (out / "report.html").read_text()
    assert "Step 3, sample 1" in report
    assert "hidden ones (orange)" in report
    word, *line = shlex.split(told.partition("Next: ")[2])
    assert (word, line[0]) == ("medmae", "embed")
    assert main([*line, "--device", "cpu"]) == 0
    assert len((out / "features.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_surfaces_of_a_synthetic_cohort_train(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    cohort, out = tmp_path / "cohort", tmp_path / "surfaces"
    assert main(["data", "synthesize", "--cases", "4", "--spacing", "4", "--out", str(cohort), "--workers", "0"]) == 0
    assert main(["data", "surfaces", "--data", str(cohort / "spec.yaml"), "--out", str(out)]) == 0
    more = ["--set", "data.reading.scale=50", "--set", "data.reading.turn=z"]
    assert pretrain("point_mae", out / "surfaces.yaml", tmp_path / "run", *more) == 0
    assert (tmp_path / "run" / "DONE").exists()


def cloud(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)


def clouds(folder: Path, fault: str) -> Path:
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"good{i}.npy", cloud(40))
    if fault == "few":
        np.save(folder / "bad.npy", cloud(5))
    elif fault == "nan":
        broken = cloud(40)
        broken[7] = np.nan
        np.save(folder / "bad.npy", broken)
    elif fault != "none":
        (folder / "bad.npy").write_bytes(b"garbage")
    return folder


def sounds(folder: Path, fault: str) -> Path:
    soundfile = pytest.importorskip("soundfile")
    folder.mkdir()
    for i in range(4):
        soundfile.write(folder / f"good{i}.wav", np.random.default_rng(i).uniform(-0.3, 0.3, 16000), 16000)
    if fault == "zero-length":
        soundfile.write(folder / "bad.wav", np.zeros(0), 16000)
    elif fault == "silent":
        soundfile.write(folder / "bad.wav", np.zeros(16000), 16000)
    elif fault == "cut off":
        (folder / "bad.wav").write_bytes((folder / "good0.wav").read_bytes()[:9000])
    else:
        (folder / "bad.wav").write_bytes(b"garbage" * 20)
    return folder


@pytest.mark.parametrize(
    ("kind", "fault", "word"),
    [
        ("points", "few", "5 points, fewer than the 8 of one group"),
        ("points", "nan", "1 of 40 points are NaN"),
        ("points", "garbage", "cannot be read as .npy"),
        ("audio", "zero-length", "without a single sample"),
        ("audio", "silent", "nothing but silence"),
        ("audio", "cut off", "it was cut off"),
        ("audio", "garbage", "cannot be decoded"),
    ],
)
def test_broken_files_end_before_the_first_step(
    kind: str, fault: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = "point_mae" if kind == "points" else "audio_mae"
    data = (clouds if kind == "points" else sounds)(tmp_path / "data", fault)
    assert pretrain(method, data, tmp_path / "run") == 3
    told = capsys.readouterr().err
    assert "bad." in told
    assert word in told.replace("\n", " ")
    assert "good" not in told
    assert not (tmp_path / "run").exists()
    if fault != "few":  # how many are few is for the method to say
        assert main(["data", "check", "--data", str(data), "--kind", kind]) == 3
        assert word in " ".join(capsys.readouterr().err.split())
    assert pretrain(method, data, tmp_path / "run", "--set", "data.on_error=skip", "--steps", "1") == 0
    assert "1 sample(s) left out" in capsys.readouterr().err


def test_a_wrong_reading_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain("point_mae", "toy-points:20", tmp_path / "run", "--set", "data.reading.points=4") == 2
    assert "a group of the method alone has 8" in capsys.readouterr().err
    assert pretrain("audio_mae", "toy-audio:20", tmp_path / "run", "--set", "data.reading.silence=x") == 2
    assert pretrain("audio_mae", "toy-points", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()
