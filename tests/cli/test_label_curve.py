"""Label curves through the command line, on the synthetic cohort."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.data.cohort import open_cohort
from medmae.data.fingerprint import Fingerprints, case_files, case_hash
from medmae.data.synthetic.cohort import synthesize
from medmae.find import find

CASES = 10


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cohort"), cases=CASES, spacing=8.0, seed=3, missing=0.3, workers=0)


def save(folder: Path, name: str, **data: object) -> Path:
    found = find(name)
    recipe = found.recipe(scale="test")
    torch.manual_seed(0)
    preprocess = {"orientation": "RAS", "spacing": None, "crop": "foreground"}
    about = {"data": {"sequences": recipe["sequences"], "preprocess": preprocess, **data}}
    return save_model(folder, found.build(**recipe), name=name, recipe=recipe, about=about)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save(folder / f"my-{name}", name) for name in ("bm_mae", "simclr")}


def call(data: Path, checkpoint: Path, out: Path, *more: object, target: str = "idh") -> int:
    line = ["--fractions", "0.25,1", "--checkpoint", checkpoint, "--data", data, "--target", target, "--out", out]
    return main(["evaluate", *map(str, line), "--draws", "2", "--folds", "3", "--quiet", *map(str, more)])


def test_a_table_of_models_and_fractions(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    against = ("--against", models["bm_mae"], "--against", "scratch")
    assert call(cohort, models["simclr"], tmp_path / "out", *against) == 0
    shown = capsys.readouterr().out
    assert "balanced accuracy" in shown
    names = ["simclr (my-simclr)", "bm_mae (my-bm_mae)", "scratch"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["about"]["models"]) == names
    assert summary["about"]["cases"] == CASES
    assert sum(summary["about"]["cases_by_class"].values()) == CASES
    assert summary["about"]["models"]["scratch"]["weights"] == "untrained"
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert [row["model"] for row in rows if row["metric"] == "auc"] == names * 2
    assert {row["fraction"] for row in rows} == {"0.25", "1.0"}
    # Weights of seed 0 are what `scratch` builds, too: the same network gives the same numbers.
    values = {row["model"]: row["mean"] for row in rows if row["metric"] == "auc" and row["fraction"] == "1.0"}
    assert values["scratch"] == values["simclr (my-simclr)"]
    for file in (tmp_path / "out").iterdir():
        assert b"synth_0" not in file.read_bytes()
        assert str(cohort.parent).encode() not in file.read_bytes()
    assert call(cohort, models["simclr"], tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(cohort, models["simclr"], tmp_path / "out", "--overwrite", "--json", target="os_event") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["about"]["classes"] == ["0", "1"]
    assert set(printed["files"]) == {"measurements", "summary", "json", "curve"}


def test_training_cases_are_refused(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    case = open_cohort(cohort).cases[0]
    known = save(tmp_path / "known" / "model", "simclr", subjects=[case_hash(case_files(case, Fingerprints(None)))])
    against = ("--against", known)
    assert call(cohort, models["bm_mae"], tmp_path / "out", *against) == 3
    said = capsys.readouterr().err
    assert f"1 of {CASES} case(s) were training cases of simclr (known)" in said
    assert "--allow-leakage" in said
    assert call(cohort, models["bm_mae"], tmp_path / "out", *against, "--allow-leakage") == 0
    about = json.loads((tmp_path / "out" / "summary.json").read_text())["about"]["models"]
    assert [model["training_cases"] for model in about.values()] == [0, 1]


def retold(cohort: Path, name: str, column: str, values: list[str], columns: str | None = None) -> Path:
    """The spec with another table: ``column`` holds ``values``."""
    lines = [f"case,{column}", *(f"{case.key},{v}" for case, v in zip(open_cohort(cohort).cases, values, strict=True))]
    (cohort.parent / f"{name}.csv").write_text("\n".join(lines) + "\n")
    text = cohort.read_text()
    start, end = text.index("table:"), text.index("geometry:")
    table = f"table:\n  file: {name}.csv\n  key: case\n  columns: {{{columns or column + ': class'}}}\n"
    path = cohort.parent / f"{name}.yaml"
    path.write_text(text[:start] + table + text[end:])
    return path


def test_labels_that_cannot_be_learned_from(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    def refused(data: Path, target: str, code: int, *words: str) -> None:
        assert call(data, models["simclr"], tmp_path / "out", target=target) == code
        said = capsys.readouterr().err
        assert all(word in said for word in words), said

    refused(cohort, "grade", 3, "no column 'grade'", "idh, age, os_days, os_event")
    refused(cohort, "os_days", 2, "is a time", "needs classes")
    bare = cohort.parent / "bare.yaml"
    text = cohort.read_text()
    bare.write_text(text[: text.index("table:")] + text[text.index("geometry:") :])
    refused(bare, "idh", 3, "names no table")
    refused(retold(cohort, "empty", "kind", ["nan"] * CASES), "kind", 3, f"none of {CASES} case(s) has a value")
    refused(retold(cohort, "one", "kind", ["a"] * CASES), "kind", 3, "have the class 'a'", "nothing to tell apart")
    few = retold(cohort, "few", "kind", ["a"] * (CASES - 1) + ["b"])
    refused(few, "kind", 3, "too few subjects of class b (1)")
    assert not (tmp_path / "out").exists()


def test_cases_without_a_label_are_left_aside_and_said(
    cohort: Path, models: dict[str, Path], tmp_path: Path, capsys
) -> None:
    some = retold(cohort, "some", "kind", ["a", "b"] * 4 + ["", "n/a"])
    line = ["--fractions", "1", "--checkpoint", models["simclr"], "--data", some, "--target", "kind"]
    assert main(["evaluate", *map(str, line), "--out", str(tmp_path / "out"), "--folds", "2"]) == 0
    assert "2 case(s) left aside: no kind" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["about"]["cases"] == 8


def test_every_broken_case_is_named_in_one_pass(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cohort.parent, copy)
    broken = open_cohort(copy / "spec.yaml").cases[:2]
    for case in broken:
        for path in case.images.values():
            path.write_bytes(b"nothing")
    assert call(copy / "spec.yaml", models["simclr"], tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert all(case.key in said for case in broken)
    assert f"2 of {CASES}" in said


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, "--split", ("--split", "dev")),
        (2, "--folds", ("--folds", 1)),
        (2, "--fractions", ("--fractions", "0,1")),
        (2, "--fractions", ("--fractions", "many")),
        (2, "--precision", ("--precision", "fp8")),
        (5, "does not exist", ("--checkpoint", "nowhere")),
        (5, "does not exist", ("--against", "nowhere")),
        (2, "no such file", ("--data", "nowhere")),
    ],
)
def test_what_cannot_be_meant_is_said(
    cohort: Path, models: dict[str, Path], tmp_path: Path, capsys, code: int, words: str, more
) -> None:
    assert call(cohort, models["simclr"], tmp_path / "o", *more) == code
    assert words in capsys.readouterr().err


def test_options_stand_where_they_belong(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    assert main(["evaluate", "--fractions", "1"]) == 2
    assert "--data, --checkpoint, --target, --out" in capsys.readouterr().err
    assert main(["evaluate", "--data", "x", "reconstruct", "--data", "x", "--checkpoint", "y", "--out", "z"]) == 2
    assert "stands before reconstruct" in capsys.readouterr().err
    assert call(cohort, models["simclr"], tmp_path / "o", "--against", models["simclr"]) == 2
    assert "give each folder once" in capsys.readouterr().err
    image = find("mae").recipe(scale="test")
    flat = save_model(tmp_path / "flat", find("mae").build(**image), name="mae", recipe=image)
    assert call(cohort, flat, tmp_path / "o") == 5
    assert "no encoder of volumes" in capsys.readouterr().err
    stacked = {**image, "size": [16, 16, 16], "patch": [8, 8, 8], "channels": 4}
    cube = save_model(tmp_path / "cube", find("mae").build(**stacked), name="mae", recipe=stacked)
    assert call(cohort, cube, tmp_path / "o") == 5
    assert "holds mae, which has no encoder of volumes of named sequences" in capsys.readouterr().err
