"""How many directions features use, and when they tell nothing apart."""

from __future__ import annotations

import numpy as np
import pytest

from medmae.evaluate.rank import collapsed, effective_rank, spread


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_the_rank_counts_directions_that_are_equally_strong() -> None:
    whole = np.linalg.qr(rows(64, 8).astype(np.float64))[0]  # orthonormal columns
    assert effective_rank(whole, centered=False) == pytest.approx(8)
    assert effective_rank(whole[:, :3], centered=False) == pytest.approx(3)
    assert effective_rank(whole * np.r_[1, 1, np.full(6, 1e-9)], centered=False) == pytest.approx(2, abs=1e-5)
    # shares 3/4 and 1/4: exp of their entropy
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(whole[:, :2] * np.array([3.0, 1.0]), centered=False) == pytest.approx(expected)


def test_a_common_mean_tells_nothing_apart() -> None:
    values = rows(50, 6) + 1000
    assert effective_rank(values) == pytest.approx(effective_rank(rows(50, 6)), rel=1e-3)
    assert effective_rank(values, centered=False) < 1.1
    assert effective_rank(np.full((5, 4), 3.3, np.float32)) == 0
    assert effective_rank(np.zeros((5, 4), np.float32)) == 0


def test_similarity_and_dead_dimensions_are_those_of_pairs_and_columns() -> None:
    values = rows(7, 5) + 1
    values[:, 2] = 0.7
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    alike = (unit @ unit.T)[~np.eye(7, dtype=bool)]
    found = spread(values)
    assert found.similarity == pytest.approx(float(alike.mean()), abs=1e-6)
    assert found.dead == pytest.approx(1 / 5)
    assert found.samples == 7


def test_a_collapse_is_told_and_its_absence_is_not() -> None:
    assert collapsed(spread(rows(40, 16))) is None
    large = rows(40, 16) + 45  # a common mean alone is no fault, however large
    assert spread(large).similarity > 0.999
    assert collapsed(spread(large)) is None
    same = np.repeat(rows(1, 16), 40, 0)
    assert "same for every sample" in (collapsed(spread(same)) or "")
    assert "same for every sample" in (collapsed(spread(same + 1e-3 * rows(40, 16, 1))) or "")
    line = np.linspace(-1, 1, 40, dtype=np.float32)[:, None] * rows(1, 16)
    assert "on one line" in (collapsed(spread(line)) or "")
    mostly = rows(40, 16)
    mostly[:, :12] = 0
    assert "never change" in (collapsed(spread(mostly)) or "")
    assert "same for every sample" in (collapsed(spread(np.zeros((4, 3), np.float32))) or "")


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        spread(rows(1, 4))
    bad = rows(4, 4)
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        spread(bad)
