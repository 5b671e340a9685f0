"""Dice, HD95 and NSD on hand-made shapes: against formulas and against distance transforms of our own."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from scipy import ndimage

from medmae.evaluate.protocol import Row
from medmae.evaluate.segmentation import Target, measure, overlap, targets_of
from medmae.evaluate.segmentation_table import text, write
from medmae.evaluate.statistics import summarize

SIZE = (24, 22, 20)


def ball(center: tuple[float, ...], radius: float, spacing: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    index = np.indices(SIZE)
    return sum(((index[k] - center[k]) * spacing[k]) ** 2 for k in range(3)) <= radius**2


def by_hand(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> tuple[float, float, float]:
    """Dice, HD95, NSD from erosions and distance transforms of the whole volume."""
    edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]
    far = [ndimage.distance_transform_edt(~e, sampling=spacing) for e in edges]
    to = far[1][edges[0]], far[0][edges[1]]
    near = sum(int((d <= tolerance).sum()) for d in to) / sum(len(d) for d in to)
    return 2 * (a & b).sum() / (a.sum() + b.sum()), max(np.quantile(d, 0.95) for d in to), near


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0)])
@pytest.mark.parametrize(
    ("one", "two"),
    [(((12, 11, 10), 6.0), ((13, 11, 9), 5.0)), (((3, 3, 3), 5.0), ((6, 3, 3), 6.0)), (((12, 11, 10), 4.0),) * 2],
)
def test_equals_distance_transforms(one, two, spacing: tuple[float, float, float]) -> None:
    a, b = ball(*one, spacing), ball(*two, spacing)
    found = overlap(a, b, spacing=spacing, tolerance=1.5)
    dice, hd95, nsd = by_hand(a, b, spacing, 1.5)
    assert found["dice"] == pytest.approx(dice, abs=1e-6)
    assert found["hd95"] == pytest.approx(hd95, abs=1e-5)
    assert found["nsd"] == pytest.approx(nsd, abs=1e-6)


def test_a_shifted_box_has_the_distance_of_the_shift_in_millimeters() -> None:
    a, b = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    a[5:10, 5:10, 5:10] = True
    b[5:10, 5:10, 7:12] = True
    found = overlap(a, b, spacing=(1.0, 1.0, 2.5), tolerance=1.0)
    assert found["dice"] == pytest.approx(0.6)
    assert found["hd95"] == pytest.approx(5.0)  # two voxels of 2.5 mm
    assert overlap(a, b, spacing=(1.0, 1.0, 0.25), tolerance=1.0)["nsd"] == 1.0
    assert found["nsd"] < 1


def test_what_counts_where_nothing_is() -> None:
    none, some = np.zeros(SIZE, bool), ball((12, 11, 10), 4)
    steps = (1.0, 2.0, 3.0)
    far = math.dist((0, 0, 0), (24, 44, 60))
    assert overlap(none, none, spacing=steps) == {"dice": 1.0, "hd95": 0.0, "nsd": 1.0}
    for a, b in ((none, some), (some, none)):
        assert overlap(a, b, spacing=steps) == {"dice": 0.0, "hd95": pytest.approx(far), "nsd": 0.0}
        skipped = overlap(a, b, spacing=steps, empty="skip")
        assert (skipped["dice"], skipped["nsd"]) == (0.0, 0.0)
        assert math.isnan(skipped["hd95"])
    assert all(math.isnan(v) for v in overlap(none, none, spacing=steps, empty="skip").values())


def test_classes_may_be_numbered_otherwise_and_ignored_voxels_count_for_nothing() -> None:
    truth = np.zeros(SIZE, np.uint8)
    truth[2:8], truth[8:12], truth[12:] = 1, 4, 9
    guess = np.zeros(SIZE, np.uint8)
    guess[2:8], guess[8:12], guess[12:] = 1, 2, 2
    targets = targets_of({"background": 0, "a": 1, "b": 4}, {"both": (1, 4)}, predicted={0: 0, 1: 1, 4: 2})
    assert targets == (Target("a", (1,), (1,)), Target("b", (4,), (2,)), Target("both", (1, 4), (1, 2)))
    found = measure(guess, truth, targets, spacing=(1.0, 1.0, 1.0), ignore=9)
    assert {name: values["dice"] for name, values in found.items()} == {"a": 1.0, "b": 1.0, "both": 1.0}
    assert measure(guess, truth, targets, spacing=(1.0, 1.0, 1.0))["b"]["dice"] < 1


def test_a_class_and_a_region_of_one_name_are_both_measured() -> None:
    found = targets_of({"background": 0, "core": 1, "et": 4}, {"core": (1, 4), "et": (4,)})
    assert {t.name: t.reference for t in found} == {"core": (1,), "et": (4,), "core (region)": (1, 4)}


def test_tables(tmp_path) -> None:
    values = {"dice": 0.5, "hd95": 3.0, "nsd": 0.75}
    rows = [
        Row(f"c{i}", given, "core", "model", {**values, "dice": 0.5 + 0.1 * i})
        for i in range(3)
        for given in (("t1n",), ("t1n", "t2w"))
    ]
    rows.append(Row("c3", ("t1n",), "core", "model", dict.fromkeys(values, math.nan)))
    cells = summarize(rows)
    shown = text(cells)
    assert [line.split()[0] for line in shown.splitlines()] == ["given", "t1n", "t1n+t2w", "all"]
    assert "0.600 [0.500, 0.700]" in shown
    files = write(tmp_path, rows, cells, about={"empty": "skip"}, title="x")
    assert set(files) == {"measurements", "summary", "json", "dice", "hd95", "nsd"}
    with files["measurements"].open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {"case": "c0", "given": "t1n", "target": "core", "method": "model", "dice": "0.5", "hd95": "3.0",
                        "nsd": "0.75"}  # fmt: skip
    assert lines[-1]["dice"] == ""
    summary = json.loads(files["json"].read_text())
    assert {e["given"] for e in summary["summary"]} == {"t1n", "t1n+t2w", "all"}
    assert all(e["cases"] == 3 for e in summary["summary"])
