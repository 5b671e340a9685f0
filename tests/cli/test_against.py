"""Two evaluations side by side through the command line: tables, words, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from labeled import make, put, values
from tables import classified, codes, regressed, segmented, surviving

from medmae.cli import main
from medmae.cli.against import check_against, compared
from medmae.core.errors import UsageError
from medmae.data.cohort import open_cohort

NUMBERS = ("this", "other", "difference", "low", "high", "p", "p_holm")


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_segmentations_side_by_side(tmp_path: Path, capsys) -> None:
    cases = codes(20)
    good, bad = segmented(tmp_path / "a", cases, dice=0.9), segmented(tmp_path / "b", cases, dice=0.8, seed=1)
    assert run("compare", good, bad, "--out", tmp_path / "c") == 0
    printed = capsys.readouterr().out
    assert "dice, this minus other, 20 case(s) of 20 subject(s)" in printed
    assert "core, dice: better on the mean over subsets; better in 2 of 2 subsets" in printed
    assert "core, hd95: better" in printed
    found = {(r["given"], r["target"], r["metric"]): r for r in rows(tmp_path / "c" / "against.csv")}
    assert set(found) == {(s, t, m) for s in ("t1n", "t1n+t2w", "all") for t in ("core", "'=edema")
                          for m in ("dice", "hd95")}  # fmt: skip
    one = found["t1n", "core", "dice"]
    assert float(one["difference"]) == pytest.approx(float(one["this"]) - float(one["other"]))
    assert float(one["low"]) > 0
    assert (one["cases"], one["subjects"], one["left_out"]) == ("20", "20", "0")
    assert float(one["p_holm"]) >= 2 * float(one["p"]) * 0.99
    assert run("compare", bad, good, "--out", tmp_path / "d") == 0
    other = {(r["given"], r["target"], r["metric"]): r for r in rows(tmp_path / "d" / "against.csv")}
    assert float(other["t1n", "core", "dice"]["difference"]) == -float(one["difference"])
    assert other["t1n", "core", "hd95"]["verdict"] == "worse"
    told = json.loads((tmp_path / "c" / "against.json").read_text())
    assert "Pratt" in told["about"]["test"]
    assert told["about"]["subjects_from"] == "cases: none was written"
    assert (tmp_path / "c" / "against.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert run("compare", good, bad, "--out", tmp_path / "c") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("compare", good, bad, "--out", tmp_path / "c", "--overwrite", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("files").keys() == {"against", "against_json", "against_picture"}
    assert again == told


def test_classes_and_survival_side_by_side(tmp_path: Path, capsys) -> None:
    cases = codes(40)
    good, bad = classified(tmp_path / "a", cases, skill=6), classified(tmp_path / "b", cases, skill=0, seed=1)
    assert run("compare", good, bad, "--out", tmp_path / "c") == 0
    assert "idh, auc: better on the mean over subsets; better in 2 of 2 subsets" in capsys.readouterr().out
    shutil.copytree(good, tmp_path / "twin")
    assert run("compare", good, tmp_path / "twin", "--out", tmp_path / "same") == 0
    for row in rows(tmp_path / "same" / "against.csv"):
        assert [float(row[name]) for name in NUMBERS[2:]] == [0, 0, 0, 1, 1]
        assert row["verdict"] == "not surely different"
    capsys.readouterr()
    one, two = surviving(tmp_path / "s", cases, skill=2), surviving(tmp_path / "t", cases, skill=0, seed=1)
    assert run("compare", one, two, "--out", tmp_path / "u") == 0
    assert "os_days, os_event, c_index: better\n" in capsys.readouterr().out
    lone = json.loads((tmp_path / "u" / "against.json").read_text())["differences"]
    assert [(d["given"], d["cases"]) for d in lone] == [("given", 40)]
    near, far = regressed(tmp_path / "near", cases, noise=2), regressed(tmp_path / "far", cases, noise=20, seed=1)
    assert run("compare", near, far, "--out", tmp_path / "ages") == 0
    printed = capsys.readouterr().out
    assert "age, mae: better\n" in printed  # the smaller error
    assert "age, r2: better\n" in printed


def test_scans_of_a_patient_are_drawn_together(tmp_path: Path) -> None:
    cases = codes(24)
    owner = {case: cases[i // 4 * 4] for i, case in enumerate(cases)}
    one, two = (segmented(tmp_path / n, cases, dice=0.8 + i / 100, seed=i, subjects=owner) for i, n in enumerate("ab"))
    assert run("compare", one, two, "--out", tmp_path / "c") == 0
    assert {(r["cases"], r["subjects"]) for r in rows(tmp_path / "c" / "against.csv")} == {("24", "6")}


def test_what_cannot_be_compared(tmp_path: Path, capsys) -> None:
    cases, out = codes(8), tmp_path / "out"
    good = classified(tmp_path / "good", cases, skill=1)

    def refused(code: int, other: Path, *words: str) -> None:
        assert run("compare", good, other, "--out", out) == code
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert not out.exists()

    refused(2, tmp_path / "nowhere", "no such folder")
    refused(2, good, "itself")
    (tmp_path / "empty" / "test").mkdir(parents=True)
    refused(2, tmp_path / "empty", "holds no results", "summary.json")
    (tmp_path / "empty" / "test" / "summary.json").write_text("{}")
    refused(2, tmp_path / "empty", "Results are in", "test")
    refused(3, tmp_path / "empty" / "test", "cannot be read as results")
    refused(3, classified(tmp_path / "fewer", cases[:6], skill=1), "not about the same cases", "2 case(s) only in",
            "--identify")  # fmt: skip
    refused(3, classified(tmp_path / "more", codes(9), skill=1), f"1 case(s) only in {tmp_path / 'more'}")
    refused(3, segmented(tmp_path / "seg", cases, dice=0.5), "of the task classify", "segmentation")
    refused(3, surviving(tmp_path / "os", cases, skill=1), "of the task classify, the other of survive")
    refused(3, classified(tmp_path / "who", cases, skill=1, columns={"class": "mgmt"}), "columns of the table differ")
    refused(3, classified(tmp_path / "t2f", cases, skill=1, subsets=("t2f",)), "no subset of sequences is in both")
    shutil.copytree(good, tmp_path / "told")
    table = tmp_path / "told" / "predictions.csv"
    table.write_text(table.read_text().replace(f"{cases[0]},t1n,mutant", f"{cases[0]},t1n,wildtype"))
    refused(3, tmp_path / "told", "1 case(s) have another outcome")
    seg = segmented(tmp_path / "skip", cases, dice=0.5, empty="skip")
    assert run("compare", seg, tmp_path / "seg", "--out", out) == 3
    assert "--empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + text.splitlines()[1] + "\n", "is there twice"),
        (lambda text: text.replace("true_class", "class"), "no column true_class"),
        (lambda text: text.splitlines()[0] + "\n", "holds no case"),
        (lambda text: text + "1,2\n", "too many or too few cells"),
        (lambda text: text.replace(",mutant,", ",other,", 1), "none of the model's"),
        (lambda text: text[: text.rindex(",")] + ",x\n", "is no number"),
        (lambda text: text[: text.rindex(",")] + ",\n", "has no number for probability_wildtype"),
    ],
)
def test_results_that_were_touched(tmp_path: Path, capsys, change, words: str) -> None:
    good, bad = classified(tmp_path / "good", codes(8), skill=1), classified(tmp_path / "bad", codes(8), skill=1)
    table = bad / "predictions.csv"
    table.write_text(change(table.read_text()))
    assert run("compare", good, bad, "--out", tmp_path / "out") == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_no_result(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mae" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    for config, verb in (({}, "reconstruct"), ({"task": {"kind": "survive"}}, "survive")):
        (folder / "config.json").write_text(json.dumps(config))
        for given in (folder, folder.parent):
            with pytest.raises(
                UsageError, match=f"Evaluate it first(.|\n)*medmae evaluate {verb} --checkpoint {given}"
            ):
                check_against(given, tmp_path / "out")
    with pytest.raises(UsageError, match="--out itself"):
        check_against(tmp_path, tmp_path / "x" / "..")
    check_against(None, tmp_path)


def test_a_stale_comparison_goes_with_its_results(tmp_path: Path) -> None:
    one, two = (segmented(tmp_path / n, codes(6), dice=0.8) for n in "ab")
    found = compared(one, two)["against"]
    assert Path(found["files"]["against"]).is_file()
    assert compared(one, None) == {}
    assert not list(one.glob("against*"))


def test_a_segmentation_next_to_an_earlier_one(tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "cohort", cases=6)
    for name in ("good", "bad"):
        for case in open_cohort(spec).cases:
            guess = values(case.label).copy()
            if name == "bad":
                guess[:8] = 0
            put(tmp_path / name / f"{case.key}.nii.gz", guess)
    line = ("evaluate", "segment", "--data", spec, "--split", "all", "--predictions")
    assert run(*line, tmp_path / "bad", "--out", tmp_path / "earlier") == 0
    assert "subject" in rows(tmp_path / "earlier" / "measurements.csv")[0]
    out = tmp_path / "out"
    assert run(*line, tmp_path / "good", "--out", out, "--against", tmp_path / "bad") == 2
    assert "holds no results" in capsys.readouterr().err
    assert not out.exists()
    assert run(*line, tmp_path / "good", "--out", out, "--against", tmp_path / "earlier") == 0
    assert "dice, this minus other, 6 case(s) of 6 subject(s)" in capsys.readouterr().out
    found = [r for r in rows(out / "against.csv") if r["metric"] == "dice"]
    assert all(float(r["this"]) == 1 > float(r["other"]) for r in found)
    assert run(*line, tmp_path / "good", "--out", out, "--overwrite", "--json") == 0
    assert "against" not in json.loads(capsys.readouterr().out)
    assert not (out / "against.csv").exists()  # of results that are gone


@pytest.mark.slow
def test_two_models_on_the_same_patients(tmp_path: Path, capsys) -> None:
    from test_finetune_table import untrained

    from medmae.data.synthetic.cohort import synthesize

    cohort = synthesize(tmp_path / "cohort", cases=8, spacing=8.0, seed=3, workers=0)
    model, other = (untrained(tmp_path / n, "classify", sequences=s) for n, s in (("a", ("t1n", "t1c", "t2w", "t2f")),
                                                                                 ("b", ("t1n", "t2f"))))  # fmt: skip
    line = ("evaluate", "classify", "--data", cohort, "--device", "cpu", "--subsets", "all")
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    assert run(*line, "--checkpoint", other, "--out", out, "--against", other) == 2
    said = capsys.readouterr().err
    assert "holds a model, not results" in said
    assert not out.exists()
    assert run(*line, "--checkpoint", other, "--out", earlier) == 0
    assert "subject" in rows(earlier / "predictions.csv")[0]
    text = (earlier / "predictions.csv").read_text()
    assert not any(case.key in text or case.subject in text for case in open_cohort(cohort).cases)
    shutil.copytree(tmp_path / "cohort", tmp_path / "moved")  # the same patients elsewhere
    there = (*line[:3], tmp_path / "moved" / cohort.name, *line[4:])
    capsys.readouterr()
    assert run(*there, "--checkpoint", model, "--out", out, "--against", earlier, "--json") == 0
    found = json.loads(capsys.readouterr().out)["against"]
    assert {d["given"] for d in found["differences"]} == {"t1n", "t2f", "t1n+t2f", "all"}
    assert len(found["about"]["subsets_left_aside"]) == 12
    assert found["about"]["subjects"] == 8
    assert run(*line, "--checkpoint", model, "--out", out, "--against", earlier, "--cases", 6, "--overwrite") == 3
    said = capsys.readouterr().err
    assert "2 case(s) only in" in said
    assert f"medmae compare {out} RESULTS" in said
    assert (out / "summary.json").is_file()
