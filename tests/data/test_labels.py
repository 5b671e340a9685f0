"""Label files: every value is looked at."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmae.core.errors import DataError
from medmae.data.labels import plain_nifti, read_label
from medmae.data.readers import inspect


def save(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def label(*values: float) -> np.ndarray:
    array = np.zeros((6, 5, 4), np.float32)
    array.flat[: len(values)] = values
    return array


def test_values_are_sent_all_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "seg.nii.gz", label(1, 2, 4))
    _, classes, used = read_label(path, {0: 0, 1: 2, 2: 1, 4: 3, 7: 9})
    assert classes.dtype == np.uint8
    assert classes.flat[:4].tolist() == [2, 1, 3, 0]
    assert used == {0: 0, 1: 2, 2: 1, 4: 3}


@pytest.mark.parametrize(
    ("values", "words"),
    [((1, 3), "value(s) 3 are no class"), ((0.5,), "whole numbers"), ((np.nan,), "NaN"), ((-1,), "value(s) -1")],
)
def test_what_may_not_be_in_a_label(tmp_path: Path, values: tuple[float, ...], words: str) -> None:
    path = save(tmp_path / "seg.nii.gz", label(*values))
    with pytest.raises(DataError) as error:
        read_label(path, {0: 0, 1: 1})
    assert words in str(error.value)
    assert "seg.nii.gz" in str(error.value)


def test_files_that_any_program_reads_alike(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii.gz", label(1))
    four = save(tmp_path / "b.nii.gz", label(1)[..., None])
    bare = save(tmp_path / "c.nii", label(1))
    assert [plain_nifti(path, inspect(path)) for path in (plain, four, bare)] == [True, False, False]
