"""Montages look the way they are looked at."""

from __future__ import annotations

import io

import numpy as np
import pytest

from medmae.core.errors import UsageError
from medmae.report.pictures import Strip, Window, busiest, loss_curves, montage, slice_of


def test_the_patients_right_is_on_the_left() -> None:
    """RAS arrays: +x is the patient's right, +y anterior, +z superior."""
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1  # right, anterior, superior
    assert slice_of(volume, "axial", 0.99)[0, 0] == 1
    assert slice_of(volume, "coronal", 0.99)[0, 0] == 1
    assert slice_of(volume, "sagittal", 0.99)[0, -1] == 1
    with pytest.raises(UsageError, match="axial, coronal, sagittal"):
        slice_of(volume, "oblique")


def test_the_busiest_slice() -> None:
    """The slice with the most of a mask; the middle of nothing."""
    mask = np.zeros((8, 8, 8), bool)
    mask[2, :3, :3] = mask[2, 5, 5] = True
    assert int(busiest(mask, "sagittal") * 8) == 2
    assert busiest(np.zeros((8, 8, 8)), "axial") == 0.5


def test_a_window_needs_values() -> None:
    """Constant values get a window of some width, none at all are refused."""
    window = Window.of(np.full(10, 3.0))
    assert window.low < 3 < window.high
    with pytest.raises(UsageError, match="visible value"):
        Window.of(np.full(4, np.nan))


def test_pictures_are_png_of_the_expected_shape() -> None:
    """One row per strip; text that looks like a formula is drawn as text."""
    from matplotlib.image import imread

    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(8, 9, 7)).astype(np.float32) for name in ("truth", "visible", "reconstruction")}
    strips = [
        Strip(name, images, Window(-2, 2), ("reconstruction", "truth"), note="50 % hidden") for name in ("t1n", "$x_")
    ]
    one = imread(io.BytesIO(montage(strips, title="$\\frac")))
    three = imread(io.BytesIO(montage(strips, planes=("axial", "coronal", "sagittal"))))
    assert three.shape[1] > 2 * one.shape[1]
    assert imread(io.BytesIO(loss_curves({"a$": ([1.0, 2.0], [0.5, 0.1])}, log=True))).ndim == 3
    with pytest.raises(UsageError, match="at least one strip"):
        montage([])
