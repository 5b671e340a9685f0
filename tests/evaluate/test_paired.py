"""Two models on the same cases: what must hold whatever the numbers are, and what known numbers give."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from medmae.core.errors import DataError
from medmae.evaluate.cohort_scores import measure_of
from medmae.evaluate.comparison import as_csv, as_json, compare_results, picture, sentences, text
from medmae.evaluate.paired import (
    Difference,
    Measured,
    clustered,
    compare_measured,
    higher_is_better,
    holm,
    judged,
    signed_rank,
)
from medmae.evaluate.results import Results, Said
from medmae.evaluate.statistics import Interval

SUBSETS = ("t1n", "t1c", "t1n+t1c")
OPPOSITE = {"better": "worse", "worse": "better", "higher": "lower", "lower": "higher"}
numbers = st.one_of(st.floats(-5, 5, width=32), st.just(math.nan))


def measured(values: list[list[float]], *, metric: str = "dice", scans: int = 1) -> list[Measured]:
    """Cases down, subsets across; ``scans`` cases of one subject."""
    return [
        Measured(f"c{i:02d}", f"s{i // scans:02d}", subset, "tumor", metric, value)
        for i, row in enumerate(values)
        for subset, value in zip(SUBSETS, row, strict=True)
    ]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Measured], list[Measured]]:
    count, scans = draw(st.integers(1, 9)), draw(st.integers(1, 2))
    rows = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=count, max_size=count)
    return measured(draw(rows), scans=scans), measured(draw(rows), scans=scans)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Results, Results]:
    task, count = draw(st.sampled_from(("classify", "survive"))), draw(st.integers(4, 10))
    kinds = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    found = []
    for _ in range(2):
        scores = draw(st.lists(st.floats(0, 1, width=16), min_size=count, max_size=count))
        found.append(results(task, [(k % 2, float(k + 1), s) for k, s in zip(kinds, scores, strict=True)]))
    return found[0], found[1]


def results(task: str, rows: list[tuple[int, float, float]], *, folds: int = 1) -> Results:
    """(class or event, time, score) of each case, from two subsets."""
    said = []
    for i, (kind, time, score) in enumerate(rows):
        for subset in SUBSETS[:2]:
            truth = {"class": "ab"[kind]} if task == "classify" else {"time": repr(time), "event": repr(float(kind))}
            shown = score if subset == "t1n" else 1 - score * score
            values = {"probability_a": 1 - shown, "probability_b": shown} if task == "classify" else {"risk": shown}
            fold = str(i % folds) if folds > 1 else ""
            said.append(Said(f"c{i:02d}", f"s{i // 2:02d}", subset, truth, values, fold))
    about = {"classes": ["a", "b"] if task == "classify" else [], "columns": {"class": "idh"}}
    return Results(Path("x"), task, about, said=tuple(said), subjects_known=True)


def same(one: Difference, other: Difference) -> bool:
    numbers = [
        (d.first, d.second, d.interval.mean, d.interval.low, d.interval.high, d.p, d.p_holm) for d in (one, other)
    ]
    words = [(d.subset, d.target, d.metric, d.subjects, d.left_out, d.verdict, d.interval.cases) for d in (one, other)]
    return words[0] == words[1] and np.allclose(numbers[0], numbers[1], rtol=0, atol=1e-9, equal_nan=True)


def mirrored(d: Difference) -> Difference:
    i = d.interval
    swapped = Interval(-i.mean, -i.high, -i.low, i.cases)
    return replace(d, first=d.second, second=d.first, interval=swapped, verdict=OPPOSITE.get(d.verdict, d.verdict))


def alike(one: list[Difference], other: list[Difference]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=20, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_what_holds_for_numbers_of_cases(pair, random) -> None:
    first, second = pair
    found = compare_measured(first, second, draws=60)
    assert alike([mirrored(d) for d in found], compare_measured(second, first, draws=60))
    itself = compare_measured(first, first, draws=60)
    for d in itself:
        bounds = (0.0, 0.0) if d.subjects > 1 else (math.nan, math.nan)
        assert d.interval.mean == 0
        assert (d.interval.low, d.interval.high) == pytest.approx(bounds, nan_ok=True)
        assert (d.p, d.p_holm, d.verdict) == (1, 1, "not surely different")
    shuffled = [list(first), list(second)]
    for rows in shuffled:
        random.shuffle(rows)
    assert alike(found, compare_measured(*shuffled, draws=60))
    assert repr(found) == repr(compare_measured(first, second, draws=60))
    cases = len({row.case for row in first})
    assert all(d.interval.cases + d.left_out == cases for d in found)


@settings(max_examples=6, deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_what_holds_for_metrics_of_a_cohort(pair, random) -> None:
    first, second = pair
    try:
        found = compare_results(first, second).differences
    except DataError:  # one class, or nobody to be compared with
        return
    assert alike([mirrored(d) for d in found], list(compare_results(second, first).differences))
    for d in compare_results(first, first).differences:
        assert (d.interval.mean, d.interval.low, d.interval.high, d.p) == (0, 0, 0, 1)
    said = list(first.said)
    random.shuffle(said)
    assert alike(list(found), list(compare_results(replace(first, said=tuple(said)), second).differences))


def test_a_difference_by_hand() -> None:
    rng = np.random.default_rng(0)
    gain = 0.05 + 0.02 * rng.standard_normal(20)
    base = rng.uniform(0.4, 0.9, 20)
    first = measured([[b + g, b + g, math.nan] for b, g in zip(base, gain, strict=True)])
    second = measured([[b, b, b] for b in base])
    found = {d.subset: d for d in compare_measured(first, second)}
    assert set(found) == {"t1n", "t1c", "all"}  # nothing to compare where one model has no number
    one = found["t1n"]
    assert one.interval.mean == pytest.approx(gain.mean())
    assert one.p == pytest.approx(wilcoxon(gain).pvalue)
    assert found["t1c"].p_holm == pytest.approx(2 * one.p)
    assert found["all"].p_holm == found["all"].p == one.p
    half = 1.96 * gain.std(ddof=1) / math.sqrt(20)
    assert one.interval.low == pytest.approx(gain.mean() - half, abs=0.003)
    assert one.interval.high == pytest.approx(gain.mean() + half, abs=0.003)
    assert one.verdict == "better"
    worse = compare_measured([replace(r, metric="hd95") for r in first], [replace(r, metric="hd95") for r in second])
    assert worse[0].verdict == "worse"  # a larger distance
    unknown = compare_measured([replace(r, metric="zeal") for r in first], [replace(r, metric="zeal") for r in second])
    assert unknown[0].verdict == "higher"
    assert [higher_is_better(name) for name in ("mae_label", "auc_folds", "zeal")] == [False, True, None]


def test_scans_of_one_patient_are_no_two_witnesses() -> None:
    values = [[v, v, v] for v in np.repeat(np.random.default_rng(1).normal(0.1, 0.2, 8), 4).tolist()]
    zero = [[0.0] * 3] * 32
    apart = compare_measured(measured(values), measured(zero))[0]
    together = compare_measured(measured(values, scans=4), measured(zero, scans=4))[0]
    assert (apart.subjects, together.subjects) == (32, 8)
    assert together.p > apart.p
    assert together.interval.high - together.interval.low > 1.5 * (apart.interval.high - apart.interval.low)


def test_few_cases_are_never_sure() -> None:
    found = compare_measured(measured([[0.9] * 3] * 5), measured([[0.1 * k] * 3 for k in range(5)]))
    assert all(d.p >= 0.05 and d.verdict == "not surely different" for d in found)
    assert found[0].interval.low > 0
    with pytest.raises(ValueError, match="two values"):
        compare_measured(measured([[1.0] * 3]) * 2, measured([[1.0] * 3]))
    lone = clustered(np.array([1.0, 2.0]), ["s", "s"])
    assert lone.mean == 1.5
    assert math.isnan(lone.low)
    values, owners = np.array([0.1, 0.7, 0.4, 0.2]), ["a", "b", "b", "c"]
    turned = clustered(values[::-1], owners[::-1])
    assert (turned.low, turned.high) == pytest.approx((clustered(values, owners).low, clustered(values, owners).high))


def test_the_signed_rank_test_is_exact_with_ties_and_zeros() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 6, 13, 40):
        values = rng.normal(0.4, 1, n)
        assert signed_rank(values) == pytest.approx(wilcoxon(values, method="exact").pvalue)
    coarse = np.round(rng.normal(0.6, 1, 12), 0)  # ties and zeros: all signs by hand
    ranks = rankdata(np.abs(coarse)) * (coarse != 0)
    sums = np.array([ranks[np.array(signs) > 0].sum() for signs in itertools.product((0, 1), repeat=12)])
    up = ranks[coarse > 0].sum()
    assert signed_rank(coarse) == pytest.approx(min(1, 2 * min((sums <= up).mean(), (sums >= up).mean())))
    assert signed_rank(np.r_[np.arange(1.0, 6.0), np.zeros(200)]) == 2 / 2**5
    large = rng.normal(0.1, 1, 200)
    assert signed_rank(large) == pytest.approx(wilcoxon(large, zero_method="pratt").pvalue)
    assert signed_rank(np.zeros(4)) == 1


def test_few_patients_make_no_better_classifier() -> None:
    rows = [(i % 2, 1.0, 0.1 + 0.8 * (i % 2)) for i in range(8)]  # of four subjects
    wrong = [(k, t, 1 - score) for k, t, score in rows]
    found = compare_results(results("classify", rows), results("classify", wrong)).differences
    assert found
    assert all(d.p >= 2 / 2**4 and d.verdict == "not surely different" for d in found)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.5, math.nan, 0.6])
    assert found[0] == found[2] == 1.0
    assert math.isnan(found[1])
    assert judged([]) == []
    one = Difference("t1n", "core", "dice", 9, 0, 0.9, 0.8, Interval(0.1, 0.05, 0.15, 9), 0.03)
    assert [d.verdict for d in judged([one])] == ["better"]
    twice = judged([one, replace(one, subset="t1c"), replace(one, subset="all")])
    assert [d.verdict for d in twice] == ["not surely different", "not surely different", "better"]
    across = judged([replace(one, interval=Interval(0.1, -0.01, 0.15, 9))])
    assert across[0].verdict == "not surely different"


def test_a_better_classifier_is_found_and_drawn(tmp_path) -> None:
    rng = np.random.default_rng(0)
    rows = [(i % 2, 1.0, float(0.5 * (i % 2) + 0.1 + 0.3 * rng.random())) for i in range(60)]
    noise = [(k, t, float(rng.random())) for k, t, _ in rows]
    comparison = compare_results(results("classify", rows, folds=3), results("classify", noise, folds=3))
    found = {(d.subset, d.metric): d for d in comparison.differences}
    assert {metric for _, metric in found} >= {"auc", "auc_folds", "ap", "balanced_accuracy"}
    one = found["t1n", "auc"]
    assert (one.first, one.verdict) == (1, "better")
    assert one.p == pytest.approx(2 / 2001)
    assert one.interval.high <= 1
    assert found["t1c", "auc"].verdict == "worse"  # this score falls with the right one
    assert sentences(comparison.differences)[0].startswith("idh, auc: ")
    assert "better in 1 and worse in 1 of 2 subsets" in sentences(comparison.differences)[0]
    assert as_csv(comparison.differences).count("\n") == len(found) + 1
    assert as_json(comparison)["about"]["subjects"] == 30
    assert "not surely different" in text(comparison.differences, metric="auc")
    assert picture(comparison.differences, tmp_path / "a.png").stat().st_size > 5000


def test_the_mean_over_folds_ranks_inside_folds_only() -> None:
    rows = [(i % 2, 1.0, 0.4 * (i // 2 % 2) + 0.1 * (i % 2)) for i in range(16)]
    said = [r for r in results("classify", rows).said if r.subset == "t1n"]
    folded = [replace(r, fold=str(i // 2 % 2)) for i, r in enumerate(said)]
    found = measure_of(folded, task="classify", classes=["a", "b"])(np.ones((1, 16)))
    assert found["auc_folds"][0] == 1
    assert found["auc"][0] == 0.75  # the scores of the second fold are higher as a whole
