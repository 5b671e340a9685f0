"""Classes and survival through the command line, on the synthetic cohort."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from medmae.checkpoint import load_model, save_model
from medmae.cli import main
from medmae.data.cohort import open_cohort
from medmae.data.synthetic.cohort import synthesize
from medmae.find import find
from medmae.transfer.building import build
from medmae.transfer.task_folder import load_task, save_task

CASES = 12
PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground"}
OBJECTIVES = {
    "classify": ({"class": "idh"}, {"kind": "classes", "count": 2}, ["mutant", "wildtype"]),
    "survive": ({"time": "os_days", "event": "os_event"}, {"kind": "hazards", "edges": [100.0, 400.0, 900.0]}, []),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cohort"), cases=CASES, spacing=8.0, seed=3, missing=0.3, workers=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def pretrained(folder: Path, *, sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f")) -> Path:
    found = find("bm_mae")
    recipe = found.recipe(scale="test", sequences=sequences, depth=1)
    torch.manual_seed(0)
    about = {"data": {"sequences": list(sequences), "preprocess": PREPROCESS}}
    return save_model(folder, found.build(**recipe), name="bm_mae", recipe=recipe, about=about)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("start"))


def untrained(folder: Path, kind: str, *, sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f"), **data) -> Path:
    """A model that was trained on nobody."""
    columns, objective, classes = OBJECTIVES[kind]
    base = find("bm_mae").recipe(scale="test", sequences=sequences, depth=1)
    recipe = {"backbone": {"method": "bm_mae", "recipe": base}, "head": {"kind": "linear"}, "objective": objective}
    torch.manual_seed(0)
    task = {"kind": kind, "columns": columns, "classes": classes, "recipe": recipe}
    return save_task(folder, build(recipe), task=task, about={"data": {"preprocess": PREPROCESS, **data}})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: untrained(tmp_path_factory.mktemp(kind), kind) for kind in OBJECTIVES}


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def retold(cohort: Path, name: str, columns: dict[str, list[str]], kinds: str) -> Path:
    """The spec with another table."""
    keys = [case.key for case in open_cohort(cohort).cases]
    lines = [",".join(row) for row in zip(["case", *keys], *([n, *v] for n, v in columns.items()), strict=True)]
    (cohort.parent / f"{name}.csv").write_text("\n".join(lines) + "\n")
    text = cohort.read_text()
    table = f"table:\n  file: {name}.csv\n  key: case\n  columns: {{{kinds}}}\n"
    path = cohort.parent / f"{name}.yaml"
    path.write_text(text[: text.index("table:")] + table + text[text.index("geometry:") :])
    return path


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def classify(data: Path, out: Path, *more: object, target: str = "idh") -> int:
    line = ["--data", data, "--target", target, "--out", out, "--device", "cpu", "--workers", 0, *more]
    return run("finetune", "classify", *line)


def survive(data: Path, out: Path, *more: object) -> int:
    line = ["--data", data, "--time", "os_days", "--event", "os_event", "--out", out, "--device", "cpu", "--workers", 0]
    return run("finetune", "survive", *line, *more)


def test_options_that_cannot_be_meant(cohort: Path, start: Path, tmp_path: Path, capsys) -> None:
    def refused(words: str, *more: object, code: int = 2) -> None:
        assert classify(cohort, tmp_path / "out", *more) == code
        assert words in capsys.readouterr().err

    refused("--checkpoint (weights to start from) or --from-scratch")
    refused("--method and --scale need --from-scratch", "--checkpoint", start, "--scale", "tiny")
    given = ("--checkpoint", start)
    refused("from 0 to 2", *given, "--folds", 3, "--fold", 3)
    refused("--schedule must be one of full, frozen, warmup, sawtooth", *given, "--schedule", "zigzag")
    refused("--head must be one of", *given, "--head", "tree")
    refused("--pool must be one of", *given, "--pool", "max")
    refused("--layer-decay", *given, "--layer-decay", 0)
    refused("--modality-dropout", *given, "--modality-dropout", 1.5)
    refused("--class-weights", *given, "--class-weights", "some")
    refused("training alone", *given, "--set", "data.crop=3")
    refused("train.lrr", *given, "--set", "train.lrr=3")
    refused("layers 0 to 0", *given, "--layer", 4)
    refused("steps", *given, "--steps", 3, "--epochs", 2)
    refused("no method for volumes", "--from-scratch", "--method", "mae")
    refused("does not exist", "--checkpoint", tmp_path / "nowhere", code=5)
    assert survive(cohort, tmp_path / "out", *given, "--loss", "mse") == 2
    assert "--loss must be" in capsys.readouterr().err
    assert survive(cohort, tmp_path / "out", *given, "--loss", "cox", "--batch", 1) == 2
    assert "1 is too few" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    other = pretrained(tmp_path / "other", sequences=("adc", "pet"))
    assert classify(cohort, tmp_path / "out", "--checkpoint", other) == 5
    assert "none in common" in capsys.readouterr().err
    assert classify(cohort, tmp_path / "out", "--checkpoint", models["classify"]) == 5
    assert "fine-tuned already" in capsys.readouterr().err
    assert run("reconstruct", "--checkpoint", models["classify"], "--t1n", "a", "--target", "t1c", "--out", "b") == 5
    assert "fine-tuned to classify, not a pre-trained one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outcomes_that_nothing_can_be_learned_from(cohort: Path, start: Path, tmp_path: Path, capsys) -> None:
    def refused(data: Path, target: str, code: int, *words: str, more: tuple[object, ...] = ()) -> None:
        assert classify(data, tmp_path / "out", "--checkpoint", start, *more, target=target) == code
        said = capsys.readouterr().err
        assert all(word in said for word in words), said

    refused(cohort, "grade", 3, "no column 'grade'", "idh, age, os_days, os_event")
    refused(cohort, "os_days", 2, "is a time", "class needs a class or event")
    refused(retold(cohort, "one", {"kind": ["a"] * CASES}, "kind: class"), "kind", 3, "have the class 'a'")
    refused(retold(cohort, "none", {"kind": ["nan"] * CASES}, "kind: class"), "kind", 3, f"none of {CASES} case(s)")
    few = retold(cohort, "few", {"kind": ["a"] * (CASES - 2) + ["b"] * 2}, "kind: class")
    refused(few, "kind", 3, "--folds 3", "2 subject(s) only", more=("--folds", 3))
    twice = retold(cohort, "twice", {"kind": ["a", "b"] * 6}, "kind: class")
    table = cohort.parent / "twice.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    refused(twice, "kind", 3, "a second row for")
    odd = retold(
        cohort, "odd", {"os_days": ["inf"] + ["5"] * 11, "os_event": ["1"] * 12}, "os_days: time, os_event: event"
    )
    assert survive(odd, tmp_path / "out", "--checkpoint", start) == 3
    assert "is no number" in capsys.readouterr().err
    columns = {"os_days": [str(i + 1) for i in range(CASES)], "os_event": ["0"] * CASES}
    censored = retold(cohort, "censored", columns, "os_days: time, os_event: event")
    for more in ((), ("--folds", 3)):
        assert survive(censored, tmp_path / "out", "--checkpoint", start, *more) == 3
        assert "are censored" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- predicting -----------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_predict_a_cohort_and_files(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    line = ("predict", "--device", "cpu", "--data", cohort)
    assert run(*line, "--checkpoint", models["classify"], "--out", tmp_path / "a.csv") == 0
    found = rows(tmp_path / "a.csv")
    assert [row["case"] for row in found] == [case.key for case in open_cohort(cohort).cases]
    for row in found:
        assert float(row["probability_mutant"]) + float(row["probability_wildtype"]) == pytest.approx(1)
        assert row["prediction"] in ("mutant", "wildtype")
    assert run(*line, "--checkpoint", models["survive"], "--out", tmp_path / "b.csv", "--split", "test") == 0
    assert list(rows(tmp_path / "b.csv")[0]) == [
        "case", "given", "risk", "expected", "survival_100", "survival_400", "survival_900"
    ]  # fmt: skip
    assert run(*line, "--checkpoint", models["classify"], "--out", tmp_path / "a.csv") == 2
    assert "--overwrite" in capsys.readouterr().err
    case = open_cohort(cohort).cases[0]
    files = [word for name, path in case.images.items() for word in ("--input", f"{name}={path}")]
    line = ("predict", "--device", "cpu", "--checkpoint", models["classify"], *files, "--mask", case.mask)
    assert run(*line, "--out", tmp_path / "c.csv") == 0
    alone = rows(tmp_path / "c.csv")[0]
    assert float(alone["probability_mutant"]) == pytest.approx(float(found[0]["probability_mutant"]), abs=1e-5)
    assert alone["given"] == found[0]["given"] == "+".join(case.images)


def test_predictions_that_cannot_be_made(
    cohort: Path, models: dict[str, Path], start: Path, tmp_path: Path, capsys
) -> None:
    case = open_cohort(cohort).cases[0]
    image = next(iter(case.images.values()))
    out = tmp_path / "out.csv"

    def refused(code: int, words: str, *more: object, checkpoint: Path = models["classify"]) -> None:
        assert run("predict", "--checkpoint", checkpoint, "--out", out, "--device", "cpu", *more) == code
        said = capsys.readouterr().err
        assert words in said, said
        assert not out.exists()

    refused(3, "the model knows t1n, t1c, t2w, t2f", "--input", f"adc={image}")
    refused(5, "fine-tune it first", "--t1n", image, checkpoint=start)
    refused(2, "no input")
    refused(2, "cannot be combined", "--data", cohort, "--t1n", image)
    refused(2, "--split", "--data", cohort, "--split", "dev")
    refused(2, "--batch", "--data", cohort, "--batch", 0)
    refused(2, "--precision", "--data", cohort, "--precision", "fp8")
    refused(3, "given.nii.gz", "--t1n", tmp_path / "given.nii.gz")
    other = untrained(tmp_path / "other", "classify", sequences=("adc",))
    refused(3, "has any of the model's sequences (adc)", "--data", cohort, checkpoint=other)
    config = json.loads((other / "config.json").read_text())
    config["task"]["kind"] = "forecast"
    (other / "config.json").write_text(json.dumps(config))
    refused(5, "fine-tuned to forecast", "--data", cohort, checkpoint=other)
    assert run("predict", "--checkpoint", models["classify"], "--out", tmp_path, "--t1n", image) == 2
    assert "name a .csv file" in capsys.readouterr().err


# --- evaluating -----------------------------------------------------------------------------------------------------


def evaluate(kind: str, model: Path, data: Path, out: Path, *more: object) -> int:
    return run("evaluate", kind, "--checkpoint", model, "--data", data, "--out", out, "--device", "cpu", *more)


@pytest.mark.parametrize(
    ("kind", "metrics"), [("classify", {"auc", "ap", "balanced_accuracy"}), ("survive", {"c_index"})]
)
def test_tables_by_subset(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys, kind: str, metrics) -> None:
    having = [bool({"t1c", "t2w"} <= set(case.images)) for case in open_cohort(cohort).cases]
    turn = [sum(having[:i]) % 2 for i in range(CASES)]  # both classes, and events, among those who have the subset
    columns = {
        "idh": [("mutant", "wildtype")[k] for k in turn],
        "os_days": [str(10 * i + 5) for i in range(CASES)],
        "os_event": [str(k) for k in turn],
    }
    cohort = retold(cohort, f"even-{kind}", columns, "idh: class, os_days: time, os_event: event")
    assert evaluate(kind, models[kind], cohort, tmp_path, "--subsets", "t1c+t2w,t1c", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {entry["metric"] for entry in printed["summary"]} == metrics
    assert {entry["given"] for entry in printed["summary"]} == {"t1c", "t1c+t2w", "all"}
    assert printed["about"]["cases"] == CASES
    assert printed["about"]["training_cases"] == 0
    assert set(printed["files"]) == {"predictions", "summary", "json", *metrics}
    cases = open_cohort(cohort).cases
    found = rows(tmp_path / "predictions.csv")
    assert sum(row["given"] == "t1c+t2w" for row in found) == sum({"t1c", "t2w"} <= set(c.images) for c in cases)
    for file in tmp_path.iterdir():
        assert b"synth_0" not in file.read_bytes()
    assert evaluate(kind, models[kind], cohort, tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_evaluations_that_cannot_be_made(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    from medmae.data.fingerprint import Fingerprints, case_files, case_hash

    out = tmp_path / "out"

    def refused(
        code: int, words: str, *more: object, kind: str = "classify", model: Path | None = None, data=cohort
    ) -> None:
        assert evaluate(kind, model or models[kind], data, out, *more) == code
        said = capsys.readouterr().err
        assert words in said, said
        assert not out.exists()

    refused(5, "it cannot survive", kind="survive", model=models["classify"])
    refused(2, "the model has no adc", "--subsets", "t1n+adc")
    refused(2, "--split", "--split", "dev")
    codes = [case_hash(case_files(case, Fingerprints(None))) for case in open_cohort(cohort).cases]
    known = untrained(tmp_path / "known", "classify", subjects=codes[:6], validation_subjects=codes[6:])
    refused(3, "trained or chosen on all", model=known)
    refused(3, "were training cases of this model", "--split", "all", model=known)
    chosen = untrained(tmp_path / "chosen", "classify", validation_subjects=codes)
    assert evaluate("classify", chosen, cohort, tmp_path / "flattered", "--split", "all") == 0
    about = json.loads((tmp_path / "flattered" / "summary.json").read_text())["about"]
    assert (about["training_cases"], about["validation_cases"]) == (0, CASES)
    other = retold(cohort, "other", {"idh": ["mutant", "unsure"] * 6}, "idh: class")
    refused(3, "the class unsure; the model knows mutant, wildtype", data=other)
    alike = retold(cohort, "alike", {"idh": ["mutant"] * 12}, "idh: class")
    refused(3, "nothing to tell apart", data=alike)
    columns = {"os_days": ["5"] * CASES, "os_event": ["0"] * CASES}
    never = retold(cohort, "never", columns, "os_days: time, os_event: event")
    refused(3, "are censored", kind="survive", data=never)


# --- end to end -----------------------------------------------------------------------------------------------------


def test_frozen_from_a_checkpoint_and_resumed(cohort: Path, start: Path, cache: Path, tmp_path: Path, capsys) -> None:
    line = ("--checkpoint", start, "--cache", cache, "--schedule", "frozen", "--folds", 2, "--fold", 1, "--patience", 0)
    assert classify(cohort, tmp_path / "whole", *line, "--steps", 6) == 0
    model = load_task(tmp_path / "whole")
    encoder = load_model(start).method.encoder.state_dict()
    assert all(torch.equal(encoder[name], value) for name, value in model.method.backbone.encoder.state_dict().items())
    assert model.task["folds"] == {"count": 2, "held_out": 1, "seed": 0}
    assert model.task["pretrained"]["weights"].startswith("sha256:")
    assert len(model.data["subjects"]) + len(model.data["validation_subjects"]) < CASES
    assert classify(cohort, tmp_path / "whole", *line, "--steps", 6) == 2
    assert "finished run" in capsys.readouterr().err
    other = ("--seed", 1, *line)
    assert classify(cohort, tmp_path / "whole", *other, "--steps", 8, "--resume") == 2
    assert "not the run" in capsys.readouterr().err


class Interrupt(KeyboardInterrupt):
    """Somebody pulled the plug."""


def test_a_resumed_run_is_the_run(cohort: Path, start: Path, cache: Path, tmp_path: Path, monkeypatch) -> None:
    line = ("--checkpoint", start, "--cache", cache, "--steps", 8, "--schedule", "sawtooth", "--set",
            "train.checkpoint_every=3", "--set", "train.validate_every=4", "--set", "train.ema=0.9")  # fmt: skip
    assert classify(cohort, tmp_path / "whole", *line) == 0
    done = iter(range(1, 99))

    def after_step(self: object) -> None:
        if next(done) == 5:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr("medmae.transfer.finetuned.Finetuned.after_step", after_step, raising=False)
        assert classify(cohort, tmp_path / "parts", *line) == 130
    assert not (tmp_path / "parts" / "DONE").exists()
    assert classify(cohort, tmp_path / "parts", *line, "--resume") == 0
    one, other = (load_task(tmp_path / name).method.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_fitted_to_outcomes_never_sees_the_held_out(
    cohort: Path, start: Path, cache: Path, tmp_path: Path
) -> None:
    line = ("--checkpoint", start, "--cache", cache, "--folds", 2, "--steps", 1, "--bins", 4)
    assert survive(cohort, tmp_path / "a", *line) == 0
    split = json.loads((tmp_path / "a" / "data" / "manifest.json").read_text())["split"]
    held = {*split["test"], *split["val"]}
    assert split["val"]
    columns: dict[str, list[str]] = {"os_days": [], "os_event": []}
    for case in open_cohort(cohort).cases:
        columns["os_days"].append(f"{case.table['os_days'] * (10 if case.key in held else 1):g}")
        columns["os_event"].append(f"{case.table['os_event']:g}")
    other = retold(cohort, "later", columns, "os_days: time, os_event: event")
    assert survive(other, tmp_path / "b", *line) == 0
    one, two = (load_task(tmp_path / name).task["recipe"]["objective"] for name in "ab")
    assert one == two
    assert len(one["edges"]) <= 4


def test_a_broken_case_writes_nothing(cohort: Path, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cohort.parent, copy)
    case = open_cohort(copy / "spec.yaml").cases[2]
    next(iter(case.images.values())).write_bytes(b"nothing")
    line = ("--data", copy / "spec.yaml", "--checkpoint", models["classify"], "--device", "cpu")
    assert run("predict", *line, "--out", tmp_path / "out.csv") == 3
    assert f"1 of {CASES} case(s) cannot be predicted, nothing was written" in capsys.readouterr().err
    assert run("evaluate", "classify", *line, "--out", tmp_path / "out") == 3
    assert f"1 of {CASES}" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_a_table_to_a_table(cohort: Path, start: Path, cache: Path, tmp_path: Path) -> None:
    same = ("--checkpoint", start, "--cache", cache, "--folds", 2, "--steps", 12, "--batch", 4)
    assert classify(cohort, tmp_path / "a", *same, "--schedule", "warmup", "--layer-decay", 0.8) == 0
    assert classify(cohort, tmp_path / "b", *same, "--from-scratch") == 0
    a, b = (json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in "ab")
    assert a["data"] == b["data"]  # the same cases, split and preprocessing
    assert b["task"]["pretrained"] is None
    assert evaluate("classify", tmp_path / "a", cohort, tmp_path / "test", "--subsets", "all") == 0
    summary = json.loads((tmp_path / "test" / "summary.json").read_text())
    assert summary["about"]["cases"] == CASES // 2  # one of two folds was held out
    assert "all" in {entry["given"] for entry in summary["summary"]}
    assert survive(cohort, tmp_path / "c", *same, "--schedule", "sawtooth", "--head", "attentive") == 0
    assert evaluate("survive", tmp_path / "c", cohort, tmp_path / "test-c") == 0
    assert survive(cohort, tmp_path / "d", *same, "--loss", "cox", "--head", "mlp", "--pool", "cls") == 0
    assert run("predict", "--checkpoint", tmp_path / "d", "--data", cohort, "--out", tmp_path / "d.csv") == 0
    assert list(rows(tmp_path / "d.csv")[0]) == ["case", "given", "risk"]
    assert run("info", tmp_path / "d") == 0
    fresh = ("--from-scratch", "--method", "simclr", "--scale", "test", "--steps", 2, "--cache", cache)
    assert classify(cohort, tmp_path / "e", *fresh, "--modality-dropout", 0.5) == 0
    assert json.loads((tmp_path / "e" / "model" / "config.json").read_text())["recipe"]["size"] == [16, 16, 16]
