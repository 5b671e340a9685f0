"""A raw data set of nnU-Net on disk."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from small_unets import dataset_of

from medmae.transfer.nnunet.folders import Folders

NAME = "Dataset901_Tiny"


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def raw_dataset(folders: Folders, cases: int = 3) -> Path:
    folder = folders.raw / NAME
    draw = np.random.default_rng(0)
    for i in range(cases):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:9, 5:9, 6:10], label[5, 6, 7] = 1, 2
        for k in range(2):
            image = draw.normal(100, 10, label.shape) + 50 * (label > 0)
            put(folder / "imagesTr" / f"case{i}_{k:04d}.nii.gz", image.astype(np.float32))
        put(folder / "labelsTr" / f"case{i}.nii.gz", label)
    (folder / "dataset.json").write_text(json.dumps(dataset_of()))
    return folder
