"""``medmae pretrain`` on files: incomplete patients in, a model folder out; killed, interrupted, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medmae.cli import main
from medmae.engine.journal import read_rows
from medmae.engine.state import read_state, states

SEQUENCES = ("t1n", "t1c", "t2w")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small cases; every other one lacks a sequence."""
    root = tmp_path_factory.mktemp("cohort")
    draw = np.random.default_rng(0)
    for number in range(6):
        folder = root / "images" / f"case{number}"
        folder.mkdir(parents=True)
        x = np.indices((24, 28, 20)) - np.array([12, 14, 10])[:, None, None, None]
        head = (x**2).sum(0) < 80
        for name in SEQUENCES[number % 2 :]:
            image = np.where(head, 100 + 10 * draw.standard_normal(head.shape), 0).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(image, np.diag([2, 2, 2, 1])), folder / f"{name}.nii.gz")
    spec = root / "spec.yaml"
    spec.write_text(
        "medmae: 1\nname: six\nroot: images\npattern: '{case}/{seq}.nii.gz'\nsequences: [t1n, t1c, t2w]\n"
        "preprocess: {spacing: [2, 2, 2]}\nsplit: {val: 0.2, test: 0}\n"
    )
    return spec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAE_CACHE", str(tmp_path_factory.getbasetemp() / "medmae-cache"))


def line(cohort: Path, out: Path, *more: Any) -> list[str]:
    given = ["pretrain", "--data", cohort, "--scale", "test", "--out", out, "--device", "cpu", "--workers", 0, *more]
    return [str(word) for word in given]


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["split"], r["loss"]) for r in read_rows(folder / "metrics.jsonl")]


def test_a_model_comes_out(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medmae.checkpoint import load_model

    out = tmp_path / "run"
    assert main([*line(cohort, out, "--steps", 6, "--set", "train.validate_every=3"), "--json"]) == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert answer["steps"] == 6
    assert answer["best"] > 0
    assert "missing" in told.err
    assert "million trained parameters" in told.err
    assert [s for s, split, _ in losses(out) if split == "val"] == [3, 6]
    loaded = load_model(out)
    assert loaded.method.sequences == SEQUENCES
    assert loaded.config["data"]["crop"] == [32, 32, 32]
    manifest = json.loads((out / "data" / "manifest.json").read_text())
    assert sorted(key for part in manifest["split"].values() for key in part) == [f"case{i}" for i in range(6)]
    for shared in (out / "model", out / "log.txt"):  # names of cases stay in the manifest
        for path in [shared] if shared.is_file() else shared.iterdir():
            assert b"case3" not in path.read_bytes()
    assert list((out / "qc").glob("*.png"))
    assert (out / "DONE").exists()
    report = (out / "report.html").read_text("utf-8")
    assert "6 steps, finished" in report
    assert "case3" not in report


def test_the_table_counts_what_can_be_trained_on(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(cohort.parent, root)
    (root / "spec.yaml").write_text(cohort.read_text() + "geometry: {on_mismatch: skip}\n")
    from medmae.data.cohort import open_cohort

    first, second, *_ = open_cohort(root / "spec.yaml").split()["train"]
    image = nibabel.load(first.images["t2w"])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), first.images["t2w"])
    nibabel.save(nibabel.Nifti1Image(np.zeros((24, 28, 20), np.int16), image.affine), second.images["t2w"])
    assert main(line(root / "spec.yaml", tmp_path / "run", "--steps", 1)) == 0
    said = capsys.readouterr().err
    assert "cases     5: 4 to train, 1 to validate, 0 held out (1 left out)" in said
    rows = {words[0]: words[1:] for row in said.splitlines() if (words := row.split())}
    names = rows["sequence"]
    assert [int(n) + int(m) for n, m in zip(rows["present"], rows["missing"], strict=True)] == [5] * len(names)
    assert rows["missing"][names.index("t2w")] == "1"
    assert f"1 image(s) with one value only: taken as missing ({second.key})" in said


def test_refusals(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(line(cohort, out, "--steps", 2, "--set", "train.picture_every=0")) == 0
    for more, words in (
        ((), "--overwrite"),
        (("--resume", "--overwrite"), "exclude"),
        (("--resume", "--steps", 2, "--set", "train.lr=1"), "train.lr: 0.0001 -> 1"),
        (("--resume", "--set", "method.width=96"), "width"),
        (("--set", "train.batchs=2"), "Did you mean train.batch"),
        (("--method", "bm_mea"), "bm_mae"),
        (("--config", tmp_path / "none.yaml"), "no such file"),
        (("--steps", 2, "--epochs", 3), "choose one"),
        (("--set", "method.sequences=[]"), "at least one name"),
        (("--set", "method.sequences=[t1n,t1n]"), "none twice"),
    ):
        assert main(line(cohort, out, *more)) == 2, more
        assert words in capsys.readouterr().err
    assert main(["pretrain", "--out", str(tmp_path / "new")]) == 2
    assert "data init" in capsys.readouterr().err


def test_a_missing_logger_is_noticed_before_anything_is_written(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(line(cohort, tmp_path / "run", "--set", "train.loggers=[wandb]")) == 4
    assert "pip install 'wandb'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_config_file_and_resume_from_it(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {cohort}\nmethod: {{name: bm_mae, scale: test}}\ntrain: {{steps: 3, lr: 3e-4, workers: 0}}\n"
    )
    assert main(["pretrain", "--config", str(config), "--out", str(out), "--device", "cpu"]) == 0
    before = losses(out)
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert losses(out) == before
    assert read_rows(out / "metrics.jsonl")[-2]["lr"] < 3e-4


def test_init(cohort: Path, tmp_path: Path) -> None:
    quick = ("--steps", 2, "--set", "train.picture_every=0")
    assert main(line(cohort, tmp_path / "a", *quick, "--set", "method.detail=false")) == 0
    two = cohort.with_name("two.yaml")
    two.write_text(cohort.read_text().replace("[t1n, t1c, t2w]", "[t1c, t2w]"))
    for spec in (cohort, two):
        more = (*quick, "--init", tmp_path / "a" / "model", "--overwrite")
        assert main(line(spec, tmp_path / "b", *more)) == 0


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "medmae", *arguments], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(process: subprocess.Popen[bytes], rows: int, folder: Path) -> None:
    for _ in range(6000):
        if process.poll() is not None or len(read_rows(folder / "metrics.jsonl")) >= rows:
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_interrupted_on_real_files(cohort: Path, tmp_path: Path) -> None:
    """kill -9, Ctrl-C to the whole group (loader workers too), SIGTERM: in the end the run that never stopped."""
    sets = "train.checkpoint_every=5 train.validate_every=10 train.log_every=1 train.ema=0.9 train.picture_every=0"
    more = ["--steps", "150", *(word for text in sets.split() for word in ("--set", text))]
    assert main(line(cohort, tmp_path / "whole", *more)) == 0
    cut = tmp_path / "cut"
    again = [*line(cohort, cut, *more), "--workers", "1", "--resume"]
    process = start(again)
    wait_for(process, 13, cut)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process = start(again)
    wait_for(process, 45, cut)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    process = start(again)
    wait_for(process, 80, cut)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert main(again) == 0
    assert losses(cut) == losses(tmp_path / "whole")
    ends = [read_state(states(folder / "checkpoints")[-1]) for folder in (cut, tmp_path / "whole")]
    for name, value in ends[0]["method"].items():
        assert value.equal(ends[1]["method"][name]), name
