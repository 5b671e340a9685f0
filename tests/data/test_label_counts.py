"""Voxels per class, and every fault of every label at once."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmae.core.errors import DataError
from medmae.data.cohort import Case
from medmae.data.label_counts import label_counts
from medmae.data.spec import Label

LABEL = Label(classes={"background": 0, "edema": 1, "core": 2}, remap={4: 2})


def put(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def case(folder: Path, key: str, label: np.ndarray | None) -> Case:
    image = put(folder / f"{key}_t1n.nii.gz", np.random.default_rng(0).random((5, 4, 3)).astype(np.float32))
    return Case(key, key, {"t1n": image}, None if label is None else put(folder / f"{key}.nii.gz", label))


def labeled(*values: int) -> np.ndarray:
    array = np.zeros((5, 4, 3), np.uint8)
    array.ravel()[: len(values)] = values
    return array


@pytest.mark.parametrize("workers", [0, 2])
def test_values_are_counted_after_the_remap(tmp_path: Path, workers: int) -> None:
    cases = [case(tmp_path, "a", labeled(1, 1, 4, 2)), case(tmp_path, "b", None), case(tmp_path, "c", labeled())]
    found = label_counts(cases, LABEL, workers=workers)
    assert found == {"a": {0: 56, 1: 2, 2: 2}, "c": {0: 60}}
    twice = [cases[0], Case("again", "again", cases[0].images, cases[0].label)]
    assert label_counts(twice, LABEL) == {"a": found["a"], "again": found["a"]}


def test_every_fault_is_told(tmp_path: Path) -> None:
    cases = [
        case(tmp_path, "strange", labeled(7)),
        case(tmp_path, "half", labeled(1).astype(np.float32) / 2),
        case(tmp_path, "small", labeled(1)[:-1]),
        case(tmp_path, "fine", labeled(1)),
    ]
    with pytest.raises(DataError, match="3 of 4 label") as found:
        label_counts(cases, LABEL)
    for words in ("case strange", "value(s) 7 are no class", "case half", "case small", "not on the grid"):
        assert words in str(found.value)
    assert label_counts(cases[2:], LABEL, same_grid=False)["small"] == {0: 47, 1: 1}
    with pytest.raises(DataError, match="none of 1 case"):
        label_counts([case(tmp_path, "none", None)], LABEL)
