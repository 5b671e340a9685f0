"""Segmentations measured through the command line: folders, subsets, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from labeled import PLAIN, REGIONS, SIZE, label_of, make, model_folder, put, values

from medmae.cli import evaluate_segment, main, segmentation_model
from medmae.data.cohort import open_cohort
from medmae.transfer.nnunet.presence import Presence


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cohort"), cases=6, missing={1: ("t2w",)}, test=0.4)


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """Replaces nnU-Net: answers with the truth where t2w is shown, with half of it elsewhere."""
    seen: list[dict[str, np.ndarray]] = []

    def predict(model: Path, inputs: Path, out: Path, **options: object) -> None:
        shown = {path.name.removesuffix(".nii.gz"): values(path) for path in sorted(inputs.glob("*.nii.gz"))}
        seen.append(shown)
        for case in {name[:-5] for name in shown}:
            guess = label_of(int(case[1:]))
            if not shown[f"{case}_0001"].any():
                guess[:8] = 0
            put(out / f"{case}.nii.gz", guess)

    monkeypatch.setattr(evaluate_segment, "predict_folder", predict)
    return seen


def call(*arguments: object) -> int:
    return main(["evaluate", "segment", *map(str, arguments), "--quiet"])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "measurements.csv").open() as file:
        return list(csv.DictReader(file))


def predictions(spec: Path, folder: Path, *, change=None, part: str = "all") -> Path:
    for case in open_cohort(spec).cases:
        guess = values(case.label).copy()
        put(folder / f"{case.key}.nii.gz", guess if change is None else change(guess))
    return folder


def test_every_subset_of_a_model(cohort: Path, predictor, tmp_path: Path, capsys) -> None:
    model, out = model_folder(tmp_path), tmp_path / "out"
    line = ("--data", cohort, "--checkpoint", model, "--out", out, "--split", "all", "--subsets", "all")
    assert call(*line, "--identify") == 0
    assert "t1n+t2w" in capsys.readouterr().out
    assert [len(seen) for seen in predictor] == [12, 10, 10]  # p1 has no t2w: it is asked only from t1n
    t1n, t2w, both = predictor
    assert not t1n["p0_0001"].any()
    assert not t2w["p0_0000"].any()
    assert both["p0_0000"].any()
    assert both["p0_0001"].any()
    found = rows(out)
    assert {(r["given"], r["target"]) for r in found} == {
        (given, target) for given in ("t1n", "t2w", "t1n+t2w") for target in ("edema", "core")
    }
    assert {r["dice"] for r in found if "t2w" in r["given"]} == {"1.0"}
    assert all(float(r["dice"]) < 1 and float(r["hd95"]) >= 1 for r in found if r["given"] == "t1n")
    assert len([r for r in found if r["case"] == "p1"]) == 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["about"]["sequences"] == ["t1n", "t2w"]
    assert summary["about"]["empty"] == "score"
    assert summary["about"]["subsets"] == "all"
    assert sorted(p.name for p in (out / "predictions").iterdir()) == ["t1n", "t1n+t2w", "t2w"]
    assert not (out / "inputs").exists()
    # the predictions that were kept can be measured again
    assert call("--data", cohort, "--predictions", out / "predictions", "--out", tmp_path / "again", "--split", "all",
                "--identify") == 0  # fmt: skip
    assert sorted(map(str, rows(tmp_path / "again"))) == sorted(map(str, found))


def test_what_each_case_has_and_a_list_of_subsets(cohort: Path, predictor, tmp_path: Path) -> None:
    model = model_folder(tmp_path)
    line = ("--data", cohort, "--checkpoint", model, "--split", "all")
    assert call(*line, "--out", tmp_path / "a") == 0
    assert {r["given"] for r in rows(tmp_path / "a")} == {"t1n", "t1n+t2w"}
    assert call(*line, "--out", tmp_path / "b", "--subsets", "FLAIR,t2") == 2
    assert call(*line, "--out", tmp_path / "b", "--subsets", "T2") == 0
    assert {r["given"] for r in rows(tmp_path / "b")} == {"t2w"}


def test_predictions_are_reported_by_what_they_were_made_from(cohort: Path, tmp_path: Path) -> None:
    folder = predictions(cohort, tmp_path / "p")
    cases = {case.file_stem: ("t2w",) if "t2w" in case.images else ("t1n",) for case in open_cohort(cohort).cases}
    Presence(("t1n", "t2w"), cases, predicted=True).save(folder)
    line = ("--predictions", folder, "--out", tmp_path / "out", "--identify")
    assert call("--data", cohort, "--split", "all", *line) == 0
    assert {row["given"] for row in rows(tmp_path / "out")} == {"t2w", "t1n"}


def test_subsets_that_no_case_has(cohort: Path, predictor, tmp_path: Path, capsys) -> None:
    model = model_folder(tmp_path, sequences=("t1n", "t2w", "swi"))
    line = ("--data", cohort, "--checkpoint", model, "--out", tmp_path / "o", "--split", "all")
    assert call(*line, "--subsets", "swi") == 3
    assert "no case to measure has swi" in capsys.readouterr().err
    assert call(*line, "--subsets", "pet") == 2
    assert "the model has no pet; it knows t1n, t2w, swi" in capsys.readouterr().err
    other = model_folder(tmp_path / "other", sequences=("ct",))
    assert call("--data", cohort, "--checkpoint", other, "--out", tmp_path / "o") == 3
    assert "no case has any of the model's sequences (ct)" in capsys.readouterr().err
    assert not predictor


def test_training_cases_are_refused(cohort: Path, predictor, tmp_path: Path, capsys) -> None:
    model = model_folder(tmp_path)
    opened = open_cohort(cohort)
    segmentation_model.remember_training(model, opened.split()["train"], opened.sequences)
    line = ("--data", cohort, "--checkpoint", model)
    assert call(*line, "--out", tmp_path / "a") == 0
    assert call(*line, "--out", tmp_path / "b", "--split", "all") == 3
    assert "were training cases" in capsys.readouterr().err
    assert call(*line, "--out", tmp_path / "b", "--split", "all", "--allow-leakage") == 0


def test_regions_and_other_numbers_in_predictions(tmp_path: Path) -> None:
    from medmae.transfer.nnunet.label_scheme import LabelScheme

    spec = make(tmp_path / "c", cases=3, label=REGIONS, values=(2, 1, 4), test=0.4)
    folder = predictions(spec, tmp_path / "p", change=lambda g: np.where(g == 4, 3, g).astype(np.uint8))
    line = ("--data", spec, "--predictions", folder, "--split", "all")
    assert call(*line, "--out", tmp_path / "wrong") == 3  # 3 means nothing in the spec
    scheme = LabelScheme.of(open_cohort(spec).spec.label, kind="regions").dataset()
    (folder / "dataset.json").write_text(json.dumps(scheme))
    for choice, names in (
        ("auto", {"core", "whole", "enhancing"}),
        ("classes", {"necrosis", "edema", "enhancing"}),
        ("both", {"core", "whole", "enhancing", "necrosis", "edema"}),
    ):
        out = tmp_path / choice
        assert call(*line, "--out", out, "--targets", choice) == 0
        assert {r["target"] for r in rows(out)} == names
        assert {(r["dice"], r["hd95"], r["nsd"]) for r in rows(out)} == {("1.0", "0.0", "1.0")}


def test_folders_without_a_spec(tmp_path: Path, capsys) -> None:
    for i in range(3):
        put(tmp_path / "truth" / f"a{i}.nii.gz", label_of(i))
        put(tmp_path / "guess" / f"a{i}.nii.gz", np.roll(label_of(i), 1, axis=2))
    line = ("--references", tmp_path / "truth", "--predictions", tmp_path / "guess")
    assert call(*line, "--out", tmp_path / "o") == 0
    found = rows(tmp_path / "o")
    assert {r["target"] for r in found} == {"class 1", "class 2"}
    assert {r["hd95"] for r in found} == {"2.0"}  # one voxel of 2 mm
    assert call(*line, "--out", tmp_path / "o") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(*line, "--out", tmp_path / "o", "--overwrite", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["about"]["cases"] == 3
    assert set(printed["files"]) == {"measurements", "summary", "json", "dice", "hd95", "nsd"}


def test_empty_labels_are_treated_as_asked(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", cases=3, test=0.4)
    put(tmp_path / "c" / "p0" / "seg.nii.gz", np.zeros(SIZE, np.uint8))
    folder = predictions(spec, tmp_path / "p")
    line = ("--data", spec, "--predictions", folder, "--split", "all", "--identify")
    assert call(*line, "--out", tmp_path / "score") == 0
    assert call(*line, "--out", tmp_path / "skip", "--empty", "skip") == 0
    for out, dice in (("score", "1.0"), ("skip", "")):
        assert {r["dice"] for r in rows(tmp_path / out) if r["case"] == "p0"} == {dice}
    counts = {e["cases"] for e in json.loads((tmp_path / "skip" / "summary.json").read_text())["summary"]}
    assert counts == {2}


def test_every_case_that_cannot_be_measured_is_named(cohort: Path, tmp_path: Path, capsys) -> None:
    folder = predictions(cohort, tmp_path / "p")
    (folder / "p0.nii.gz").unlink()
    line = ("--data", cohort, "--predictions", folder, "--out", tmp_path / "o", "--split", "all")
    assert call(*line) == 3
    assert "case p0: no prediction" in capsys.readouterr().err
    put(folder / "p0.nii.gz", label_of(values=(1, 9)))
    put(folder / "p2.nii.gz", label_of()[:-1])
    (folder / "p3.nii.gz").write_bytes(b"nothing")
    assert call(*line) == 3
    said = capsys.readouterr().err
    assert "value(s) 9 are no class" in said
    assert "p2.nii.gz is not on the grid of" in said
    assert "p3.nii.gz" in said
    assert "3 case(s) cannot be measured" in said


def test_unknown_values_in_a_label(tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c", cases=3, test=0.4)
    folder = predictions(spec, tmp_path / "p")
    put(tmp_path / "c" / "p1" / "seg.nii.gz", label_of(values=(1, 7)))
    assert call("--data", spec, "--predictions", folder, "--out", tmp_path / "o", "--split", "all") == 3
    said = capsys.readouterr().err
    assert "value(s) 7 are no class (0, 1, 2)" in said
    assert "label.remap" in said


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, "--data", ("--predictions", "here")),
        (2, "--checkpoint", ("--data", "SPEC")),
        (2, "--split", ("--data", "SPEC", "--predictions", "here", "--split", "dev")),
        (2, "--empty", ("--data", "SPEC", "--predictions", "here", "--empty", "maybe")),
        (2, "--tolerance", ("--data", "SPEC", "--predictions", "here", "--tolerance", "-1")),
        (2, "--subsets", ("--data", "SPEC", "--predictions", "here", "--subsets", "all")),
        (2, "no such folder", ("--data", "SPEC", "--predictions", "nowhere")),
        (2, "--data", ("--references", "here", "--checkpoint", "here")),
        (5, "no model folder of nnU-Net", ("--data", "SPEC", "--checkpoint", "nowhere")),
        (2, "--targets", ("--data", "SPEC", "--predictions", "here", "--targets", "all")),
        (2, "no label.regions", ("--data", "SPEC", "--predictions", "here", "--targets", "regions")),
    ],
)
def test_what_cannot_be_meant_is_said(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, code: int, words: str, more
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    arguments = [str(cohort) if word == "SPEC" else word for word in more]
    assert call("--out", tmp_path / "o", *arguments) == code
    assert words in capsys.readouterr().err


def test_a_spec_without_labels_and_a_model_that_segments_nothing(tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c", cases=3)
    pretrained = tmp_path / "model"
    pretrained.mkdir()
    (pretrained / "model.safetensors").write_bytes(b"")
    assert call("--data", spec, "--checkpoint", pretrained, "--out", tmp_path / "o") == 5
    assert "fine-tune it first" in capsys.readouterr().err
    spec.write_text("\n".join(line for line in spec.read_text().splitlines() if not line.startswith("label")))
    assert call("--data", spec, "--predictions", tmp_path, "--out", tmp_path / "o") == 2
    assert "no 'label'" in capsys.readouterr().err


def test_labels_on_another_grid_are_brought_along_where_the_spec_says_so(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", cases=3, label=PLAIN, test=0.4, more="geometry: {on_mismatch: resample}")
    folder = predictions(spec, tmp_path / "p")
    path = tmp_path / "c" / "p0" / "seg.nii.gz"
    shutil.move(path, tmp_path / "old.nii.gz")
    put(path, np.ascontiguousarray(values(tmp_path / "old.nii.gz")[::-1]),
        np.array([[-1.0, 0, 0, SIZE[0] - 1], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))  # fmt: skip
    assert call("--data", spec, "--predictions", folder, "--out", tmp_path / "o", "--split", "all") == 0
    assert {r["dice"] for r in rows(tmp_path / "o")} == {"1.0"}
