"""Folds of a cross-validation as one table, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tables import classified, codes, segmented, surviving

from medmae.cli import main


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    found = json.loads((folder / "summary.json").read_text())["summary"]
    return {(entry["given"], entry["target"], entry["metric"]): entry for entry in found}


def test_folds_of_a_classifier(tmp_path: Path, capsys) -> None:
    parts = [classified(tmp_path / f"f{k}", codes(14, start=14 * k), skill=2, seed=k) for k in range(3)]
    assert run("evaluate", "pool", *parts, "--out", tmp_path / "all") == 0
    printed = capsys.readouterr().out
    assert "42 case(s) of 42 subject(s), 3 folds" in printed
    assert "rank patients of all folds in one list" in printed
    found = summary(tmp_path / "all")
    lines = [r for r in rows(tmp_path / "all" / "predictions.csv") if r["given"] == "t1n"]
    assert [r["fold"] for r in lines] == ["0"] * 14 + ["1"] * 14 + ["2"] * 14

    def auc(chosen: list[dict[str, str]]) -> float:
        score = np.array([float(r["probability_wildtype"]) for r in chosen])
        right = np.array([r["true_class"] == "wildtype" for r in chosen])
        return float((score[right][:, None] > score[~right][None]).mean())

    assert found["t1n", "idh", "auc"]["mean"] == pytest.approx(auc(lines))
    each = [auc([r for r in lines if r["fold"] == str(k)]) for k in range(3)]
    assert found["t1n", "idh", "auc_folds"]["mean"] == pytest.approx(np.mean(each))
    assert found["all", "idh", "auc"]["cases"] == 42
    about = json.loads((tmp_path / "all" / "summary.json").read_text())["about"]
    assert [fold["weights"] for fold in about["folds"]] == ["sha256:0", "sha256:1", "sha256:2"]
    assert run("evaluate", "pool", *reversed(parts), "--out", tmp_path / "turned") == 0
    turned = summary(tmp_path / "turned")
    assert all(turned[key]["low"] == pytest.approx(entry["low"]) for key, entry in found.items())
    capsys.readouterr()
    assert run("evaluate", "pool", *parts, "--out", tmp_path / "all") == 2
    assert "--overwrite" in capsys.readouterr().err
    others = [classified(tmp_path / f"g{k}", codes(14, start=14 * k), skill=0, seed=9 + k) for k in range(3)]
    assert run("evaluate", "pool", *others, "--out", tmp_path / "others", "--json") == 0
    assert "verdict" in json.loads(capsys.readouterr().out)
    assert run("compare", tmp_path / "all", tmp_path / "others", "--out", tmp_path / "c") == 0
    assert "idh, auc_folds: better" in capsys.readouterr().out


def test_folds_of_segmentations_and_survival(tmp_path: Path, capsys) -> None:
    names = codes(24)
    owner = {case: f"p{i // 2}" for i, case in enumerate(names)}
    parts = [segmented(tmp_path / f"f{k}", names[12 * k : 12 * k + 12], dice=0.8, seed=k, subjects=owner)
             for k in range(2)]  # fmt: skip
    assert run("evaluate", "pool", *parts, "--out", tmp_path / "all") == 0
    assert "24 case(s) of 12 subject(s), 2 folds" in capsys.readouterr().out
    lines = rows(tmp_path / "all" / "measurements.csv")
    dice = [float(r["dice"]) for r in lines if (r["given"], r["target"]) == ("t1n", "core")]
    one = summary(tmp_path / "all")["t1n", "core", "dice"]
    assert one["mean"] == pytest.approx(np.mean(dice))
    assert one["low"] < one["mean"] < one["high"]
    alone = [segmented(tmp_path / f"a{k}", names[12 * k : 12 * k + 12], dice=0.8, seed=k) for k in range(2)]
    assert run("evaluate", "pool", *alone, "--out", tmp_path / "alone") == 0
    other = summary(tmp_path / "alone")["t1n", "core", "dice"]
    assert other["mean"] == pytest.approx(one["mean"])
    assert other["low"] != one["low"]  # patients are drawn, where they are known
    assert {r["subject"] for r in lines} == set(owner.values())
    assert (tmp_path / "all" / "dice.png").is_file()
    half = [surviving(tmp_path / f"s{k}", names[12 * k : 12 * k + 12], skill=2, seed=k) for k in range(2)]
    assert run("evaluate", "pool", *half, "--out", tmp_path / "os") == 0
    assert {key[2] for key in summary(tmp_path / "os")} == {"c_index", "c_index_folds"}
    assert list(rows(tmp_path / "os" / "predictions.csv")[0]) == [
        "case", "subject", "fold", "given", "true_time", "true_event", "risk"
    ]  # fmt: skip  # time bins are those of a fold


def test_folds_that_cannot_be_pooled(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    one, two = (classified(tmp_path / n, codes(8, start=s), skill=1, subjects=[f"p{s + i}" for i in range(8)])
                for n, s in (("one", 0), ("two", 7)))  # fmt: skip

    def refused(code: int, words: str, *folds: Path, to: Path = out) -> None:
        assert run("evaluate", "pool", *folds, "--out", to) == code
        said = capsys.readouterr().err
        assert words in said, said
        assert not out.exists()

    refused(3, "1 case(s) of", one, two)
    refused(3, "8 case(s) of", one, one)
    refused(2, "two folds or more", one)
    refused(2, "one of the folds", one, two, to=two)
    refused(2, "no such folder", one, tmp_path / "nowhere")
    refused(3, "of the task classify", one, segmented(tmp_path / "seg", codes(8, start=8), dice=0.5))
    twin = classified(tmp_path / "twin", codes(8, start=8), skill=1, subjects=[f"p{i}" for i in range(7, 15)])
    refused(3, "1 subject(s) of", one, twin)
