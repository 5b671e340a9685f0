"""Probes through the command line: cohorts, toys and folders, another model beside it, and everything refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medmae.checkpoint import load_model, save_model
from medmae.cli import main
from medmae.cli.feature_encoder import open_data, open_encoder
from medmae.cli.feature_sets import feature_set
from medmae.cli.pretrain_probe import measured
from medmae.data.cohort import open_cohort
from medmae.data.fingerprint import Fingerprints, case_files, case_hash
from medmae.data.synthetic.cohort import synthesize
from medmae.find import find

CASES = 12
PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cohort"), cases=CASES, spacing=8.0, seed=3, missing=0.2, workers=0)


def save(folder: Path, name: str, *, seed: int = 1, **data: object) -> Path:
    found = find(name)
    recipe = found.recipe(scale="test")
    torch.manual_seed(seed)
    own = {"kind": found.card.kind} if found.card.kind != "volume" else {"preprocess": PREPROCESS}
    return save_model(folder, found.build(**recipe), name=name, recipe=recipe, about={"data": {**own, **data}})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save(folder / f"my-{name}", name) for name in ("bm_mae", "simclr", "mae", "point_mae")}


def call(checkpoint: Path, data: object, out: Path, *more: object) -> int:
    line = ["probe", "--checkpoint", checkpoint, "--data", data, "--out", out, "--quiet", *more]
    return main([str(word) for word in line])


@pytest.mark.slow
def test_classes_of_a_cohort_next_to_other_weights(cohort: Path, models, tmp_path: Path, capsys) -> None:
    against = ("--against", "random", "--against", models["simclr"])
    assert call(models["bm_mae"], cohort, tmp_path / "out", "--target", "idh", "--folds", 3, *against) == 0
    shown = capsys.readouterr().out
    assert "balanced_accuracy" in shown
    assert "gain over" in shown
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    names = ["bm_mae (my-bm_mae)", "random", "simclr (my-simclr)"]
    assert [model["name"] for model in summary["about"]["models"]] == names
    assert summary["about"]["models"][1]["weights"] == "untrained"
    assert 1 <= summary["about"]["models"][0]["spread"]["rank"] < CASES
    rows = [row for row in summary["summary"] if row["metric"] == "auc" and row["probe"] == "linear"]
    assert [row["model"] for row in rows] == names
    assert "gain" not in rows[0]
    assert rows[1]["gain"]["mean"] == pytest.approx(rows[0]["mean"] - rows[1]["mean"])
    table = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert len(table) == len(summary["summary"])
    cases = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(cases) == CASES * 3 * 2
    for row in cases:
        assert sum(float(v) for k, v in row.items() if k.startswith("probability_")) == pytest.approx(1)
    for file in (tmp_path / "out").iterdir():
        assert b"synth_0" not in file.read_bytes()
    assert call(models["bm_mae"], cohort, tmp_path / "out", "--target", "idh") == 2
    assert "--overwrite" in capsys.readouterr().err
    line = ("--target", "idh", "--folds", 3, "--overwrite", "--identify", "--kind", "knn", "--json", "--region")
    assert call(models["bm_mae"], cohort, tmp_path / "out", *line, "whole_tumor") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["about"]["region"] == "whole_tumor"
    assert {row["probe"] for row in told["summary"]} == {"knn"}
    assert "synth_0" in (tmp_path / "out" / "predictions.csv").read_text()


def test_numbers_survival_and_subsets(cohort: Path, models, tmp_path: Path, capsys) -> None:
    assert call(models["bm_mae"], cohort, tmp_path / "a", "--target", "age", "--folds", 2) == 0
    assert "spearman" in capsys.readouterr().out
    survival = ("--time", "os_days", "--event", "os_event", "--folds", 2)
    assert call(models["bm_mae"], cohort, tmp_path / "b", *survival, "--subsets", "t1n,t2w") == 0
    assert "c_index" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "b" / "summary.csv").open()))
    assert [row["given"] for row in rows] == ["t1n", "t2w"]
    lines = list(csv.DictReader((tmp_path / "b" / "predictions.csv").open()))
    cases = open_cohort(cohort).cases
    assert sum(line["given"] == "t1n" for line in lines) == sum("t1n" in case.images for case in cases)
    assert {"true_time", "true_event", "risk"} <= set(lines[0])


def test_what_the_model_was_trained_on_is_held_out(cohort: Path, models, tmp_path: Path, capsys) -> None:
    cases = open_cohort(cohort).cases
    seen = [case_hash(case_files(case, Fingerprints(None))) for case in cases[:2]]
    known = save(tmp_path / "known" / "model", "simclr", subjects=seen[:1], validation_subjects=seen[1:])
    line = (models["bm_mae"], cohort, tmp_path / "out", "--against", known, "--target", "idh", "--folds", 2)
    assert call(*line, "--kind", "knn") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["about"]["cases"] == CASES - 2
    assert call(*line, "--overwrite", "--split", "all") == 3
    assert "1 of 12 case(s) to be tested were in pre-training" in capsys.readouterr().err
    assert call(*line, "--overwrite", "--split", "all", "--allow-leakage", "--kind", "knn") == 0
    about = json.loads((tmp_path / "out" / "summary.json").read_text())["about"]
    assert (about["training_cases"], about["validation_cases"]) == (1, 1)
    every = [case_hash(case_files(case, Fingerprints(None))) for case in cases]
    greedy = save(tmp_path / "greedy" / "model", "simclr", subjects=every)
    assert call(greedy, cohort, tmp_path / "none", "--target", "idh") == 3
    assert "--folds 0" in capsys.readouterr().err


def test_images_learn_from_one_part_and_are_tested_on_the_other(models, tmp_path: Path, capsys) -> None:
    assert call(models["mae"], "toy-image:60", tmp_path / "out", "--against", "random") == 0
    assert "accuracy" in capsys.readouterr().out
    encoder = open_encoder(models["mae"], device="cpu")
    parts = open_data("toy-image:60", encoder).parts
    about = json.loads((tmp_path / "out" / "summary.json").read_text())["about"]
    assert about["split"] == "learned from train, tested on test"
    assert main(["compare", str(tmp_path / "out"), str(tmp_path), "--out", str(tmp_path / "both")]) == 2
    assert "is of 'medmae probe'" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 4 * sum(part == "test" for part in parts.values())
    assert call(models["mae"], "toy-image:60", tmp_path / "folds", "--folds", 3, "--kind", "knn", "--cases", 40) == 0
    rows = list(csv.DictReader((tmp_path / "folds" / "predictions.csv").open()))
    assert {row["fold"] for row in rows} == {"0", "1", "2"}
    assert len(rows) == 40


def test_samples_that_are_skipped_are_skipped_for_every_model(models, tmp_path: Path, capsys) -> None:
    """A link that leads nowhere, and an array that only one of the two models can read."""
    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            np.save(tmp_path / "data" / label / f"{i}.npy", draw.integers(0, 255, (40, 40, 3)).astype(np.uint8))
    (tmp_path / "data" / "a" / "gone.npy").symlink_to(tmp_path / "nowhere.npy")
    np.save(tmp_path / "data" / "b" / "wide.npy", np.zeros((40, 40, 6), np.float32))
    (tmp_path / "spec.yaml").write_text("kind: image\nroot: data\non_error: skip\n")
    other = save(tmp_path / "other", "satmae")
    line = ("--against", models["mae"], "--folds", 2, "--split", "all", "--kind", "knn")
    assert call(other, tmp_path / "spec.yaml", tmp_path / "out", *line) == 3
    assert "18 of 18 sample(s) left aside" in capsys.readouterr().err
    fine = save(tmp_path / "fine", "fcmae")
    words = ["probe", "--checkpoint", fine, "--data", tmp_path / "spec.yaml", "--out", tmp_path / "two", *line]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().err
    assert "2 of 18 sample(s) left aside" in said
    assert "gone.npy: a link to what is not there" in said
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["about"]["cases"] == 16


def test_models_that_see_different_cases_are_not_compared(models, tmp_path: Path, capsys, monkeypatch) -> None:
    from dataclasses import replace

    from medmae.cli import feature_sets

    whole = feature_sets.feature_set

    def some(encoder, items, **options):
        kept = items.cases if encoder.weights != "untrained" else items.cases[:-1]
        return whole(encoder, replace(items, cases=kept), **options)

    monkeypatch.setattr(feature_sets, "feature_set", some)
    assert call(models["mae"], "toy-image:30", tmp_path / "out", "--against", "random") == 3
    assert "give features of different cases (29 and 30 of 30)" in capsys.readouterr().err


def test_clouds_of_points_have_features_too(models) -> None:
    encoder = open_encoder(models["point_mae"], device="cpu")
    found = feature_set(encoder, open_data("toy-points:6", encoder), batch=4)
    assert found.values.shape == (6, encoder.backbone.width)
    again = feature_set(encoder, open_data("toy-points:6", encoder), batch=1)
    np.testing.assert_allclose(found.values, again.values, atol=1e-4)
    assert found.labels == again.labels
    assert len(set(found.labels)) > 1


def test_what_cannot_be_meant_is_refused(cohort: Path, models, tmp_path: Path, capsys) -> None:
    model, out = models["bm_mae"], tmp_path / "out"

    def refused(code: int, *more: object, words: str, data: object = cohort, checkpoint: Path = model) -> None:
        assert call(checkpoint, data, out, *more) == code, more
        said = capsys.readouterr().err
        assert words in said, said
        assert not out.exists()

    refused(3, "--target", "grade", words="no column 'grade'")
    refused(2, words="give --target")
    refused(2, "--time", "os_days", words="--time and --event together")
    refused(2, "--target", "idh", "--kind", "forest", words="--kind must be one of")
    refused(2, "--target", "idh", "--folds", 1, words="--folds 1")
    refused(2, "--target", "idh", "--subsets", "flair9", words="--subsets")
    refused(2, "--target", "idh", "--region", "moon", words="whole_tumor")
    refused(2, "--target", "idh", "--pool", "max", words="--pool")
    refused(2, "--target", "idh", "--layer", 99, words="layer 99")
    refused(2, "--target", "idh", "--against", model, words="both be called")
    refused(2, "--target", "idh", "--against", models["mae"], words="reads volume data")
    refused(2, "--time", "os_days", "--event", "os_event", "--kind", "knn", words="neighbors cannot tell survival")
    refused(5, "--target", "idh", checkpoint=tmp_path / "nothing", words="nothing")
    refused(2, "--target", "shape", data="toy-sound", checkpoint=models["mae"], words="toy-image")
    refused(3, "--target", "shape", data="toy-image:20", checkpoint=models["mae"], words="no column 'shape'")
    refused(2, "--subsets", "t1n", data="toy-image:20", checkpoint=models["mae"], words="no sequences to leave out")


def retold(cohort: Path, name: str, columns: str, lines: list[str]) -> Path:
    """The spec with another table."""
    keys = [case.key for case in open_cohort(cohort).cases]
    head = ",".join(["case", *(c.split(":")[0] for c in columns.split(", "))])
    body = [f"{key},{line}" for key, line in zip(keys, lines, strict=True)]
    (cohort.parent / f"{name}.csv").write_text("\n".join([head, *body]) + "\n")
    text = cohort.read_text()
    start, end = text.index("table:"), text.index("geometry:")
    path = cohort.parent / f"{name}.yaml"
    table = f"table:\n  file: {name}.csv\n  key: case\n  columns: {{{columns}}}\n"
    path.write_text(text[:start] + table + text[end:])
    return path


def test_tables_that_nothing_can_be_learned_from(cohort: Path, models, tmp_path: Path, capsys) -> None:
    def refused(data: Path, *more: object, words: str) -> None:
        assert call(models["simclr"], data, tmp_path / "out", *more) == 3
        said = capsys.readouterr().err
        assert words in said, said
        assert not (tmp_path / "out").exists()

    one = retold(cohort, "one", "grade: class", ["high"] * CASES)
    refused(one, "--target", "grade", words="all 12 case(s) have the class 'high'")
    gone = retold(cohort, "gone", "days: time, dead: event", [f"{i + 1},0" for i in range(CASES)])
    refused(gone, "--time", "days", "--event", "dead", words="censored")
    odd = retold(cohort, "odd", "size: number", ["inf", *[str(i) for i in range(CASES - 1)]])
    refused(odd, "--target", "size", words="'inf' is no number")
    none = retold(cohort, "none", "size: number", ["nan"] * CASES)
    refused(none, "--target", "size", words="none of 12 case(s) has a value")
    flat = retold(cohort, "flat", "size: number", ["3"] * CASES)
    refused(flat, "--target", "size", words="nothing to tell apart")
    doubled = cohort.parent / "doubled.csv"
    doubled.write_text((cohort.parent / "flat.csv").read_text() + "synth_00001,4\n")
    twice = cohort.parent / "twice.yaml"
    twice.write_text((cohort.parent / "flat.yaml").read_text().replace("flat.csv", "doubled.csv"))
    refused(twice, "--target", "size", words="a second row")


def test_broken_weights_are_told(cohort: Path, models, tmp_path: Path, capsys) -> None:
    folder = save(tmp_path / "broken", "bm_mae")
    method = load_model(folder).method
    with torch.no_grad():
        next(p for n, p in method.named_parameters() if n.startswith("encoder")).fill_(torch.nan)
    recipe = find("bm_mae").recipe(scale="test")
    save_model(folder, method, name="bm_mae", recipe=recipe, about={"data": {"preprocess": PREPROCESS}})
    assert call(folder, cohort, tmp_path / "out", "--target", "idh") == 3
    assert "not finite for 12 of 12" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_probes_itself_and_tells_a_collapse(tmp_path: Path, capsys, monkeypatch) -> None:
    line = ["pretrain", "--method", "mae", "--scale", "test", "--data", "toy-image:40", "--out", str(tmp_path / "run")]
    more = ["--steps", "4", "--batch", "4", "--workers", "0", "--device", "cpu", "--set", "train.probe_every=2"]
    assert main([*line, *more]) == 0
    said = capsys.readouterr().err
    assert "probe: rank" in said
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    probes = [row for row in rows if row["split"] == "probe"]
    assert [row["step"] for row in probes] == [2, 4]
    assert {"rank", "similarity", "dead", "knn_accuracy"} <= set(probes[0])
    plain = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert main([*line[:-1], str(tmp_path / "none"), *more[:-2]]) == 0
    others = [json.loads(row) for row in (tmp_path / "none" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["split"] != "probe" for row in others)
    losses = [row["loss"] for row in plain if row["split"] == "train"]
    assert losses == [row["loss"] for row in others if row["split"] == "train"]  # looking changes nothing

    from medmae.data.kinds import kind_of
    from medmae.data.kinds.listing import list_samples
    from medmae.data.kinds.source import SampleSource

    method = load_model(tmp_path / "run").method
    kind = kind_of("image", find("mae").recipe(scale="test"))
    source = SampleSource(list_samples("toy-image:40", kind="image"), kind, quiet=True)
    capsys.readouterr()
    assert measured(source, method, batch=4, seed=0)["rank"] > 1.5
    assert "collapsed" not in capsys.readouterr().err
    monkeypatch.setattr(
        "medmae.transfer.pooling.Features.pooled", lambda self, how="mean": torch.ones(len(self.values), 8)
    )
    assert measured(source, method, batch=4, seed=0)["rank"] == 0
    assert "the encoder has collapsed" in capsys.readouterr().err
    assert main([*line, "--overwrite", *more[:-1], "train.probe_every=-1"]) == 2
    assert "probe_every" in capsys.readouterr().err
