"""A labeled toy cohort, a stand-in for a trained nnU-Net model, and predictions, for the tests of segmentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "transfer" / "nnunet"))

from cohorts import AFFINE, PLAIN, REGIONS, SIZE, label_of, make, put

__all__ = ["AFFINE", "PLAIN", "REGIONS", "SIZE", "label_of", "make", "model_folder", "put", "values"]


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def model_folder(folder: Path, *, sequences: tuple[str, ...] = ("t1n", "t2w")) -> Path:
    """What nnU-Net leaves beside its weights."""
    folder = folder / "MedMAETrainer__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    dataset = {
        "channel_names": {str(i): name for i, name in enumerate(sequences)},
        "labels": {"background": 0, "edema": 1, "core": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    plans = {
        "plans_name": "nnUNetPlans",
        "configurations": {"3d_fullres": {"normalization_schemes": ["ZScoreNormalization"] * len(sequences)}},
        "foreground_intensity_properties_per_channel": {},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder
