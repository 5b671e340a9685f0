"""Preparation of one case: exact storage, statistics inside the foreground, policies, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volumes import FakeSpec, FileCase, Section, affines, brain, make_case, volume, write

from medmae.core.errors import DataError, UsageError
from medmae.data.inference import load_case, to_input_grid
from medmae.data.preprocess import PreprocessSettings, SkippedCaseError, measure, prepare, quantize
from medmae.data.spec import parse_spec


def test_integers_are_stored_exactly():
    values = np.random.default_rng(0).integers(-2000, 30000, (9, 8, 7)).astype(np.float32)
    stored = quantize(values)
    assert (stored.slope, stored.inter) == (1.0, 0.0)
    assert np.array_equal(stored.values(), values)
    unsigned = values + 35000
    assert np.array_equal(quantize(unsigned).values(), unsigned)


@given(slope=st.floats(1e-4, 50.0), inter=st.floats(-1000, 1000), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_scaled_integers_keep_every_value(slope: float, inter: float, seed: int):
    codes = np.random.default_rng(seed).integers(-900, 3000, (8, 9, 10))
    values = (codes * slope + inter).astype(np.float32)
    back = quantize(values).values()
    assert np.abs(back - values).max() <= max(8 * np.spacing(np.abs(values).max()), 1e-3 * slope) or (
        np.abs(back - values).max() <= (values.max() - values.min()) / 65535
    )


def test_anything_else_loses_at_most_half_a_step():
    values = np.random.default_rng(0).normal(0, 3, (20, 20, 20)).astype(np.float32)
    stored = quantize(values)
    assert np.abs(stored.values() - values).max() <= 0.51 * (values.max() - values.min()) / 65535


def test_an_outlier_does_not_ruin_the_steps():
    values = np.random.default_rng(0).normal(0, 1, (20, 20, 20)).astype(np.float32)
    inside = np.ones(values.shape, bool)
    values[0, 0, 0], inside[0, 0, 0] = 1e7, False
    stored = quantize(values, inside)
    assert np.abs(stored.values() - values)[inside].max() < 2e-3


def test_constant_volume_has_unit_scale():
    stored = quantize(np.full((4, 4, 4), 5.0, np.float32))
    assert measure(stored, np.ones((4, 4, 4), bool)).std == 1.0
    assert np.array_equal(stored.values(), np.full((4, 4, 4), 5.0, np.float32))


@pytest.mark.parametrize("background", [0, -321])
def test_statistics_are_those_of_the_foreground(tmp_path: Path, background: int):
    case = make_case(tmp_path, "a", background=background)
    prepared = prepare(case, PreprocessSettings())
    inside = brain((24, 26, 20))
    truth = volume((24, 26, 20), seed=0, background=background)[inside]
    known = prepared.statistics["t1n"]
    assert known.mean == pytest.approx(truth.mean(), rel=1e-6)
    assert known.std == pytest.approx(truth.std(), rel=1e-6)
    assert prepared.foreground.sum() == inside.sum()
    assert prepared.foreground.any((1, 2)).all()  # cropped to the foreground


def test_a_given_mask_wins(tmp_path: Path):
    case = make_case(tmp_path, "a")
    mask = np.zeros((24, 26, 20), np.uint8)
    mask[8:16, 9:17, 6:14] = 1
    prepared = prepare(FileCase("a", case.images, None, write(tmp_path / "mask.nii.gz", mask)), PreprocessSettings())
    assert prepared.shape == (8, 8, 8)
    empty = write(tmp_path / "empty.nii.gz", 0 * mask)
    with pytest.raises(DataError, match="mask is empty"):
        prepare(FileCase("a", case.images, None, empty), PreprocessSettings())


def test_margin_is_in_millimeters(tmp_path: Path):
    case = make_case(tmp_path, "a")
    mask = np.zeros((24, 26, 20), np.uint8)
    mask[8:16, 9:17, 6:14] = 1
    masked = FileCase("a", case.images, None, write(tmp_path / "mask.nii.gz", mask))
    assert prepare(masked, PreprocessSettings(margin=4.0)).shape == (16, 16, 12)  # 2 mm slices
    assert prepare(masked, PreprocessSettings(crop="none")).shape == (24, 26, 20)


def test_mismatch_policies(tmp_path: Path):
    case = make_case(tmp_path, "a")
    moved = np.diag([1.0, 1, 2, 1])
    moved[:3, 3] = 3
    write(case.images["t2w"], volume((24, 26, 20), seed=1), moved)
    with pytest.raises(DataError, match="t2w: shape") as error:
        prepare(case, PreprocessSettings())
    assert "on_mismatch" in str(error.value)
    with pytest.raises(SkippedCaseError):
        prepare(case, PreprocessSettings(on_mismatch="skip"))
    prepared = prepare(case, PreprocessSettings(on_mismatch="resample"))
    assert set(prepared.images) == {"t1n", "t2w"}


def test_windows_are_clipped_and_scaled_to_one(tmp_path: Path):
    hounsfield = np.random.default_rng(0).integers(-1500, 2500, (12, 12, 12)).astype(np.int16)
    case = FileCase("a", {"ct": write(tmp_path / "ct.nii.gz", hounsfield)})
    settings_ = PreprocessSettings(windows={"ct": (-200.0, 300.0)}, foreground="all")
    loaded = load_case(case.images, settings_.describe())
    assert loaded.images["ct"].min() == pytest.approx(0, abs=1e-6)
    assert loaded.images["ct"].max() == pytest.approx(1, abs=1e-6)
    assert np.allclose(loaded.images["ct"], (hounsfield.clip(-200, 300) + 200.0) / 500, atol=1e-5)
    default = prepare(case, PreprocessSettings(foreground="all"))
    assert default.statistics["ct"].mean == -1000.0


def test_labels_are_remapped(tmp_path: Path):
    case = make_case(tmp_path, "a", label=True)
    prepared = prepare(case, FakeSpec(label=Section(remap={4: 3})))
    assert prepared.label is not None
    assert set(np.unique(prepared.label)) == {0, 3}
    assert prepared.label.sum() == 3 * 4 * 4 * 3


def test_settings_round_trip_and_reject_the_unknown():
    spec = parse_spec(
        {
            "medmae": 1, "name": "x", "sequences": ["t1n"], "geometry": {"on_mismatch": "skip"},
            "preprocess": {"spacing": [1, 1, 2], "windows": {"ct": [-100, 200]}, "orientation": "LPS"},
        }
    )  # fmt: skip
    settings_ = PreprocessSettings.of(spec)
    assert settings_.spacing == (1.0, 1.0, 2.0)
    assert settings_.on_mismatch == "skip"
    assert PreprocessSettings.of(json.loads(json.dumps(settings_.describe()))) == settings_
    with pytest.raises(UsageError, match="flavor"):
        PreprocessSettings.of({"flavor": 1})
    with pytest.raises(UsageError, match="crop"):
        PreprocessSettings(crop="tight")


def test_infinite_voxels_are_left_out(tmp_path: Path):
    values = volume((24, 26, 20), seed=0).astype(np.float32)
    values[12, 12, 10] = np.nan
    values[12, 12, 11] = np.inf
    case = FileCase("a", {"t1n": write(tmp_path / "t1n.nii.gz", values)})
    prepared = prepare(case, PreprocessSettings(crop="none"))
    assert np.isfinite(prepared.statistics["t1n"].mean)
    assert prepared.foreground[12, 12, 10:12].sum() == 0


# ------------------------------------------------------------------ inference


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_inference_sees_what_training_saw_and_comes_back_exactly(tmp_path: Path, orientation: str):
    tilt = np.array([[1, 0, 0, 5], [0, np.cos(0.2), -np.sin(0.2), 2], [0, np.sin(0.2), np.cos(0.2), -9], [0, 0, 0, 1]])
    affine = tilt @ np.array([[0, -1.1, 0, 0], [0.9, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    array = volume((24, 26, 20), seed=0, background=-50)
    case = FileCase("a", {"t1n": write(tmp_path / "t1n.nii.gz", array, affine)})
    settings_ = PreprocessSettings(orientation=orientation)
    prepared, loaded = prepare(case, settings_), load_case(case.images, settings_.describe())
    assert loaded.statistics == prepared.statistics
    assert loaded.present == ("t1n",)
    units = loaded.in_units(loaded.images["t1n"], sequence="t1n")
    back = to_input_grid(np.where(loaded.foreground, np.rint(units), -50), loaded, fill=-50)
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    with pytest.raises(DataError, match="t2w was not given"):
        loaded.in_units(units, sequence="t2w")
    with pytest.raises(DataError, match="shape"):
        to_input_grid(units[1:], loaded)


def test_sform_only_affines_come_back_in_place(tmp_path: Path):
    import nibabel

    affine = np.array([[0, -1.5, 0, 40], [-1.0, 0, 0, 30], [0, 0, 2.0, -20], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(volume((24, 26, 20), seed=0), None)
    image.set_sform(affine, code=2)
    image.set_qform(np.diag([3.0, 3, 3, 1]), code=0)
    nibabel.save(image, tmp_path / "t1n.nii.gz")
    loaded = load_case({"t1n": tmp_path / "t1n.nii.gz"}, PreprocessSettings(spacing=(1.0, 1.0, 1.0)))
    assert np.allclose(loaded.header.affine, affine, atol=1e-5)
    assert np.allclose(loaded.spacing, 1.0)
    # a field that is linear in the world survives the way to the model's grid and back
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in loaded.shape], indexing="ij"), -1)
    world = grid @ loaded.affine[:3, :3].T + loaded.affine[:3, 3]
    back = to_input_grid((world @ [0.1, 0.2, -0.3]).astype(np.float32), loaded, fill=np.nan)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in back.shape], indexing="ij"), -1)
    truth = (grid @ affine[:3, :3].T + affine[:3, 3]) @ [0.1, 0.2, -0.3]
    seen = brain((24, 26, 20))
    inner = seen & np.isfinite(back)
    assert inner.sum() > 0.9 * seen.sum()
    assert np.quantile(np.abs(back - truth)[inner], 0.95) < 2e-3


def sform_only(folder: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """A file whose place in the world is told by its sform alone, next to a qform that says something else."""
    import nibabel

    image = nibabel.Nifti1Image(array, None)
    image.set_qform(np.diag([3.0, 3, 3, 1]), code=0)
    image.set_sform(affine, code=2)
    nibabel.save(image, folder / "any.nii")
    return folder / "any.nii"


@given(affine=affines(oblique=True), orientation=st.sampled_from(["RAS", "LPS", "IAR"]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_affine_comes_back_exactly(tmp_path: Path, affine: np.ndarray, orientation: str):
    array = np.random.default_rng(0).integers(1, 900, (7, 8, 9)).astype(np.int16)
    path = sform_only(tmp_path, array, affine)
    loaded = load_case({"t1n": path}, PreprocessSettings(orientation=orientation, foreground="all"))
    values = np.rint(loaded.in_units(loaded.images["t1n"], sequence="t1n"))
    assert np.array_equal(to_input_grid(values, loaded), array)
    # and every voxel of the model's grid is where it was in the world
    place = np.argwhere(values == array[2, 3, 4])
    world = affine @ [2, 3, 4, 1]
    away = np.linalg.norm((loaded.affine @ np.c_[place, np.ones(len(place))].T).T[:, :3] - world[:3], axis=1)
    assert away.min() < 1e-3


@given(affine=affines(oblique=True), spacing=st.tuples(*[st.floats(0.8, 2.5)] * 3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_affine_and_spacing_keep_the_world(tmp_path: Path, affine: np.ndarray, spacing: tuple[float, ...]):
    shape = (9, 8, 10)
    slope = np.array([0.05, -0.08, 0.06])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    field = ((index @ affine[:3, :3].T + affine[:3, 3]) @ slope).astype(np.float32)
    path = sform_only(tmp_path, field, affine)
    loaded = load_case({"t1n": path}, PreprocessSettings(spacing=spacing, foreground="all"))
    values = loaded.in_units(loaded.images["t1n"], sequence="t1n")
    back = to_input_grid(values, loaded, fill=np.nan)
    # voxels far enough inside for both ways to interpolate: two steps of the coarser grid from the border
    there = np.linalg.inv(loaded.affine) @ affine
    where = index @ there[:3, :3].T + there[:3, 3]
    both = ((where >= 0) & (where <= np.array(loaded.shape) - 1)).all(-1)
    model = np.stack(np.meshgrid(*[np.arange(n) for n in loaded.shape], indexing="ij"), -1)
    behind = np.linalg.inv(affine) @ loaded.affine
    source = model @ behind[:3, :3].T + behind[:3, 3]
    good = ((source >= 0) & (source <= np.array(shape) - 1)).all(-1)
    truth = (model @ loaded.affine[:3, :3].T + loaded.affine[:3, 3]) @ slope
    assert good.any()
    step = np.ptp(field) / 65535 + 1e-4 * max(1.0, np.abs(field).max() / 100)
    assert np.abs(values - truth)[good].max() <= 2 * step
    low = np.floor(where - 1e-6).astype(int).clip(0)
    high = np.ceil(where + 1e-6).astype(int)
    inside = both & (high < loaded.shape).all(-1)
    for corner in np.ndindex(2, 2, 2):
        at = np.where(np.array(corner, bool), high, low)[inside]
        inside[inside] = good[tuple(at.T)]
    assert np.abs(back - field)[inside].max(initial=0) <= 3 * step


@pytest.mark.parametrize(
    "case", ["BraTS-MET-00110-000_2mm", "OpenMS-26_2mm", "brats13_pat0005_2mm", "brats13_pat0006_2mm"]
)
def test_real_cases_come_back_exactly(case: str, real_data: Path):
    import nibabel

    folder = real_data / "small" / case
    files = {p.name[:3]: p for p in sorted(folder.glob("t*.nii.gz"))}
    loaded = load_case(files, PreprocessSettings(), mask=folder / "mask.nii.gz")
    for name, path in files.items():
        truth = nibabel.load(path).get_fdata()
        back = to_input_grid(loaded.in_units(loaded.images[name], sequence=name), loaded, fill=0)
        inside = nibabel.load(folder / "mask.nii.gz").get_fdata() > 0
        assert np.abs(back - truth)[inside].max() < 2e-5 * np.ptp(truth)
        z = loaded.images[name][loaded.foreground]
        assert abs(z.mean()) < 1e-4
        assert z.std() == pytest.approx(1, abs=1e-4)
        assert (loaded.images[name][~loaded.foreground] == 0).all()
