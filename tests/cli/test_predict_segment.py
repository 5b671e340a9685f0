"""Label maps of the built-in segmenter, and what they are worth, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from labeled import REGIONS, make, put, values
from segmenters import SEQUENCES, evaluate, predict, pretrained, regions, rows, run, untrained

from medmae.cli import main


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regions(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("model"))


# --- prediction -------------------------------------------------------------------------------------------------------


def test_a_label_map_lies_on_the_input(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    image = cohort.parent / "p0" / "t1n.nii.gz"
    out = tmp_path / "new" / "seg.nii.gz"
    assert predict(model, out, "--t1n", image, "--probabilities") == 0
    given, found = nib.load(image), nib.load(out)
    assert found.shape == given.shape
    np.testing.assert_array_equal(found.affine, given.affine)
    assert found.get_data_dtype() == np.uint8
    assert set(np.unique(values(out))) <= {0, 1, 2, 4}
    maps = {n: values(out.with_name(f"seg_probability_{n}.nii.gz")) for n in ("whole", "core", "enhancing")}
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(
        ["seg.nii.gz", *(f"seg_probability_{n}.nii.gz" for n in maps)]
    )
    painted = np.zeros(given.shape, np.uint8)
    for name, value in (("whole", 2), ("core", 1), ("enhancing", 4)):
        painted[maps[name] >= 0.5] = value
    np.testing.assert_array_equal(painted, values(out))
    assert predict(model, out, "--t1n", image) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert predict(model, out, "--t1n", image, "--overwrite") == 0


def test_a_cohort_becomes_a_folder_that_can_be_measured(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "p"
    assert main(["--json", "predict", "--checkpoint", str(model), "--data", str(cohort), "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["given"] for entry in told[:2]] == [["t1n", "t2w"], ["t1n"]]
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", *(f"p{i}.nii.gz" for i in range(6))]
    line = ("evaluate", "segment", "--data", cohort, "--predictions", out, "--split", "all")
    assert run(*line, "--out", tmp_path / "e", "--targets", "both") == 0
    assert {row["target"] for row in rows(tmp_path / "e")} == {"core", "whole", "enhancing", "necrosis", "edema"}
    assert predict(model, out, "--data", cohort) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_fault_in_one_case_leaves_nothing(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(cohort.parent, tmp_path / "c")
    (tmp_path / "c" / "p5" / "t2w.nii.gz").write_bytes(b"no image")
    assert predict(model, tmp_path / "p", "--data", tmp_path / "c" / "spec.yaml") == 3
    assert "1 of 6 case(s) cannot be predicted, nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_predictions_that_cannot_be_made(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    image = cohort.parent / "p0" / "t1n.nii.gz"

    def refused(code: int, words: str, *more: object, out: Path = tmp_path / "p.nii.gz", of: Path = model) -> None:
        assert predict(of, out, *more) == code
        assert words in capsys.readouterr().err
        assert not out.exists()

    refused(2, "name a .nii.gz file", "--t1n", image, out=tmp_path / "p.csv")
    refused(2, "name a folder", "--data", cohort)
    refused(2, "--overlap", "--t1n", image, "--overlap", 1)
    refused(3, "the model knows t1n, t2w", "--t1c", image)
    refused(5, "a pre-trained model", "--t1n", image, of=pretrained(tmp_path / "start"))
    broken = shutil.copytree(model, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    del config["task"]["label"]
    (broken / "config.json").write_text(json.dumps(config))
    refused(5, "does not say what its outputs mean", "--t1n", image, of=broken)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_every_subset_is_measured_on_cases_that_have_it(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "e"
    assert evaluate(model, cohort, out, "--subsets", "all", "--identify", "--targets", "both") == 0
    assert "HD95 in mm" in capsys.readouterr().out
    found = rows(out)
    cases = {given: {r["case"] for r in found if r["given"] == given} for given in ("t1n", "t2w", "t1n+t2w")}
    assert [len(cases[given]) for given in ("t1n", "t2w", "t1n+t2w")] == [5, 5, 4]
    assert {path.name for path in (out / "predictions").iterdir()} == set(cases)
    about = json.loads((out / "summary.json").read_text())["about"]
    assert (about["split"], about["empty"], about["training_cases"]) == ("heldout", "score", 0)
    # what is measured is what predict says of the same files
    single = tmp_path / "one.nii.gz"
    assert predict(model, single, "--t2w", cohort.parent / "p0" / "t2w.nii.gz") == 0
    np.testing.assert_array_equal(values(single), values(out / "predictions" / "t2w" / "p0.nii.gz"))
    assert evaluate(model, cohort, out) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_truth_gets_full_marks(cohort: Path, model: Path, tmp_path: Path, monkeypatch) -> None:
    from medmae.cli.dense_model import Segmenter

    def truth(self, probability, case):
        return values(cohort.parent / "p0" / "seg.nii.gz")

    monkeypatch.setattr(Segmenter, "labels", truth)
    assert evaluate(model, cohort, tmp_path / "e", "--identify", "--split", "all") == 0
    found = {(r["case"], r["target"]): (r["dice"], r["hd95"], r["nsd"]) for r in rows(tmp_path / "e")}
    assert {found["p0", name] for name in ("whole", "core", "enhancing")} == {("1.0", "0.0", "1.0")}
    assert found["p1", "whole"] != ("1.0", "0.0", "1.0")


def test_training_cases_are_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    from medmae.cli.leakage import prints_of
    from medmae.data.cohort import open_cohort

    parts = open_cohort(cohort).split()
    seen = {name: [p.code for p in prints_of(parts[name], SEQUENCES)] for name in ("train", "val")}
    model = untrained(tmp_path / "m", subjects=seen["train"], validation_subjects=seen["val"])
    assert evaluate(model, cohort, tmp_path / "a", "--identify") == 0
    assert {row["case"] for row in rows(tmp_path / "a")} == {case.key for case in parts["test"]}
    assert evaluate(model, cohort, tmp_path / "b", "--split", "train") == 3
    assert "training cases" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert evaluate(model, cohort, tmp_path / "b", "--split", "train", "--allow-leakage") == 0


def test_evaluations_that_cannot_be_made(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    def refused(code: int, words: str, *more: object, of: Path = model, data: Path = cohort) -> None:
        assert evaluate(of, data, tmp_path / "e", *more) == code
        assert words in capsys.readouterr().err
        assert not (tmp_path / "e").exists()

    refused(2, "--tta: of no use for a fine-tuned model", "--no-tta")
    refused(2, "the model has no t1c", "--subsets", "t1c")
    refused(2, "--split", "--split", "dev")
    refused(3, "no case has any of ct", of=untrained(tmp_path / "ct", sequences=("ct",)))
    refused(5, "a pre-trained model", of=pretrained(tmp_path / "start"))
    other = make(tmp_path / "other", label="classes: {background: 0, bone: 1, air: 2}")
    refused(2, "in common", data=other)
    bad = make(tmp_path / "bad", label=REGIONS, values=(2, 1, 4), test=0.34)
    put(tmp_path / "bad" / "p0" / "t2w.nii.gz", np.arange(27, dtype=np.float32).reshape(3, 3, 3))
    refused(3, "cannot be read", "--split", "all", data=bad)
