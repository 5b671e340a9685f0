"""The foreground estimate, on backgrounds that are anything but zero."""

from __future__ import annotations

import numpy as np
import pytest

from medmae.data.foreground import bounding_box, combine, estimate_foreground, spread_points


def ellipsoid(shape: tuple[int, int, int] = (48, 56, 40)) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return (grid**2).sum(0) < 0.55


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("background", [0.0, -3.7994637, 1000.0, -1e-3])
def test_any_constant_background(background: float):
    brain = ellipsoid()
    values = np.random.default_rng(0).normal(0, 1, brain.shape)
    volume = np.where(brain, values, background).astype(np.float32)
    # voxels inside that happen to equal the background are filled
    volume[24, 28, 20] = background
    found = estimate_foreground(volume)
    assert found[24, 28, 20]
    assert not (found & ~brain).any()
    assert dice(found, brain) > 0.999  # a few voxels of the surface may be that close to the background


def test_noisy_air():
    brain = ellipsoid()
    rng = np.random.default_rng(0)
    tissue = np.where(brain, rng.normal(100, 20, brain.shape), 0)
    magnitude = np.hypot(tissue + rng.normal(0, 5, brain.shape), rng.normal(0, 5, brain.shape))
    assert dice(estimate_foreground(magnitude.astype(np.float32)), brain) > 0.96


def test_no_background_is_foreground_everywhere():
    flat = np.full((8, 8, 8), 3.0, np.float32)
    assert estimate_foreground(flat).all()


def test_specks_in_the_air_are_dropped():
    brain = ellipsoid()
    volume = np.where(brain, 10.0, 0.0).astype(np.float32)
    volume[1, 1, 1] = 50
    assert not estimate_foreground(volume)[1, 1, 1]


def test_infinite_voxels_are_background():
    brain = ellipsoid()
    volume = np.where(brain, np.random.default_rng(0).uniform(1, 2, brain.shape), 0.0).astype(np.float32)
    volume[0, 0, 0] = np.nan
    volume[0, 0, 1] = np.inf
    assert np.array_equal(estimate_foreground(volume), brain)


@pytest.mark.parametrize(
    "case",
    ["BraTS-MET-00110-000_2mm", "OpenMS-26_2mm", "OpenMS-19_crop96", "brats13_pat0005_2mm", "brats13_pat0006_2mm"],
)
def test_real_cases_agree_with_their_masks(case: str, real_data):
    import nibabel

    folder = real_data / "small" / case
    truth = nibabel.load(folder / "mask.nii.gz").get_fdata() > 0
    files = [p for p in sorted(folder.glob("*.nii.gz")) if p.name.split(".")[0] in ("t1n", "t1c", "t2w", "t2f")]
    found = combine(estimate_foreground(nibabel.load(p).get_fdata(dtype=np.float32)) for p in files)
    assert dice(found, truth) > 0.96


def test_bounding_box_and_points():
    mask = np.zeros((10, 12, 14), bool)
    mask[2:5, 3:9, 7:8] = True
    assert bounding_box(mask) == ((2, 3, 7), (5, 9, 8))
    assert bounding_box(mask, margin=3) == ((0, 0, 4), (8, 12, 11))
    assert bounding_box(np.zeros_like(mask)) == ((0, 0, 0), (10, 12, 14))
    points = spread_points(mask, count=7)
    assert len(points) == 7
    assert mask[tuple(points.T)].all()
    assert spread_points(np.zeros_like(mask)).tolist() == [[5, 6, 7]]


def test_a_case_needs_a_sequence():
    with pytest.raises(ValueError, match="without sequences"):
        combine([])
