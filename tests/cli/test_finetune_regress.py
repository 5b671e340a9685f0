"""Numbers through the command line: fine-tune, predict, evaluate, and what nothing can be learned from."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.data.cohort import open_cohort
from medmae.data.synthetic.cohort import synthesize
from medmae.find import find
from medmae.transfer.task_folder import load_task

CASES = 10
PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cohort"), cases=CASES, spacing=8.0, seed=3, missing=0.3, workers=0)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find("bm_mae")
    recipe = found.recipe(scale="test", depth=1)
    torch.manual_seed(0)
    about = {"data": {"preprocess": PREPROCESS}}
    return save_model(
        tmp_path_factory.mktemp("start"), found.build(**recipe), name="bm_mae", recipe=recipe, about=about
    )


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def tune(cohort: Path, start: Path, out: Path, cache: Path, *more: object) -> int:
    line = ("finetune", "regress", "--data", cohort, "--checkpoint", start, "--out", out, "--cache", cache)
    return run(*line, "--steps", 3, "--workers", 0, "--device", "cpu", *more)


@pytest.mark.slow
def test_a_number_is_learned_predicted_and_measured(cohort: Path, start: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert tune(cohort, start, out, tmp_path / "cache", "--target", "age", "--folds", 2, "--fold", 1) == 0
    task = load_task(out / "model", kind="regress")
    assert task.task["columns"] == {"value": "age"}
    split = json.loads((out / "data" / "manifest.json").read_text())["split"]
    ages = {case.key: float(case.table["age"]) for case in open_cohort(cohort).cases}
    known = np.array([ages[key] for key in split["train"]])
    objective = task.task["recipe"]["objective"]
    assert (objective["mean"], objective["std"]) == pytest.approx((known.mean(), known.std()))
    assert run("predict", "--checkpoint", out, "--data", cohort, "--out", tmp_path / "p.csv") == 0
    rows = {row["case"]: float(row["value"]) for row in csv.DictReader((tmp_path / "p.csv").open())}
    assert set(rows) == set(ages)
    assert abs(np.mean(list(rows.values())) - known.mean()) < 3 * known.std()  # in the units of the table
    capsys.readouterr()
    line = ("evaluate", "regress", "--checkpoint", out, "--data", cohort, "--out", tmp_path / "e", "--identify")
    assert run(*line, "--subsets", "given") == 0
    assert "spearman" in capsys.readouterr().out
    written = json.loads((tmp_path / "e" / "summary.json").read_text())["summary"]
    summary = {row["metric"]: row["mean"] for row in written}
    told = list(csv.DictReader((tmp_path / "e" / "predictions.csv").open()))
    assert {row["case"] for row in told} == set(split["test"])
    truth, said = (np.array([float(row[name]) for row in told]) for name in ("true_value", "value"))
    np.testing.assert_allclose(said, [rows[row["case"]] for row in told], rtol=1e-4)
    assert summary["mae"] == pytest.approx(np.abs(truth - said).mean())
    assert summary["r2"] == pytest.approx(1 - np.square(truth - said).sum() / np.square(truth - truth.mean()).sum())
    assert summary["spearman"] == pytest.approx(spearmanr(truth, said).statistic)
    assert run("evaluate", "classify", *line[2:6], "--out", tmp_path / "none") == 5
    assert "cannot classify" in capsys.readouterr().err


def test_what_is_no_number_is_refused(cohort: Path, start: Path, tmp_path: Path, capsys) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    assert tune(cohort, start, out, cache, "--target", "idh") == 2
    assert "value needs a number" in capsys.readouterr().err
    assert tune(cohort, start, out, cache, "--target", "weight") == 3
    assert "no column 'weight'" in capsys.readouterr().err
    text = cohort.read_text()
    flat = cohort.parent / "flat.yaml"
    keys = [case.key for case in open_cohort(cohort).cases]
    (cohort.parent / "flat.csv").write_text("case,age\n" + "".join(f"{key},50\n" for key in keys))
    table = "table:\n  file: flat.csv\n  key: case\n  columns: {age: number}\n"
    flat.write_text(text[: text.index("table:")] + table + text[text.index("geometry:") :])
    assert tune(flat, start, out, cache, "--target", "age") == 3
    assert "there is nothing to learn" in capsys.readouterr().err
    assert not (out / "model").exists()
