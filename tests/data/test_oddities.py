"""What is odd about voxels is told, and cannot spoil what is learned."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from volumes import FakeCohort, FakeSpec, FileCase, make_case, volume, write

from medmae.core.errors import DataError
from medmae.data import cache
from medmae.data.inference import load_case
from medmae.data.loader import VolumeSource
from medmae.data.oddities import CONSTANT, NOT_FINITE, oddity, remarks, voxel_hash
from medmae.data.preprocess import PreprocessSettings, SkippedCaseError, prepare
from medmae.data.readers import read
from medmae.data.spec import Label

SHAPE = (24, 26, 20)


LABELED = FakeSpec(label=Label(classes={"background": 0, "tumor": 1}, remap={4: 1}))


def spoiled(folder: Path, name: str, *, seed: int = 0, bad: float) -> FileCase:
    case = make_case(folder, name, seed=seed)
    values = volume(SHAPE, seed=seed).astype(np.float32)
    values[12, 13, 5:9] = bad
    write(case.images["t1n"], values)
    return case


@pytest.mark.parametrize("value", [0.0, -7.0, np.nan])
def test_a_constant_image_counts_as_missing(tmp_path: Path, value: float) -> None:
    case = make_case(tmp_path, "a")
    write(case.images["t1n"], np.full(SHAPE, value, np.float32))
    prepared = prepare(case, PreprocessSettings())
    assert set(prepared.images) == set(prepared.statistics) == {"t2w"}
    assert prepared.odd == {"t1n": CONSTANT}
    alone = prepare(FileCase("b", {"t2w": case.images["t2w"]}), PreprocessSettings())
    assert np.array_equal(prepared.foreground, alone.foreground)
    shown = load_case(case.images, PreprocessSettings())
    assert shown.present == ("t2w",)
    assert set(shown.files) == {"t2w"}


def test_a_case_of_constant_images_only_is_left_out_and_named(tmp_path: Path) -> None:
    case = make_case(tmp_path, "flat", sequences=("t1n",))
    write(case.images["t1n"], np.ones(SHAPE, np.int16))
    with pytest.raises(SkippedCaseError, match="case flat: every voxel of t1n has the same value"):
        prepare(case, PreprocessSettings())
    assert issubclass(SkippedCaseError, DataError)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_bad_voxels_do_not_touch_the_statistics(tmp_path: Path, bad: float, spacing) -> None:
    settings = PreprocessSettings(spacing=spacing)
    good, prepared = (
        prepare(case, settings) for case in (make_case(tmp_path, "good"), spoiled(tmp_path, "bad", bad=bad))
    )
    assert prepared.odd == {"t1n": NOT_FINITE}
    inside = prepared.foreground > 0
    assert 0 < inside.sum() < (good.foreground > 0).sum()
    for name in ("t1n", "t2w"):
        a, b = good.statistics[name], prepared.statistics[name]
        assert (b.mean, b.std) == pytest.approx((a.mean, a.std), rel=0.02)
        assert (b.minimum, b.maximum) == pytest.approx((a.minimum, a.maximum), rel=0.3)
    values = prepared.images["t1n"].values()
    assert np.isfinite(values).all()
    if spacing is None:
        assert (values[~inside] == 0).all()


def test_every_kind_is_told_once_with_a_count_and_three_cases(tmp_path: Path, capsys) -> None:
    cases = []
    for i in range(5):
        case = make_case(tmp_path, f"flat{i}", seed=10 * i, label=True)
        write(case.images["t2w"], np.zeros(SHAPE, np.int16))
        cases.append(case)
    cases.append(spoiled(tmp_path, "hole", seed=70, bad=np.nan))
    cases.append(make_case(tmp_path, "odd", seed=80, label=True))
    write(cases[-1].label, np.full(SHAPE, 9, np.uint8))
    for _ in range(2):  # freshly prepared, and out of the cache
        source = VolumeSource(
            FakeCohort(tuple(cases), spec=LABELED), size=(16, 16, 16), cache=tmp_path / "c", quiet=True
        )
        flat, hole, label = source.notes
        assert flat.startswith("5 image(s) with one value only: taken as missing (flat0, flat1, flat2, ...)")
        assert hole.startswith("1 image(s) with NaN or infinite voxels")
        assert "(hole)" in hole
        assert label.startswith("1 label(s) with values that the spec does not know (9)")
        assert all("medmae data check" in note for note in source.notes)
        assert source.present["flat3"] == {"t1n"}
        assert source.present["hole"] == {"t1n", "t2w"}
    assert len(source.describe()["files"]) == len(source.describe()["voxels"]) == 5 + 2 + 2


def test_nothing_odd_is_nothing_said(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, "a", label=True)]
    assert remarks(cases, cache.ensure(cases, LABELED, folder=tmp_path / "c"), LABELED) == []


def test_an_image_is_known_again_in_another_format(tmp_path: Path) -> None:
    values = volume(SHAPE, seed=1)
    first = write(tmp_path / "a.nii.gz", values)
    affine = nibabel.load(first).affine
    as_floats = write(tmp_path / "b.nii", values.astype(np.float32))
    moved, other = affine.copy(), values.copy()
    moved[0, 3] += 1
    other[12, 13, 10] += 1
    codes = [
        voxel_hash(read(path))
        for path in (
            first,
            as_floats,
            write(tmp_path / "moved.nii", values, moved),
            write(tmp_path / "other.nii", other),
        )
    ]
    assert codes[0] == codes[1]
    assert len(set(codes)) == 3
    assert oddity(values) is None
