"""Rows, intervals and tables of a small study whose answer is known."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from medmae.evaluate.baselines import Baselines, Sums
from medmae.evaluate.protocol import Row, Subject, evaluate, subsets
from medmae.evaluate.statistics import bootstrap, summarize
from medmae.evaluate.table import picture, rows_csv, summary_csv, summary_json, text, verdict, write

NAMES = ("t1n", "t1c", "t2w")
SIZE = (14, 13, 12)


def subjects(count: int, *, lacking: str | None = None) -> list[Subject]:
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        base = rng.normal(size=SIZE).astype(np.float32)
        images = {n: (base * (k + 1) + rng.normal(size=SIZE).astype(np.float32)) for k, n in enumerate(NAMES)}
        if lacking and i == 0:
            images.pop(lacking)
        label = np.zeros(SIZE, bool)
        label[4:8, 4:8, 4:8] = True
        result.append(Subject(f"c{i}", images, np.ones(SIZE, bool), label if i else None))
    return result


def fitted(cases: list[Subject]) -> Baselines:
    sums = Sums(NAMES)
    for case in cases:
        sums.add(case.images, case.foreground)
    return Baselines(sums)


def oracle(truths: list[Subject]):
    """Gets everything right; and checks that it is shown nothing but what is given."""

    def guess(case: Subject, given: tuple[str, ...], targets: tuple[str, ...]):
        assert tuple(case.images) == given
        assert case.label is None
        whole = next(t for t in truths if t.code == case.code)
        return {target: whole.images[target] for target in targets}

    return guess


def test_every_proper_subset_and_every_target_the_case_has() -> None:
    assert len(subsets(("a", "b", "c", "d"))) == 14
    cases = subjects(2, lacking="t2w")
    seen: list[Row] = []
    rows = evaluate(cases, {"model": oracle(cases)}, sequences=NAMES, baselines=fitted(cases), on_row=seen.append)
    assert seen == rows
    first = {(r.subset, r.target) for r in rows if r.case == "c0"}
    assert first == {("t1n", "t1c"), ("t1c", "t1n")}
    second = {(r.subset, r.target) for r in rows if r.case == "c1"}
    assert second == {
        ("t1n", "t1c"), ("t1n", "t2w"), ("t1c", "t1n"), ("t1c", "t2w"), ("t2w", "t1n"), ("t2w", "t1c"),
        ("t1n+t1c", "t2w"), ("t1n+t2w", "t1c"), ("t1c+t2w", "t1n"),
    }  # fmt: skip
    assert {r.method for r in rows} == {"model", "mean", "best single", "linear"}
    assert all(("psnr_label" in r.values) == (r.case == "c1") for r in rows)
    assert all(r.values["psnr"] == 100 for r in rows if r.method == "model")


def test_bootstrap_is_the_percentile_interval_and_repeats_itself() -> None:
    from scipy import stats

    values = np.random.default_rng(3).normal(2.0, 1.0, 40)
    ours = bootstrap(values, draws=5000)
    assert ours == bootstrap(values, draws=5000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", random_state=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.cases == 40
    one = bootstrap([3.0, float("nan")])
    assert (one.mean, one.cases) == (3.0, 1)
    assert np.isnan([one.low, one.high]).all()
    with pytest.raises(ValueError, match="no values"):
        bootstrap([float("nan")])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = bootstrap(rng.normal(size=30), draws=400, seed=i)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_summary_counts_cases_not_subsets_and_compares_in_pairs() -> None:
    rows = [
        Row("a", ("t1n",), "t1c", "model", {"psnr": 30.0}),
        Row("a", ("t2w",), "t1c", "model", {"psnr": 34.0}),
        Row("b", ("t1n",), "t1c", "model", {"psnr": 20.0}),
        Row("a", ("t1n",), "t1c", "mean", {"psnr": 28.0}),
        Row("a", ("t2w",), "t1c", "mean", {"psnr": 32.0}),
        Row("b", ("t1n",), "t1c", "mean", {"psnr": 18.0}),
    ]
    cells = {(c.method, c.subset): c for c in summarize(rows)}
    assert cells["model", "all"].interval.mean == pytest.approx((32 + 20) / 2)
    assert cells["model", "all"].interval.cases == 2
    gain = cells["mean", "all"].gain
    assert gain is not None
    assert gain.mean == gain.low == gain.high == pytest.approx(2.0)
    assert cells["model", "all"].gain is None
    assert verdict(list(cells.values())) == {"t1c": {"mean": "better"}}


def test_tables_say_what_the_rows_say(tmp_path) -> None:
    cases = subjects(3)
    rows = evaluate(cases, {"model": oracle(cases)}, sequences=NAMES, baselines=fitted(cases[1:]))
    cells = summarize(rows)
    lines = list(csv.DictReader(io.StringIO(rows_csv(rows))))
    assert len(lines) == len(rows)
    assert float(lines[5]["psnr"]) == rows[5].values["psnr"]
    assert lines[5]["given"] == rows[5].subset
    assert len(list(csv.DictReader(io.StringIO(summary_csv(cells))))) == len(cells)
    about = {"cases": 3, "nothing": float("nan")}
    files = write(tmp_path / "out", rows, cells, about=about, title="study")
    loaded = json.loads(files["json"].read_text())
    assert loaded["about"] == {"cases": 3, "nothing": None}
    assert loaded["verdict"] == summary_json(cells, about)["verdict"]
    assert loaded["verdict"]["t1c"] == {"mean": "better", "best single": "better", "linear": "better"}
    for name in ("psnr", "ssim"):
        assert files[name].read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "measurements.csv", "psnr.png", "ssim.png", "summary.csv", "summary.json",
    ]  # fmt: skip
    shown = text(cells)
    assert shown.splitlines()[0].split() == ["target", "model", "linear", "best", "single", "mean"]
    assert "100.00" in shown


def test_names_from_data_stay_text(tmp_path) -> None:
    rows = [Row("=HYPERLINK(1)", ("a$b_$",), "<b>$x$", "model", {"psnr": 1.0, "ssim": 0.5})] * 2
    line = next(csv.DictReader(io.StringIO(rows_csv(rows))))
    assert line["case"] == "'=HYPERLINK(1)"
    picture(summarize(rows), tmp_path / "p.png")
    with pytest.raises(ValueError, match="no r2"):
        picture(summarize(rows), tmp_path / "p.png", metric="r2")
