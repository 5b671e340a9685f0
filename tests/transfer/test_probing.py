"""Probes on vectors: they find what is there, nothing that is not, and see nobody they are tested on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error, r2_score, roc_auc_score
from sksurv.linear_model import CoxPHSurvivalAnalysis

from medmae.core.errors import DataError, UsageError
from medmae.evaluate.probe_scores import class_scores, pairs_in_order, value_scores
from medmae.transfer.objectives import partial_likelihood
from medmae.transfer.probe_tasks import _efron, cox_weights
from medmae.transfer.probing import cox_probe, knn_probe, linear_probe, ridge_probe

N = 90


def data(seed: int = 0, classes: int = 3, signal: float = 3.0):
    rng = np.random.default_rng(seed)
    truth = np.arange(N) % classes
    x = rng.normal(size=(N, 12)).astype(np.float32) + 50  # a large common mean, as features have
    x[np.arange(N), truth] += signal
    return x, [f"c{k}" for k in truth], [f"s{i // (2 * classes)}-{i % classes}" for i in range(N)]


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_classes_are_found_where_they_are_and_nowhere_else(probe) -> None:
    x, labels, groups = data()
    found = probe(x, labels, groups)
    assert found.scores["auc"].mean > 0.9
    assert found.scores["accuracy"].low > 0.6
    assert found.prediction.shape == (N, 3)
    np.testing.assert_allclose(found.prediction.sum(1), 1, atol=1e-6)
    noise, labels, groups = data(signal=0.0)
    assert abs(probe(noise, labels, groups).scores["auc"].mean - 0.5) < 0.15


def test_patients_are_on_one_side_and_every_case_is_tested_once() -> None:
    x, labels, groups = data()
    found = linear_probe(x, labels, groups, folds=4)
    assert found.tested.all()
    assert set(found.fold.tolist()) == {0, 1, 2, 3}
    assert all(len({f for f, g in zip(found.fold, groups, strict=True) if g == name}) == 1 for name in groups)
    # A vector per patient and a class drawn per patient: whoever learned from the patient would know it.
    rng = np.random.default_rng(1)
    own = {name: (rng.normal(size=12).astype(np.float32), f"c{k % 2}") for k, name in enumerate(sorted(set(groups)))}
    x = np.stack([own[name][0] for name in groups])
    labels = [own[name][1] for name in groups]
    assert knn_probe(x, labels, groups, k=1).scores["auc"].mean < 0.75
    assert knn_probe(x, labels, [str(i) for i in range(N)], k=1).scores["auc"].mean > 0.9


def test_what_is_tested_does_not_change_what_is_learned() -> None:
    x, labels, groups = data()
    parts = ["test" if i % 5 == 0 else "train" for i in range(N)]
    before = linear_probe(x, labels, groups, parts=parts)
    moved = x.copy()
    moved[5] *= 1e3  # a test case; the others must not notice
    after = linear_probe(moved, labels, groups, parts=parts)
    others = [i for i in range(N) if parts[i] == "test" and i != 5]
    assert np.array_equal(before.prediction[others], after.prediction[others])
    assert not np.array_equal(before.prediction[5], after.prediction[5])
    assert np.isnan(before.prediction[1]).all()
    assert before.tested.sum() == sum(p == "test" for p in parts)
    validated = linear_probe(x, labels, groups, parts=["val" if i % 5 == 1 else p for i, p in enumerate(parts)])
    assert validated.tested.sum() == before.tested.sum()
    with pytest.raises(DataError, match="a probe needs both"):
        linear_probe(x, labels, groups, parts=["train"] * N)


def test_a_constant_dimension_and_other_units_change_nothing() -> None:
    x, labels, groups = data()
    plain = linear_probe(x, labels, groups)
    scaled = linear_probe(x * 1000, labels, groups)
    np.testing.assert_allclose(plain.prediction, scaled.prediction, atol=1e-3)
    dead = linear_probe(np.c_[x, np.full(N, 7.0, np.float32)], labels, groups)
    assert np.isfinite(dead.prediction).all()


def test_numbers_and_survival_are_found() -> None:
    x, _, groups = data()
    rng = np.random.default_rng(2)
    value = x[:, 0].astype(np.float64) * 2 + rng.normal(size=N)
    found = ridge_probe(x, value, groups)
    assert found.metric == "r2"
    assert found.scores["r2"].mean > 0.7
    assert found.scores["spearman"].mean > 0.8
    assert knn_probe(x, value, groups).scores["r2"].mean > 0.2
    assert ridge_probe(x, rng.normal(size=N), groups).scores["r2"].mean < 0.1
    event = rng.random(N) < 0.7
    time = np.round(np.exp(3 - 0.8 * (x[:, 0] - 50)) + 1)
    risks = cox_probe(x, time, event, groups)
    assert risks.scores["c_index"].mean > 0.8
    assert cox_probe(x, time, np.ones(N, bool), groups).scores["c_index"].mean > 0.8


def test_the_cox_fit_is_the_loss_of_training_and_the_solution_of_a_survival_library() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    time, event = np.round(rng.exponential(np.exp(-x[:, 0])) * 5) + 1, rng.random(60) < 0.7
    w = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    mine = _efron(x, time, event)(w)
    score = torch.from_numpy(x) @ w
    theirs = partial_likelihood(score.float(), torch.from_numpy(time).float(), torch.from_numpy(event))
    assert float(mine) / event.sum() == pytest.approx(float(theirs), rel=1e-5)
    outcome = np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])
    oracle = CoxPHSurvivalAnalysis(alpha=0.5, ties="efron").fit(x, outcome)
    np.testing.assert_allclose(cox_weights(x, time, event, strength=2.0), oracle.coef_, atol=2e-3)
    far = cox_weights(x * 1e3, time, event, strength=1000.0)
    assert np.isfinite(far).all()


def test_measures_are_those_of_a_library_and_pairs_stay_inside_folds() -> None:
    rng = np.random.default_rng(0)
    truth, probability = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40)
    once, fold = np.ones((1, 40)), np.zeros(40, dtype=np.int64)
    found = {k: float(v[0]) for k, v in class_scores(probability, truth, fold)(once).items()}
    assert found["auc"] == pytest.approx(roc_auc_score(truth, probability, multi_class="ovr"))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, probability.argmax(1)))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probability.argmax(1)))
    guess, value = rng.normal(size=40), rng.normal(size=40)
    values = {k: float(v[0]) for k, v in value_scores(guess, value)(once).items()}
    assert values["r2"] == pytest.approx(r2_score(value, guess))
    assert values["mae"] == pytest.approx(mean_absolute_error(value, guess))
    # Two classifiers, each perfect, on scales of their own.
    score, positive = np.array([1.0, 2.0, 11.0, 12.0]), np.array([False, True, False, True])
    two = np.stack([-score, score], 1)
    apart = class_scores(two, positive.astype(np.int64), np.array([0, 0, 1, 1]))(np.ones((1, 4)))
    assert float(apart["auc"][0]) == 1.0
    together = class_scores(two, positive.astype(np.int64), np.zeros(4, np.int64))(np.ones((1, 4)))
    assert float(together["auc"][0]) == 0.75
    tied = pairs_in_order(np.array([1.0, 1.0, 2.0]), np.array([True, False, True]), np.array([[1.0, 2.0, 1.0]]))
    assert [float(v[0]) for v in tied] == [3.0, 4.0]


def test_two_sets_of_features_are_compared_on_the_same_patients() -> None:
    x, labels, groups = data()
    good, bad = linear_probe(x, labels, groups), linear_probe(data(signal=0.0)[0], labels, groups)
    gain = good.compare(bad)["auc"]
    assert gain.low > 0
    assert gain.mean == pytest.approx(good.scores["auc"].mean - bad.scores["auc"].mean)
    same = good.compare(good)["auc"]
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same cases"):
        good.compare(linear_probe(x, labels, groups, seed=1))


def test_one_case_of_a_class_gives_no_interval() -> None:
    x, labels, groups = data(classes=2)
    parts = ["train"] * (N - 2) + ["test"] * 2
    groups = [f"s{i}" for i in range(N)]
    lone = linear_probe(x, labels, groups, parts=parts)
    assert all(math.isnan(i.low) and math.isnan(i.high) and i.cases == 2 for i in lone.scores.values())
    assert all(math.isnan(i.low) for i in lone.compare(lone).values())
    four = linear_probe(x, labels, groups, parts=["train"] * (N - 4) + ["test"] * 4)
    assert not any(math.isnan(i.low) for i in four.scores.values())


def test_subjects_may_show_several_classes() -> None:
    x, labels, _ = data()
    for groups in ([f"s{i // 3}" for i in range(N)], [f"s{i // 2}" for i in range(N)]):  # all three, two of three
        found = linear_probe(x, labels, groups)
        folds = {g: {f for h, f in zip(groups, found.fold.tolist(), strict=True) if h == g} for g in groups}
        assert all(len(own) == 1 for own in folds.values())
        assert found.fold.max() == 4
        assert found.scores["auc"].mean > 0.95
        assert np.isfinite(found.prediction).all()
    rare = ["a"] * N  # the second case of three subjects alone
    for i in (1, 31, 61):
        rare[i] = "b"
    found = linear_probe(x, rare, [f"s{i // 2}" for i in range(N)])
    assert len(set(found.fold[[1, 31, 61]].tolist())) == 3


def test_what_cannot_be_learned_from_is_refused() -> None:
    x, labels, groups = data()
    bad = x.copy()
    bad[3, 1] = np.nan
    with pytest.raises(DataError, match="1 of 90 case"):
        linear_probe(bad, labels, groups)
    with pytest.raises(DataError, match="all 90 case"):
        linear_probe(x, ["a"] * N, groups)
    with pytest.raises(DataError, match="not as many"):
        linear_probe(x, labels[1:], groups)
    with pytest.raises(DataError, match="too few subjects"):
        linear_probe(x, ["a", *["b"] * (N - 1)], groups)
    parts = ["train"] * 30 + ["test"] * (N - 30)
    for probe in (linear_probe, knn_probe):
        with pytest.raises(DataError, match="all 30 training case"):
            probe(x, ["a"] * 30 + ["a", "b"] * 30, groups, parts=parts)
    with pytest.raises(DataError, match="censored"):
        cox_probe(x, np.ones(N), np.zeros(N, bool), groups)
    with pytest.raises(DataError, match="nothing to tell apart"):
        ridge_probe(x, np.full(N, 2.0), groups)
    with pytest.raises(DataError, match="not finite"):
        ridge_probe(x, np.r_[np.nan, np.arange(N - 1.0)], groups)
    with pytest.raises(DataError, match="too few"):
        ridge_probe(x, np.arange(float(N)), ["one"] * N)
    with pytest.raises(UsageError, match="at least 2"):
        linear_probe(x, labels, groups, folds=1)
    with pytest.raises(UsageError, match="chosen by"):
        linear_probe(x, labels, groups, metric="loss")
