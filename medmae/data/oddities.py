"""What is odd about the voxels of a case but stops nothing: found while preparing, told once for the whole cohort.

``medmae data check`` reads every file and judges it; preparation reads every file, too, and training may start without
a check. So the worst is noticed in passing, kept with the prepared case, and said in one line per kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

CONSTANT = "constant"
NOT_FINITE = "not finite"
_MANY = 64
_ADVICE = "run `medmae data check`"


def oddity(array: Shaped[np.ndarray, "x y z"]) -> str | None:
    """:data:`CONSTANT` for an image without information (one finite value, or none), :data:`NOT_FINITE` for one with
    NaN or infinite voxels, else None."""
    finite = np.isfinite(array)
    sound = array if finite.all() else array[finite]
    if sound.size == 0 or sound.min() == sound.max():
        return CONSTANT
    return None if finite.all() else NOT_FINITE


def label_values(array: Shaped[np.ndarray, "x y z"]) -> tuple[float, ...]:
    """The values of a label file, ascending; at most 65 of them, for whoever has more holds no classes."""
    found = np.unique(array[np.isfinite(array)])
    return tuple(float(value) for value in found[: _MANY + 1])


def voxel_hash(volume: Any) -> str:
    """16 hexadecimal digits of a volume's values and place (``array`` [x y z], ``affine``): the same for one image
    saved as .nii and .nii.gz, or as integers and as floats of the same values."""
    values = np.ascontiguousarray(volume.array, np.float32) + np.float32(0)  # turns -0 into 0
    place = np.round(np.asarray(volume.affine, np.float64), 3) + 0.0
    digest = hashlib.sha256(f"{values.shape}{place.tolist()}".encode())
    digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def remarks(cases: Sequence[Any], entries: Sequence[Any], spec: Any) -> list[str]:
    """One line per kind of oddity with the number of images and up to three cases; empty where there is nothing.

    ``entries`` are the prepared ``cases``, None where one was left out. A label value is odd that the ``label`` of
    ``spec`` does not know.
    """
    legal = getattr(getattr(spec, "label", None), "file_values", None)
    constant, infinite, labels = [], [], []
    strange: set[float] = set()
    for case, entry in zip(cases, entries, strict=True):
        if entry is None:
            continue
        constant += [case.key for kind in entry.odd.values() if kind == CONSTANT]
        infinite += [case.key for kind in entry.odd.values() if kind == NOT_FINITE]
        unknown = set() if legal is None else set(entry.label_values) - legal
        strange |= unknown
        labels += [case.key] if unknown else []
    shown = ", ".join(f"{value:g}" for value in sorted(strange)[:6]) + (", ..." if len(strange) > 6 else "")
    return [
        f"{len(found)} {what} ({_some(found)}); {_ADVICE}"
        for found, what in (
            (constant, "image(s) with one value only: taken as missing"),
            (infinite, "image(s) with NaN or infinite voxels: those voxels count as background"),
            (labels, f"label(s) with values that the spec does not know ({shown}): kept as they are"),
        )
        if found
    ]


def _some(keys: Iterable[str]) -> str:
    from medmae.data.layouts import printable

    names = list(dict.fromkeys(keys))
    return ", ".join(printable(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
