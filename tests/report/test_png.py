"""PNG files and mosaics hold exactly what was put in."""

from __future__ import annotations

import io

import numpy as np
import pytest

from medmae.report.png import gray_png, mosaic, to_gray


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (64, 33)])
def test_an_image_comes_back(shape: tuple[int, int]) -> None:
    """Read by another library."""
    from matplotlib.image import imread

    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for kind in (image, np.zeros(shape, np.uint8), np.cumsum(np.ones(shape), 1).astype(np.uint8)):
        back = imread(io.BytesIO(gray_png(kind)))
        assert np.array_equal(np.rint(back * 255).astype(np.uint8).reshape(shape), kind)


@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 5, 7), (9, 3, 16)])
def test_every_voxel_is_where_the_script_looks(shape: tuple[int, int, int]) -> None:
    """The rule by which the page addresses voxels."""
    volume = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image, per_row = mosaic(volume)
    flat, width = image.ravel(), image.shape[1]
    for x, y, z in np.ndindex(shape):
        assert flat[(z // per_row * shape[1] + y) * width + z % per_row * shape[0] + x] == volume[x, y, z]


def test_gray_is_clipped_and_finite() -> None:
    """Low is black, high is white, and what is not finite is black or white."""
    values = np.array([-9.0, 0.0, 1.0, 2.0, 9.0, np.nan, np.inf])
    assert to_gray(values, low=0, high=2).tolist() == [0, 0, 128, 255, 255, 0, 255]
