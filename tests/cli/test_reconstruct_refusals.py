"""What ``medmae reconstruct`` must never do: overwrite what it reads, mix synthetic images with real ones, guess."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from copiers import PREPROCESS, SIZE, blob, call, save, save_copier

from medmae.cli import main


def test_the_image_to_match_is_never_overwritten(case, copier: Path, tmp_path: Path) -> None:
    image, _ = blob(seed=4)
    match = save(tmp_path / "match.nii.gz", image, np.eye(4))
    content = match.read_bytes()
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--target", "t1c", "--match", match, "--overwrite")
    assert call(*line, "--out", match) == 2
    assert match.read_bytes() == content


def test_match_is_refused_where_the_model_does_not_count_in_deviations(case, tmp_path: Path, capsys) -> None:
    windowed = {**PREPROCESS, "windows": {"ct": [-160, 240]}}
    statistics = {"ct": {"mean": -160.0, "std": 400.0}}
    model = save_copier(tmp_path / "m", preprocess=windowed, about={"statistics": statistics}, sequences=("t1n", "ct"))
    line = ("--checkpoint", model, "--t1n", case["t1n"], "--target", "ct", "--out", tmp_path / "ct.nii.gz")
    assert call(*line, "--match", case["t2w"]) == 2
    assert "--match" in capsys.readouterr().err
    assert call(*line) == 0


def test_one_image_under_two_names_is_refused(case, copier: Path, tmp_path: Path, capsys) -> None:
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--t2w", case["t1n"], "--target", "t1c")
    assert call(*line, "--out", tmp_path / "o.nii.gz") == 3
    assert "t1n and t2w are the same image" in capsys.readouterr().err


def test_inputs_on_other_grids_are_resampled_when_told(case, copier: Path, tmp_path: Path, capsys) -> None:
    moved = np.eye(4)
    moved[:3, 3] = 2.0
    other = save(tmp_path / "moved.nii.gz", nib.load(case["t2w"]).get_fdata().astype(np.int16), moved)
    out = tmp_path / "o.nii.gz"
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--t2w", other, "--target", "t1c", "--out", out)
    assert call(*line) == 3
    assert "--resample" in capsys.readouterr().err
    assert call(*line, "--resample") == 0
    assert nib.load(out).shape == SIZE


def test_a_place_that_cannot_be_written_is_no_bug(case, copier: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--target", "t1c")
    assert call(*line, "--out", tmp_path / "file" / "o.nii.gz") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["pattern", "folder", "flat"])
def test_a_cohort_is_never_mixed_with_its_reconstructions(copier: Path, tmp_path: Path, layout: str, capsys) -> None:
    root = tmp_path / "data"
    for name, seed in (("t1n", 0), ("t1c", 1)):
        file = root / (f"a_{name}.nii.gz" if layout == "flat" else f"a/{name}.nii.gz")
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, blob(seed=seed)[0], np.eye(4))
    source = root
    if layout == "pattern":
        source = tmp_path / "spec.yaml"
        source.write_text(
            'medmae: 1\nname: a\nroot: data\npattern: "{case}/{seq}.nii.gz"\nsequences: [t1n, t1c, t2w]\n'
        )
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    places = [root] if layout == "pattern" else [root, root / "made"]
    for out in places:
        line = ("--checkpoint", copier, "--data", source, "--target", "t1c", "--out", out)
        assert call(*line, "--hide-present", "--overwrite") == 2
        assert "among the cohort's own" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert call(*line[:-1], tmp_path / "out", "--hide-present") == 0


@pytest.mark.parametrize(
    "verb",
    [("check", "--data", "{root}", "--report"), ("init", "{root}", "--out"), ("synthesize", "--cases", "1", "--out")],
)
def test_data_verbs_that_cannot_write_are_no_bug(tmp_path: Path, verb: tuple[str, ...], capsys) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    save(tmp_path / "data" / "a" / "t1n.nii.gz", blob()[0], np.eye(4))
    (tmp_path / "file").write_text("")
    words = [word.format(root=tmp_path / "data") for word in verb]
    assert main(["data", *words, str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_quiet_check_names_every_fault(tmp_path: Path, capsys) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "t1n.nii.gz", blob(seed=len(name))[0], np.eye(4))
        (tmp_path / name / "t2w.nii.gz").write_bytes(b"")
    assert main(["--quiet", "data", "check", "--data", str(tmp_path), "--workers", "0"]) == 3
    told = capsys.readouterr().err
    assert "a t2w: an empty file" in told
    assert "b t2w: an empty file" in told


@pytest.mark.parametrize("content", ["case,t1n\nJürgen,a.nii.gz\n".encode("latin-1"), b""])
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, capsys) -> None:
    (tmp_path / "cohort.csv").write_bytes(content)
    assert main(["data", "check", "--data", str(tmp_path / "cohort.csv")]) == 3
    assert "cohort.csv" in capsys.readouterr().err


def test_cases_without_the_reference_are_counted_once(copier: Path, tmp_path: Path, capsys) -> None:
    image, _ = blob()
    lines = ["case,t1n,t2w"]
    for i in range(3):
        first = save(tmp_path / f"a{i}.nii.gz", image + i, np.eye(4))
        second = save(tmp_path / f"b{i}.nii.gz", image.max() - image, np.eye(4)) if i == 0 else None
        lines.append(f"p{i},{first.name},{second.name if second else ''}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    line = ["--checkpoint", copier, "--data", tmp_path / "cohort.csv", "--target", "t1c", "--out", tmp_path / "out"]
    line += ["--reference", "t2w", "--overlap", 0]
    assert main(["reconstruct", *map(str, line)]) == 0
    assert capsys.readouterr().err.count("2 of 3 case(s) lack t2w") == 1


def test_a_constant_input_is_said_and_left_out(copier: Path, case, tmp_path: Path, capsys) -> None:
    flat = save(tmp_path / "flat.nii.gz", np.full(SIZE, 3, np.int16), np.eye(4))
    line = ["--checkpoint", copier, "--t2w", flat, "--t1n", case["t1n"], "--target", "t1c", "--overlap", 0]
    assert main(["reconstruct", *map(str, line), "--out", str(tmp_path / "o.nii.gz")]) == 0
    assert "t2w has one value only: left out" in capsys.readouterr().err
    about = json.loads((tmp_path / "o.json").read_text())
    assert set(about["inputs"]) == {"t1n"}
    assert about["reference"] == "t1n"
