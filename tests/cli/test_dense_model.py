"""A label map goes back to where its image came from."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medmae.cli.dense_model import Segmenter, write_labels
from medmae.data.inference import load_case
from medmae.transfer.label_map import LabelMap

MEANING = LabelMap("classes", ("ball", "shell"), ((1,), (3,)), (1, 3), {"ball": 1, "shell": 3})
SHAPE = (40, 30, 16)


def affine(kind: str) -> np.ndarray:
    steps = np.diag([1.0, 1.5, 3.0])
    if kind == "flipped":
        steps = steps * np.array([-1, 1, -1])
    if kind == "permuted":
        steps = steps[:, [2, 0, 1]] * np.array([1, -1, 1])[:, None]
    if kind == "oblique":
        a, b = 0.4, -0.3
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        steps = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]) @ steps
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = steps, (7.0, -11.0, 3.5)
    return found


@pytest.mark.parametrize("kind", ["plain", "flipped", "permuted", "oblique"])
@pytest.mark.parametrize("spacing", [None, [2.0, 2.0, 2.0]])
def test_the_position_of_a_label_is_kept(tmp_path: Path, kind: str, spacing: list[float] | None) -> None:
    place = affine(kind)
    steps = np.linalg.norm(place[:3, :3], axis=0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    center = np.array(SHAPE) / 2 - 0.5
    radius = np.linalg.norm((index - center) * steps, axis=-1)
    label = np.where(radius < 8, 1, np.where(radius < 12, 3, 0)).astype(np.uint8)
    image = (np.random.default_rng(0).random(SHAPE) * 100 + 50).astype(np.float32)
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, place), tmp_path / f"{name}.nii.gz")
    preprocess = {"orientation": "RAS", "spacing": spacing, "crop": "foreground", "foreground": "all"}
    case = load_case({"t1n": tmp_path / "image.nii.gz"}, preprocess, label=tmp_path / "label.nii.gz")
    one_hot = torch.stack([torch.from_numpy((case.label == value).astype(np.float32)) for value in (1, 3)])
    found = Segmenter(None, MEANING).labels(one_hot, case)
    assert found.dtype == np.uint8
    assert found.shape == SHAPE
    if spacing is None:
        np.testing.assert_array_equal(found, label)
    # nearest there and nearest back: no border moves farther than half a diagonal of either grid's voxel
    limit = (np.linalg.norm(steps) + np.linalg.norm(case.spacing)) / 2
    for value in (1, 3):
        inside, now = label == value, found == value
        depth = ndimage.distance_transform_edt(inside, sampling=steps) + ndimage.distance_transform_edt(
            ~inside, sampling=steps
        )
        assert float(depth[inside != now].max(initial=0)) <= limit
        overlap = 2 * (inside & now).sum() / (inside.sum() + now.sum())
        assert overlap > 0.8
        gone = np.argwhere(now).mean(0) - np.argwhere(inside).mean(0)
        # nor does the whole: where centers fall between centers, nearest leans to one side by half a voxel at most
        assert float(np.linalg.norm(gone * steps)) < max(case.spacing) / 2
    write_labels(tmp_path / "out.nii.gz", found, case)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, nib.load(tmp_path / "image.nii.gz").affine)
