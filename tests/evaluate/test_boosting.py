"""Gradient boosting of single voxels as a baseline."""

from __future__ import annotations

import numpy as np

from medmae.evaluate.boosting import Boosting
from medmae.evaluate.protocol import Subject, rows_of

NAMES = ("t1n", "t1c", "t2w")


def subject(seed: int, *, without: tuple[str, ...] = ()) -> Subject:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(10, 11, 12)).astype(np.float32)
    images = {"t1n": base, "t1c": np.abs(base), "t2w": np.where(base > 0, 1.0, -1.0).astype(np.float32)}
    return Subject(f"c{seed}", {n: i for n, i in images.items() if n not in without}, rng.random(base.shape) > 0.2)


def fitted(*subjects: Subject) -> Boosting:
    found = Boosting(NAMES, seed=1)
    for one in subjects:
        found.add(one.images, one.foreground)
    return found


def error(found: Boosting, given: tuple[str, ...], target: str) -> float:
    case = subject(99)
    shown = Subject(case.code, {n: case.images[n] for n in given}, case.foreground)
    guess = found.guess(shown, given, (target,))[target]
    assert guess.shape == case.foreground.shape
    assert not guess[~case.foreground].any()
    return float(np.square(guess - case.images[target])[case.foreground].mean())


def test_it_learns_what_no_line_can() -> None:
    found = fitted(subject(0), subject(1))
    assert error(found, ("t1n",), "t1c") < 0.02  # |x| is not correlated with x
    assert error(found, ("t1c",), "t1n") > 0.5  # the sign is lost
    assert error(found, ("t1c", "t2w"), "t1n") < 0.05
    assert error(found, ("t2w", "t1c"), "t1n") < 0.05  # in whatever order they are given


def test_the_same_seed_gives_the_same_guess_and_later_cases_change_nothing() -> None:
    first, second = fitted(subject(0)), fitted(subject(0))
    before = error(first, ("t1n",), "t2w")
    assert before == error(second, ("t1n",), "t2w")
    first.add(subject(3).images, subject(3).foreground)
    assert error(first, ("t1n",), "t2w") == before


def test_incomplete_training_cases() -> None:
    found = fitted(subject(0, without=("t2w",)), subject(1, without=("t1c",)))
    assert error(found, ("t1n",), "t1c") < 0.02
    assert error(found, ("t1n", "t2w"), "t1c") < 0.3  # no case has all three: fitted with gaps
    nobody = fitted(subject(0, without=("t1c",)))
    assert error(nobody, ("t1n",), "t1c") > 0.5
    empty = Subject("x", subject(0).images, np.zeros((10, 11, 12), bool))
    assert error(fitted(empty), ("t1n",), "t1c") > 0.5


def test_it_stands_beside_a_model_in_the_protocol() -> None:
    found = fitted(subject(0))
    rows = list(rows_of(subject(5), {"boosting": found.guess}, sequences=NAMES))
    assert {row.method for row in rows} == {"boosting"}
    assert len(rows) == 9
