"""Voxels stay where they are in the world, whatever the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes import affines

from medmae.core.errors import DataError
from medmae.data.geometry import back_to_input, crop_affine, same_grid, to_model_grid, voxel_spacing


@dataclass(frozen=True)
class Grid:
    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


def linear_field(shape: tuple[int, ...], affine: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """A field that is linear in world coordinates: linear resampling must reproduce it wherever it interpolates."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return ((index @ affine[:3, :3].T + affine[:3, 3]) @ slope).astype(np.float32)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "AIR", "SPL"])
def test_orientation_is_monais(axes: str):
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    affine = np.array([[0.1, -1.5, 0, 9], [1, 0.1, 0.2, 8], [-0.2, 0.1, 2, 7], [0, 0, 0, 1]])
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    truth = Orientation(axcodes=axes)(MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine)))
    moved, moved_affine = to_model_grid(Grid(array, affine), orientation=axes)
    assert np.array_equal(moved, truth[0].numpy())
    assert np.allclose(moved_affine, truth.affine.numpy(), atol=1e-6)


shapes = st.tuples(*[st.integers(5, 11)] * 3)


@given(affine=affines(oblique=True), shape=shapes, axes=st.sampled_from(["RAS", "LPS", "AIR", "SPL"]))
@settings(max_examples=40, deadline=None)
def test_orientation_round_trip_is_exact_even_when_oblique(affine: np.ndarray, shape: tuple[int, ...], axes: str):
    import nibabel

    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    moved, moved_affine = to_model_grid(Grid(array, affine), orientation=axes)
    assert "".join(nibabel.aff2axcodes(moved_affine)) == axes
    assert sorted(moved.ravel()) == sorted(array.ravel())
    assert np.array_equal(back_to_input(moved, moved_affine, Grid(array, affine)), array)
    # each value is where it was in the world
    where = np.argwhere(moved == array[1, 2, 3])[0]
    world = affine @ [1, 2, 3, 1]
    assert np.allclose(moved_affine @ [*where, 1], world, atol=1e-3)


@given(affine=affines(oblique=True), shape=shapes, spacing=st.tuples(*[st.floats(0.7, 3.0)] * 3))
@settings(max_examples=40, deadline=None)
def test_spacing_keeps_world_positions(affine: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]):
    slope = np.array([0.3, -0.2, 0.5])
    field = linear_field(shape, affine, slope)
    moved, moved_affine = to_model_grid(Grid(field, affine), orientation="RAS", spacing=spacing)
    assert np.allclose(voxel_spacing(moved_affine), spacing, rtol=1.1e-3)  # closer is taken for rounding
    truth = linear_field(moved.shape, moved_affine, slope)
    corner = np.linalg.inv(affine) @ moved_affine
    index = (
        np.stack(np.meshgrid(*[np.arange(n) for n in moved.shape], indexing="ij"), -1) @ corner[:3, :3].T
        + corner[:3, 3]
    )
    inside = ((index >= -1e-6) & (index <= np.array(shape) - 1 + 1e-6)).all(-1)
    assert inside.any()
    assert np.allclose(moved[inside], truth[inside], atol=2e-3)


@given(model=affines(oblique=True), given_=affines(oblique=True), shape=shapes)
@settings(max_examples=40, deadline=None)
def test_back_to_input_keeps_world_positions(model: np.ndarray, given_: np.ndarray, shape: tuple[int, ...]):
    given_[:3, 3] = model[:3, 3]  # so that they overlap
    slope = np.array([0.3, -0.2, 0.5])
    field = linear_field(shape, model, slope)
    target = Grid(np.zeros((9, 8, 7), np.float32), given_)
    back = back_to_input(field, model, target, fill=-999)
    assert back.shape == target.shape
    corner = np.linalg.inv(model) @ given_
    index = (
        np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), -1) @ corner[:3, :3].T
        + corner[:3, 3]
    )
    inside = ((index >= 0) & (index <= np.array(shape) - 1)).all(-1)
    outside = ((index < -0.51) | (index > np.array(shape) - 0.49)).any(-1)
    assert np.allclose(back[inside], linear_field(target.shape, given_, slope)[inside], atol=2e-3)
    assert (back[outside] == -999).all()


@given(affine=affines(oblique=True), shape=shapes)
@settings(max_examples=25, deadline=None)
def test_a_crop_and_a_flip_come_back_exactly(affine: np.ndarray, shape: tuple[int, ...]):
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    moved, moved_affine = to_model_grid(Grid(array, affine), orientation="LPI")
    cut = moved[1:-1, 2:, :-1]
    back = back_to_input(cut, crop_affine(moved_affine, (1, 2, 0)), Grid(array, affine), fill=7)
    kept = back != 7.0
    assert kept.sum() == cut.size
    assert np.array_equal(back[kept], array[kept])


def test_labels_are_never_mixed():
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    label = np.random.default_rng(0).integers(0, 5, (12, 12, 6)).astype(np.float32) * 3
    moved, moved_affine = to_model_grid(Grid(label, affine), orientation="RAS", spacing=(1.5, 1.5, 1.5), nearest=True)
    assert set(np.unique(moved)) <= set(np.unique(label))
    back = back_to_input(moved, moved_affine, Grid(label, affine), order=0)
    assert set(np.unique(back)) <= set(np.unique(label))


def test_landing_on_another_grid():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    slope = np.array([1.0, 2.0, -1.0])
    source = Grid(linear_field((10, 10, 10), affine, slope), affine)
    target = np.diag([1.0, 1.0, 1.0, 1.0])
    target[:3, 3] = 3
    moved, _ = to_model_grid(source, like=((8, 9, 10), target))
    assert np.allclose(moved, linear_field((8, 9, 10), target, slope), atol=1e-4)


def test_same_grid_tolerates_rounding_only():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    near, far = affine.copy(), affine.copy()
    near[0, 3], far[0, 3] = 0.01, 1.0
    assert same_grid((9, 9, 9), affine, (9, 9, 9), near)
    assert not same_grid((9, 9, 9), affine, (9, 9, 9), far)
    assert not same_grid((9, 9, 9), affine, (9, 9, 8), affine)


def test_faults_are_named():
    with pytest.raises(DataError, match="cannot be inverted"):
        to_model_grid(Grid(np.zeros((3, 3, 3), np.float32), np.diag([1.0, 0.0, 1.0, 1.0])))
    with pytest.raises(DataError, match="three axes"):
        to_model_grid(Grid(np.zeros((3, 3), np.float32), np.eye(4)))
    with pytest.raises(ValueError, match="order"):
        back_to_input(np.zeros((3, 3, 3), np.float32), np.eye(4), Grid(np.zeros((3, 3, 3)), np.eye(4)), order=3)
