"""What one file of a cohort is, reduced to facts small enough to come back from a worker process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from medmae.core.errors import DataError
from medmae.data.header import Header
from medmae.data.readers import read

LABEL, MASK = "label", "mask"
MANY = 256


@dataclass(frozen=True)
class Facts:
    """What was learned of one file; ``fault`` says why it could not be read. Affine as 16 numbers, row by row.

    ``placed`` is False for a NIfTI file whose header says of neither of its two transforms that it is valid.
    """

    fault: str | None = None
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    affine: tuple[float, ...] = ()
    axes: str = ""
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    nans: int = 0
    infinite: int = 0
    digest: str = ""
    values: tuple[float, ...] = ()
    forms_apart: float = 0.0
    placed: bool = True

    @property
    def geometry(self) -> str:
        """Shape, spacing and axis codes in one short text."""
        steps = [f"{step:.3g}" for step in self.spacing]
        size = steps[0] if len(set(steps)) == 1 else "x".join(steps)
        return f"{'x'.join(map(str, self.shape))} @ {size} mm {self.axes}"


def examine(path: str, role: str) -> Facts:
    """Read one file and reduce it to facts; whatever is wrong with it comes back as ``fault``."""
    try:
        found = read(path)
    except DataError as error:
        return Facts(fault=str(error.__cause__ or error))
    array = found.array
    finite = np.isfinite(array)
    nans = int(np.isnan(array).sum())
    sound = array if finite.all() else array[finite]
    digest = hashlib.blake2b(array.tobytes(), digest_size=16, person=b"medmae-check")
    digest.update(repr(array.shape).encode())
    values: tuple[float, ...] = ()
    if role in (LABEL, MASK):
        values = tuple(float(value) for value in np.unique(sound)[: MANY + 1])
    return Facts(
        shape=found.header.shape,
        spacing=tuple(round(step, 6) for step in found.header.spacing),  # type: ignore[arg-type]
        affine=tuple(float(number) for number in found.affine.ravel()),
        axes=_axis_codes(found.affine),
        dtype=found.header.dtype,
        low=float(sound.min()) if sound.size else 0.0,
        high=float(sound.max()) if sound.size else 0.0,
        nans=nans,
        infinite=int(array.size - finite.sum()) - nans,
        digest=digest.hexdigest(),
        values=values,
        forms_apart=_forms_apart(found.header),
        placed=found.header.qform_code > 0 or found.header.sform_code > 0,
    )


def _forms_apart(header: Header) -> float:
    """How far, in voxels, a NIfTI header's sform and qform disagree where both claim to be valid."""
    if not header.raw or header.qform_code <= 0 or header.sform_code <= 0:
        return 0.0
    import nibabel as nib

    fields = (nib.Nifti2Header if header.kind == "nifti2" else nib.Nifti1Header)(header.raw, check=False)
    try:
        gap = np.asarray(fields.get_sform() - fields.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError):
        return 0.0
    return float(np.linalg.norm(corners(header.shape) @ gap.T, axis=1).max() / min(abs(fields["pixdim"][1:4])))


def corners(shape: tuple[int, int, int]) -> np.ndarray:
    """Homogeneous voxel indices of the eight corners of a grid, one per row."""
    ends = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    ends[:, :3] *= np.asarray(shape) - 1
    return ends


def _axis_codes(affine: np.ndarray) -> str:
    import nibabel as nib

    return "".join(letter or "?" for letter in nib.aff2axcodes(affine))
