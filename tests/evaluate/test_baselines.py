"""Baselines against scikit-learn on the pooled voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from medmae.evaluate.baselines import Baselines, Sums

NAMES = ("t1n", "t1c", "t2w", "t2f")
SIZE = (9, 8, 7)


def cohort(cases: int, *, missing: bool, scale: float = 1.0):
    rng = np.random.default_rng(1)
    result = []
    for i in range(cases):
        hidden = rng.normal(size=(3, *SIZE))
        images = {
            name: (scale * (np.tensordot(rng.normal(size=3), hidden, 1) + 0.2 * rng.normal(size=SIZE) + k)).astype(
                np.float32
            )
            for k, name in enumerate(NAMES)
        }
        if missing:
            images.pop(NAMES[i % 4])
        result.append((images, rng.random(SIZE) > 0.3))
    return result


def fitted(cases) -> Baselines:
    sums = Sums(NAMES)
    for images, foreground in cases:
        sums.add(images, foreground)
    return Baselines(sums)


def pooled(cases, names):
    rows = [np.stack([images[n][inside] for n in names], 1) for images, inside in cases if set(names) <= set(images)]
    return np.concatenate(rows).astype(np.float64)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_linear_is_scikit_learn_s_regression_for_every_subset(missing: bool, scale: float) -> None:
    cases = cohort(8, missing=missing, scale=scale)
    baselines = fitted(cases)
    checked = 0
    for target in NAMES:
        others = [n for n in NAMES if n != target]
        for k in (1, 2, 3):
            for given in itertools.combinations(others, k):
                if not any({*given, target} <= set(images) for images, _ in cases):
                    continue
                data = pooled(cases, (*given, target))
                oracle = LinearRegression().fit(data[:, :-1], data[:, -1])
                fit = baselines.fit("linear", given, target)
                assert fit.constant == pytest.approx(oracle.intercept_, rel=1e-6, abs=1e-6 * scale)
                np.testing.assert_allclose([fit.slopes[n] for n in given], oracle.coef_, rtol=1e-6, atol=1e-9)
                error = np.square(data[:, -1] - oracle.predict(data[:, :-1])).mean()
                assert fit.error == pytest.approx(error, rel=1e-6)
                checked += 1
    assert checked == (24 if missing else 28)


def test_best_single_is_the_one_with_the_smallest_error() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=SIZE).astype(np.float32)
    images = {
        "t1n": (target + 2 * rng.normal(size=SIZE)).astype(np.float32),
        "t2w": (5 - 3 * target + 0.1 * rng.normal(size=SIZE)).astype(np.float32),
        "t1c": target,
    }
    everywhere = np.ones(SIZE, bool)
    baselines = fitted([(images, everywhere)])
    given = {name: images[name] for name in ("t1n", "t2w")}
    assert list(baselines.fit("best single", tuple(given), "t1c").slopes) == ["t2w"]
    guesses = baselines.guess(given, "t1c")
    assert list(guesses) == ["mean", "best single", "linear"]
    errors = {name: float(np.square(guess - target).mean()) for name, guess in guesses.items()}
    assert errors["linear"] <= errors["best single"] < 0.01 < errors["mean"]
    np.testing.assert_allclose(guesses["mean"], target.mean(), rtol=1e-4, atol=1e-6)


def test_only_what_is_given_is_used_and_order_does_not_matter() -> None:
    cases = cohort(3, missing=False)
    baselines, images = fitted(cases), cases[0][0]
    one = baselines.guess({n: images[n] for n in ("t1n", "t2w")}, "t2f")
    two = baselines.guess({n: images[n] for n in ("t2w", "t1n")}, "t2f")
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)
    assert set(baselines.fit("linear", ("t1n", "t2w"), "t2f").slopes) == {"t1n", "t2w"}


def test_combinations_no_training_case_has_fall_back_to_a_part_of_them() -> None:
    cases = cohort(2, missing=False)
    (first, inside), (second, _) = cases
    baselines = fitted(
        [({n: first[n] for n in ("t1n", "t2w")}, inside), ({n: second[n] for n in ("t1c", "t2w")}, inside)]
    )
    assert len(baselines.fit("linear", ("t1n", "t1c"), "t2w").slopes) == 1
    assert baselines.fit("linear", ("t2f",), "t2w").slopes == {}  # the mean is all that is left
    assert baselines.fit("mean", ("t1n",), "t2f") is None
    assert baselines.guess({"t1n": first["t1n"]}, "t2f") == {}
    with pytest.raises(ValueError, match="no baseline"):
        baselines.fit("median", ("t1n",), "t2w")


def test_identical_sequences_do_not_break_the_solve() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=SIZE).astype(np.float32)
    baselines = fitted([({"t1n": x, "t2w": x, "t1c": 2 * x}, np.ones(SIZE, bool))])
    guess = baselines.guess({"t1n": x, "t2w": x}, "t1c")["linear"]
    np.testing.assert_allclose(guess, 2 * x, atol=1e-4)
