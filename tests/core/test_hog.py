"""The HOG target: orientations, normalization and cell order on images whose gradients are known."""

from __future__ import annotations

import math

import pytest
import torch

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.target import Hog


def hog(image, patch, **options):
    grid = Grid(tuple(image.shape[2:]), patch, image.shape[1])
    return Hog(grid, **options)(ModalityGrid(("image",), grid)({"image": image}))


@pytest.mark.parametrize("degrees", [0, 20, 40, 100, 160])
def test_a_ramp_votes_for_its_own_orientation(degrees):
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = (columns * math.cos(angle) + rows * math.sin(angle))[None, None]
    votes = hog(ramp, (32, 32))[0, 0].view(4, 4, 9)[1:-1, 1:-1]  # mirrored borders have other gradients
    assert (votes.argmax(-1) == degrees // 20).all()
    torch.testing.assert_close(votes.norm(dim=-1), torch.ones(2, 2))


def test_contrast_does_not_matter_and_a_flat_image_has_no_orientation():
    image = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(hog(image, (16, 16)), hog(5 * image + 3, (16, 16)), atol=1e-4, rtol=1e-4)
    assert hog(torch.ones(1, 1, 16, 16), (16, 16)).abs().max() == 0


def test_cells_are_in_row_major_order_and_channels_come_first():
    image = torch.zeros(1, 2, 16, 16)
    image[0, 1, 2:6, 10:14] = torch.randn(4, 4)  # second channel, first cell row, second cell column
    cells = hog(image, (16, 16))[0, 0].view(2, 2, 2, 9).norm(dim=-1)
    assert cells.argmax() == cells.new_tensor([1 * 4 + 0 * 2 + 1])


def test_depth_is_pooled_in_the_cell():
    volume = torch.randn(1, 1, 4, 16, 16)
    assert hog(volume, (4, 16, 16)).shape == (1, 1, 4 * 9)
    torch.testing.assert_close(hog(volume.flip(2), (4, 16, 16)), hog(volume, (4, 16, 16)))


def test_cells_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        Hog(Grid((16, 16), (4, 4)))
