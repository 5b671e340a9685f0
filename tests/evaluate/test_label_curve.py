"""Label curves of features whose worth is known."""

from __future__ import annotations

import csv
import io
import json
import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medmae.core.errors import DataError, UsageError
from medmae.evaluate import label_curve as module
from medmae.evaluate.label_curve import assign_folds, label_curve
from medmae.evaluate.label_table import curve_json, measurements_csv, points_csv, text, verdict, write

N = 60


def cohort(n: int = N, *, classes: int = 2) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """Labels, subjects, and three kinds of features: telling, half telling, and noise."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(n) % classes)
    signal = np.eye(classes)[truth]
    features = {
        "telling": np.c_[signal + 0.3 * rng.normal(size=signal.shape), rng.normal(size=(n, 6))],
        "half": np.c_[signal + 1.2 * rng.normal(size=signal.shape), rng.normal(size=(n, 6))],
        "noise": rng.normal(size=(n, 8)),
    }
    return [f"class {k}" for k in truth], [f"s{i}" for i in range(n)], features


@pytest.mark.parametrize("classes", [2, 3])
def test_better_features_have_better_curves(classes: int) -> None:
    labels, subjects, features = cohort(classes=classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = label_curve(features, labels, subjects, fractions=(0.1, 0.5, 1.0), draws=4, replicates=200)
    at = {(p.model, p.fraction, p.metric): p for p in curve.points}
    assert curve.folds == 5
    for metric in ("auc", "balanced_accuracy"):
        values = {name: [at[name, f, metric].interval.mean for f in (0.1, 0.5, 1.0)] for name in features}
        assert values["telling"][2] > 0.9
        assert values["telling"][2] > values["telling"][0]  # and labels help
        assert values["telling"][2] > values["half"][2] > values["noise"][2]
    assert abs(at["noise", 1.0, "auc"].interval.mean - 0.5) < 0.15
    assert [at["half", f, "auc"].labeled for f in (0.5, 1.0)] == [pytest.approx(24, abs=1), pytest.approx(48)]
    gain = at["noise", 1.0, "auc"].gain
    assert gain is not None
    assert gain.mean == pytest.approx(at["telling", 1.0, "auc"].interval.mean - at["noise", 1.0, "auc"].interval.mean)
    assert gain.low > 0
    assert verdict(curve)["noise"]["1"] == "better"
    interval = at["half", 1.0, "auc"].interval
    assert interval.low < interval.mean < interval.high


def test_the_numbers_are_those_of_scikit_learn() -> None:
    labels, subjects, features = cohort()
    curve = label_curve({"half": features["half"]}, labels, subjects, fractions=(1.0,), replicates=50)
    truth = np.array([int(label[-1]) for label in labels])
    fold = assign_folds(truth, subjects, classes=curve.classes, folds=5, seed=0)
    chosen = module._labeled(truth, subjects, fold, share=1.0, draws=1, seed=0)
    scores = module._predict(features["half"], truth, fold, chosen[0], classes=2)
    aucs = [roc_auc_score(truth[fold == f], scores[fold == f, 1]) for f in range(5)]
    at = {p.metric: p.interval.mean for p in curve.points}
    assert at["auc"] == pytest.approx(np.mean(aucs))
    assert at["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, scores.argmax(1)))
    assert [row.auc for row in curve.measurements] == pytest.approx(aucs)
    inside = balanced_accuracy_score(truth[fold == 0], scores[fold == 0].argmax(1))
    assert curve.measurements[0].balanced_accuracy == pytest.approx(inside)


def test_ties_count_half_and_weights_are_copies() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (12, 1)) / 4
    scores = np.c_[1 - scores, scores]
    truth, times = np.arange(12) % 2, rng.integers(0, 3, 12)
    found = module._auc(scores, truth, np.ones(12, bool), np.stack([np.ones(12), times.astype(float)]))
    assert found[0] == pytest.approx(roc_auc_score(truth, scores[:, 1]))
    assert found[1] == pytest.approx(roc_auc_score(np.repeat(truth, times), np.repeat(scores[:, 1], times)))


def test_folds_keep_subjects_together_and_do_not_depend_on_the_order() -> None:
    truth = np.repeat(np.arange(20) % 2, 2)
    subjects = [f"s{i // 2}" for i in range(40)]
    fold = assign_folds(truth, subjects, classes=("a", "b"), folds=5, seed=3)
    assert all(fold[2 * i] == fold[2 * i + 1] for i in range(20))
    assert np.bincount(fold).tolist() == [8] * 5
    for f in range(5):
        assert set(truth[fold == f]) == {0, 1}
    order = np.random.default_rng(0).permutation(40)
    again = assign_folds(truth[order], [subjects[i] for i in order], classes=("a", "b"), folds=5, seed=3)
    assert np.array_equal(again, fold[order])
    assert not np.array_equal(assign_folds(truth, subjects, classes=("a", "b"), folds=5, seed=4), fold)


def test_labels_are_drawn_inside_the_training_folds_and_grow() -> None:
    labels, subjects, _ = cohort()
    truth = np.array([int(label[-1]) for label in labels])
    fold = assign_folds(truth, subjects, classes=("0", "1"), folds=5, seed=0)
    drawn = {p: module._labeled(truth, subjects, fold, share=p, draws=3, seed=0) for p in (0.01, 0.25, 0.5, 1.0)}
    for share, chosen in drawn.items():
        for f in range(5):
            assert not chosen[:, f, fold == f].any()
            per_class = [chosen[:, f, truth == c].sum(1).tolist() for c in (0, 1)]
            assert per_class == [[max(1, round(share * 24))] * 3] * 2
    for small, large in ((0.01, 0.25), (0.25, 0.5), (0.5, 1.0)):
        assert not (drawn[small] & ~drawn[large]).any()
    assert not np.array_equal(drawn[0.25][0], drawn[0.25][1])


def test_the_same_seed_gives_the_same_table_whatever_else_is_measured() -> None:
    labels, subjects, features = cohort()
    options = {"fractions": (0.2, 1.0), "draws": 3, "replicates": 50}
    both = label_curve(features, labels, subjects, **options)
    one = label_curve({"half": features["half"]}, labels, subjects, **options)
    assert [m for m in both.measurements if m.model == "half"] == list(one.measurements)
    mine = [p.interval for p in both.points if p.model == "half"]
    assert mine == [p.interval for p in one.points]
    other = label_curve({"half": features["half"]}, labels, subjects, seed=1, **options)
    assert other.measurements != one.measurements


def test_what_cannot_be_told_apart_is_said() -> None:
    labels, subjects, features = cohort()
    with pytest.raises(DataError, match="nothing to tell apart"):
        label_curve(features, ["a"] * N, subjects, fractions=(1.0,))
    with pytest.raises(DataError, match=r"too few subjects of class b \(1\)"):
        label_curve(features, ["b"] + ["a"] * (N - 1), subjects, fractions=(1.0,))
    with pytest.raises(DataError, match=r"too few subjects of class b \(1\)"):
        label_curve(features, ["b"] * 3 + ["a"] * (N - 3), ["one"] * 3 + subjects[3:], fractions=(1.0,))
    rare = label_curve(
        {"half": features["half"]}, ["b"] * 3 + ["a"] * (N - 3), subjects, fractions=(1.0,), replicates=20
    )
    assert rare.folds == 3
    broken = features["half"].copy()
    broken[4, 1] = np.nan
    with pytest.raises(DataError, match="not finite for 1 of 60"):
        label_curve({"half": broken}, labels, subjects, fractions=(1.0,))
    for fractions in ((), (0.0,), (1.5,)):
        with pytest.raises(UsageError, match="fractions"):
            label_curve(features, labels, subjects, fractions=fractions)
    with pytest.raises(UsageError, match="folds"):
        label_curve(features, labels, subjects, fractions=(1.0,), folds=1)


def test_features_that_never_vary_are_worth_nothing() -> None:
    labels, subjects, _ = cohort()
    curve = label_curve({"flat": np.ones((N, 3))}, labels, subjects, fractions=(0.5,), draws=2, replicates=20)
    assert all(p.interval.mean == pytest.approx(0.5) for p in curve.points)


def test_the_files_say_what_was_measured(tmp_path) -> None:
    labels, subjects, features = cohort()
    named = {"=telling": features["telling"], "noise": features["noise"]}
    curve = label_curve(named, labels, subjects, fractions=(0.25, 1.0), draws=2, replicates=20)
    rows = list(csv.DictReader(io.StringIO(measurements_csv(curve.measurements))))
    assert len(rows) == 2 * (2 + 1) * 5
    assert {row["model"] for row in rows} == {"'=telling", "noise"}
    summary = list(csv.DictReader(io.StringIO(points_csv(curve.points))))
    assert len(summary) == 2 * 2 * 2
    assert summary[0]["gain"] == ""
    told = curve_json(curve, {"target": "idh"})
    assert told["about"] == {"folds": 5, "classes": ["class 0", "class 1"], "target": "idh"}
    assert told["verdict"]["noise"]["1"] == "better"
    table = text(curve)
    assert table.splitlines()[0].split()[:2] == ["AUC", "25"]
    assert len(table.splitlines()) == 3
    files = write(tmp_path, curve, about={}, title="a $title")
    assert json.loads(files["json"].read_text())["summary"][0]["model"] == "=telling"
    assert files["curve"].read_bytes().startswith(b"\x89PNG")
