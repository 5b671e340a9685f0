"""Label files as whole numbers that are known: what a spec calls a class, and nothing else.

A value that the spec does not name is somebody's class that would be trained as background, or an interpolated border;
both must be found before training, so every value is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medmae.core.errors import DataError
from medmae.data.header import Header
from medmae.data.layouts import printable
from medmae.data.readers import Volume, read

_SHOWN = 12
_COUNTED = 65536
_NIFTI = {"nifti1": (40, "i2"), "nifti2": (16, "i8")}  # where a header says how many axes there are


def read_label(
    path: str | Path, mapping: Mapping[int, int]
) -> tuple[Volume, Shaped[np.ndarray, "x y z"], Mapping[int, int]]:
    """The label file at ``path``, its values sent through ``mapping``, and the part of ``mapping`` that was used.

    Raises:
        DataError: the file cannot be read, holds fractions, NaN, or a value that ``mapping`` does not know.
    """
    found = read(path)
    shown = printable(str(path), limit=400)
    if not np.isfinite(found.array).all():
        raise DataError(f"{shown}: a label with NaN or infinite values; is it an image?")
    whole = np.rint(found.array)
    if (whole != found.array).any():
        raise DataError(
            f"{shown}: values such as {found.array[whole != found.array].min():g} are no whole numbers: "
            "an image, or a label that was interpolated? Resample labels with nearest neighbor"
        )
    low, high = float(whole.min()), float(whole.max())
    if high - low < _COUNTED:  # counting is an order of magnitude faster than sorting
        places = (whole - low).astype(np.intp)
        there = np.bincount(places.ravel()) > 0
        values, places = np.flatnonzero(there) + low, (np.cumsum(there) - 1)[places]
    else:
        values, places = np.unique(whole, return_inverse=True)
    strange = [int(v) for v in values if int(v) not in mapping]
    if strange:
        more = ", ..." if len(strange) > _SHOWN else ""
        raise DataError(
            f"{shown}: value(s) {', '.join(map(str, strange[:_SHOWN]))}{more} are no class "
            f"({', '.join(map(str, sorted(mapping)))}): name them in label.classes, or send them to one in label.remap"
        )
    used = {int(v): mapping[int(v)] for v in values}
    kind = np.uint8 if max(used.values()) <= 255 else np.int16
    return found, np.array(list(used.values()), dtype=kind)[places.reshape(found.array.shape)], used


def plain_nifti(path: str | Path, header: Header) -> bool:
    """Whether any program reads the file as the same 3-D volume: a compressed NIfTI file with three axes."""
    if header.kind not in _NIFTI or not header.raw or not str(path).endswith(".nii.gz"):
        return False
    place, kind = _NIFTI[header.kind]
    return int(np.frombuffer(header.raw, dtype=kind, count=1, offset=place)[0]) == 3
