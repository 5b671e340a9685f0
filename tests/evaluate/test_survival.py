"""Concordance next to a maintained survival library."""

from __future__ import annotations

import numpy as np
import pytest

from medmae.evaluate.survival import comparable, concordance, harrell


@pytest.mark.parametrize("seed", range(4))
def test_it_is_that_of_scikit_survival(seed: int) -> None:
    metrics = pytest.importorskip("sksurv.metrics")
    rng = np.random.default_rng(seed)
    time = rng.integers(1, 12, 60).astype(float)  # many ties
    event = rng.random(60) < 0.6
    risk = rng.integers(0, 9, 60).astype(float) - 0.5 * time * (seed % 2)
    expected = metrics.concordance_index_censored(event, time, risk)[0]
    assert harrell(risk, time, event) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    time, event = np.array([1.0, 2.0, 2.0, 3.0]), np.array([True, True, False, False])
    pairs = comparable(time, event)
    assert pairs.sum() == 5  # 1 before all others; the event at 2 before who outlived it
    assert harrell(np.array([4.0, 3.0, 2.0, 1.0]), time, event) == 1
    assert harrell(np.zeros(4), time, event) == 0.5
    assert np.isnan(harrell(np.zeros(4), time, np.zeros(4, bool)))


def test_weights_repeat_cases() -> None:
    rng = np.random.default_rng(0)
    time, event, risk = rng.random(12), rng.random(12) < 0.7, rng.random(12)
    times = rng.integers(0, 3, (5, 12))
    found = concordance(risk, comparable(time, event), times.astype(float))
    for row, counts in enumerate(times):
        index = np.repeat(np.arange(12), counts)
        assert found[row] == pytest.approx(harrell(risk[index], time[index], event[index]))
