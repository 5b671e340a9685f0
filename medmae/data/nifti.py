"""NIfTI files that overlay exactly on the image they are made like.

The geometric fields are copied as bytes from the original header (affine, qform and sform with their codes, units),
never recomputed, because a round trip through quaternions already moves voxels by a rounding error.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medmae.atomic import write_bytes
from medmae.core.errors import UsageError
from medmae.data.header import Header

_UNIT_CODES = {"": 0, "m": 1, "mm": 2, "um": 3}


def write_like(
    path: str | Path,
    array: Shaped[np.ndarray, "x y z"],
    header: Header,
    *,
    description: str = "",
    dtype: str | np.dtype = "float32",
) -> Path:
    """Write ``array`` (x, y, z) on the grid of ``header`` as .nii or .nii.gz, whole or not at all; returns the path.

    Shape, affine, qform and sform with their codes and units are those of ``header``; ``description`` goes into the
    header's 80 bytes for it. Nothing else of the original header is kept: no patient or scanner text travels along.
    Raises UsageError where the shape or the file name does not fit, or where ``dtype`` cannot hold the values.
    """
    import nibabel as nib

    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path}: results are written as NIfTI; give a name that ends in .nii.gz or .nii.")
    if tuple(array.shape) != tuple(header.shape):
        raise UsageError(
            f"{path}: an array of shape {tuple(array.shape)} cannot be written on a grid of shape {header.shape}."
        )
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        rounded = np.rint(array)
        if not np.isfinite(rounded).all() or rounded.min() < limits.min or rounded.max() > limits.max:
            raise UsageError(
                f"{path}: values do not fit {kind.name} ({limits.min} to {limits.max}); write float32 instead."
            )
        array = rounded
    fields = _fields(header)
    fields.set_data_shape(header.shape)
    fields.set_data_dtype(kind)
    fields["descrip"] = description.encode("ascii", "replace")[:79]
    large = isinstance(fields, nib.Nifti2Header)
    image = (nib.Nifti2Image if large else nib.Nifti1Image)(np.asarray(array, dtype=kind), None, fields)
    write_bytes(path, _packed(image.to_bytes(), path))
    return path


def write_affine(
    path: str | Path,
    array: Shaped[np.ndarray, "x y z"],
    affine: np.ndarray,
    *,
    description: str = "",
    dtype: str | np.dtype = "float32",
) -> Path:
    """Write ``array`` with a plain RAS+ ``affine`` in millimeters (scanner codes), whole or not at all."""
    steps = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
    x, y, z = (int(size) for size in array.shape)
    place = Header(
        shape=(x, y, z),
        affine=np.asarray(affine, dtype=np.float64),
        spacing=(float(steps[0]), float(steps[1]), float(steps[2])),
        dtype=str(dtype),
    )
    return write_like(path, array, place, description=description, dtype=dtype)


def _fields(header: Header):  # type: ignore[no-untyped-def]
    """A nibabel header that holds the geometry of ``header`` and nothing else."""
    import nibabel as nib

    if header.raw:
        maker = nib.Nifti2Header if header.kind == "nifti2" else nib.Nifti1Header
        old = maker(header.raw, check=False)
        new = maker()
        for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"):
            new[name] = old[name]
        for name in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):
            new[name] = old[name]
        new["pixdim"][:4] = old["pixdim"][:4]
        new["pixdim"][1:4] = np.abs(new["pixdim"][1:4])
        return new
    new = nib.Nifti1Header()
    new.set_data_shape(header.shape)
    new.set_qform(header.affine, code=max(header.qform_code, 0) or None, strip_shears=True)
    new.set_sform(header.affine, code=header.sform_code or 1)
    new["xyzt_units"] = _UNIT_CODES.get(header.units, 2)
    return new


def _packed(data: bytes, path: Path) -> bytes:
    """Compressed where the name ends in .gz, without a time stamp or a name: equal images are equal files."""
    return gzip.compress(data, compresslevel=4, mtime=0) if path.name.lower().endswith(".gz") else data
