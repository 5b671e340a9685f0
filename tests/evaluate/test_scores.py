"""Scores of table predictions next to scikit-learn, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from medmae.evaluate.scores import Scored, average_precision, class_measure, summarize, survival_measure


def predictions(classes: int, seed: int = 0, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    raw = np.round(rng.normal(size=(n, classes)) + np.eye(classes)[truth], 1)  # with ties
    probability = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    return probability, truth


@pytest.mark.parametrize("classes", [2, 3])
def test_they_are_those_of_scikit_learn(classes: int) -> None:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

    probability, truth = predictions(classes)
    weights = np.random.default_rng(1).integers(0, 3, (3, len(truth))).astype(float)
    found = class_measure(probability, truth)(weights)
    asked = [1] if classes == 2 else range(classes)
    for row, w in enumerate(weights):
        auc = np.mean([roc_auc_score(truth == c, probability[:, c], sample_weight=w) for c in asked])
        ap = np.mean([average_precision_score(truth == c, probability[:, c], sample_weight=w) for c in asked])
        assert found["auc"][row] == pytest.approx(auc)
        assert found["ap"][row] == pytest.approx(ap)
        balanced = balanced_accuracy_score(truth, probability.argmax(1), sample_weight=w)
        assert found["balanced_accuracy"][row] == pytest.approx(balanced)


def test_no_positive_is_no_score() -> None:
    none = np.zeros(3, bool)
    assert np.isnan(average_precision(np.arange(3.0), none, np.ones((1, 3)))[0])


def test_one_class_alone_cannot_be_measured() -> None:
    probability, truth = predictions(2)
    found = class_measure(probability[truth == 1], truth[truth == 1])(np.ones((1, int(truth.sum()))))
    assert all(np.isnan(values[0]) for values in found.values())


def test_subsets_share_draws_and_intervals_hold_the_value() -> None:
    probability, truth = predictions(2)
    subjects = [f"s{i // 2}" for i in range(40)]  # two cases each
    whole = Scored("t1n+t2w", np.arange(40), class_measure(probability, truth))
    half = Scored("t1n", np.arange(20), class_measure(probability[:20], truth[:20]))
    cells = summarize([half, whole], subjects, strata=truth.tolist(), target="idh", draws=200)
    found = {(c.subset, c.metric): c.interval for c in cells}
    assert {subset for subset, _ in found} == {"t1n", "t1n+t2w", "all"}
    for metric in ("auc", "ap", "balanced_accuracy"):
        parts = [found[name, metric] for name in ("t1n", "t1n+t2w")]
        assert found["all", metric].mean == pytest.approx(np.mean([p.mean for p in parts]))
        assert all(p.low <= p.mean <= p.high for p in parts)
        assert [p.cases for p in parts] == [20, 40]
    assert cells == summarize([half, whole], subjects, strata=truth.tolist(), target="idh", draws=200)
    alone = summarize([whole], subjects, strata=truth.tolist(), target="idh", draws=20)
    assert {c.subset for c in alone} == {"t1n+t2w"}


def test_what_cannot_be_measured_is_left_out() -> None:
    risk, time = np.arange(4.0), np.arange(4.0)
    part = Scored("t1n", np.arange(4), survival_measure(risk, time, np.zeros(4, bool)))
    assert summarize([part], list("abcd"), strata=[0] * 4, target="os", draws=5) == []
