"""What a reader says of a volume before anyone reads its values, and the checks every format shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Header:
    """Where a volume lies: ``affine`` maps voxel (x, y, z) to RAS+ millimeters; ``spacing`` is in millimeters.

    ``kind`` is nifti1, nifti2, metaimage, nrrd or dicom; ``raw`` holds the NIfTI header's own bytes, so that
    writing like it keeps every geometric field to the bit. ``slope`` and ``inter`` were applied to the values.
    """

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    spacing: tuple[float, float, float]
    dtype: str
    qform_code: int = 1
    sform_code: int = 1
    units: str = "mm"
    kind: str = "nifti1"
    slope: float = 1.0
    inter: float = 0.0
    raw: bytes = field(default=b"", repr=False)


class Fault(Exception):
    """Why a file is refused; becomes a DataError that starts with the file's name."""


def check_axes(sizes: tuple[int, ...], full: tuple[int, ...], channel: int | None) -> tuple[tuple[int, int, int], int]:
    """The 3-D shape, or a Fault that says which other shape it is."""
    if len(sizes) < 3 or min(sizes[:3]) == 1:
        raise Fault(f"2-D: shape {full} is one slice, not a volume")
    if len(sizes) > 4:
        raise Fault(f"{len(sizes)}-D: shape {full}; split it into one 3-D file per sequence")
    if len(sizes) == 4 and channel is None:
        raise Fault(
            f"4-D: shape {full} holds {sizes[3]} volumes; split it into one 3-D file per sequence "
            "(a data list may name one as file.nii.gz#0)"
        )
    if channel is not None and channel >= (sizes[3] if len(sizes) == 4 else 1):
        raise Fault(f"volume #{channel} is asked of a file of shape {full}")
    return (sizes[0], sizes[1], sizes[2]), channel or 0


def check_affine(affine: Float[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Voxel spacing in millimeters of a sound affine; a Fault where it is not finite, singular or sheared."""
    if not np.isfinite(affine).all():
        raise Fault("an affine with NaN or infinite entries; correct the header")
    steps = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if (steps < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / np.maximum(steps, 1e-6))) < 1e-3:
        raise Fault("a singular affine: two voxels would lie at one place; correct sform and qform")
    axes = affine[:3, :3] / steps
    slant = np.abs(axes.T @ axes - np.eye(3)).max()
    if slant > 5e-3:
        degrees = float(np.degrees(np.arcsin(min(slant, 1.0))))
        raise Fault(
            f"a sheared affine: axes {degrees:.1f} degrees off a right angle (a tilted gantry?); "
            "resample it to a straight grid"
        )
    return (float(steps[0]), float(steps[1]), float(steps[2]))
