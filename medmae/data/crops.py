"""Reading a crop of a cached case, from compressed blocks or from a memory map.

A reader keeps a few files open per process (a fork starts with none: an inherited file would share its position).
A crop that reaches over the border of the volume is padded: images with the stored zero, foreground with 0, so that
padding is never mistaken for tissue.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int16, Shaped, UInt8

from medmae.atomic import replacing
from medmae.core.errors import DataError, UsageError
from medmae.data.cache import Entry

_OPEN = 64


class CropReader:
    """Crops of cached entries; ``tier`` "disk" reads blosc2, "memory" maps the uncompressed twins."""

    def __init__(self, *, tier: str = "disk") -> None:
        if tier not in ("disk", "memory"):
            raise UsageError(f"a crop reader's tier is disk or memory, not {tier!r}")
        self._tier = tier
        self._files: OrderedDict[Path, Any] = OrderedDict()
        self._points: dict[str, np.ndarray] = {}
        self._labeled: dict[str, np.ndarray] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_tier": self._tier, "_files": OrderedDict(), "_points": {}, "_labeled": {}, "_process": -1}

    def points(self, entry: Entry) -> Int[np.ndarray, "k 3"]:
        """Foreground voxels of an entry, to center crops on."""
        found = self._points.get(entry.key)
        if found is None:
            found = self._points[entry.key] = np.load(entry.folder / "points.npy")
        return found

    def labeled(self, entry: Entry) -> Int[np.ndarray, "k 3"]:
        """Voxels of an entry that have a class above 0, at most 4096 of them evenly spread, to center crops on."""
        found = self._labeled.get(entry.key)
        if found is None:
            found = np.zeros((0, 3), np.int32)
            if entry.label is not None:
                found = np.argwhere(np.asarray(self._open(entry, "label")[:]) > 0).astype(np.int32)
            self._labeled[entry.key] = found = found[:: max(1, len(found) // 4096)]
        return found

    def images(
        self, entry: Entry, sequences: tuple[str, ...], start: tuple[int, int, int], out: Int16[np.ndarray, "m x y z"]
    ) -> None:
        """Fill ``out`` with the crop at ``start``, one row per sequence; rows of sequences the entry lacks are 0."""
        source, target, whole = _overlap(entry.shape, start, out.shape[1:])
        file = self._open(entry, "images")
        for row, name in enumerate(sequences):
            if name not in entry.sequences:
                out[row] = 0
                continue
            if not whole:
                out[row] = 0
            out[row][target] = file[(entry.sequences.index(name), *source)]

    def foreground(self, entry: Entry, start: tuple[int, int, int], out: UInt8[np.ndarray, "x y z"]) -> None:
        """Fill ``out`` with the foreground of the crop (0 in padding)."""
        self._plane(entry, "foreground", start, out)

    def label(self, entry: Entry, start: tuple[int, int, int], out: Shaped[np.ndarray, "x y z"]) -> None:
        """Fill ``out`` with the label of the crop; 0 in padding and where the case has none."""
        if entry.label is None:
            out[...] = 0
            return
        self._plane(entry, "label", start, out)

    def _plane(self, entry: Entry, name: str, start: tuple[int, int, int], out: np.ndarray) -> None:
        source, target, whole = _overlap(entry.shape, start, out.shape)
        if not whole:
            out[...] = 0
        out[target] = self._open(entry, name)[source]

    def _open(self, entry: Entry, name: str) -> Any:
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        path = entry.folder / f"{name}.{'b2nd' if self._tier == 'disk' else 'npy'}"
        file = self._files.get(path)
        if file is None:
            try:
                file = _open_blosc(path) if self._tier == "disk" else np.load(path, mmap_mode="r")
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"{path}: the cached file cannot be opened ({error}); prepare the cache again"
                ) from error
            self._files[path] = file
            if len(self._files) > _OPEN:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(path)
        return file


def _open_blosc(path: Path) -> Any:
    import blosc2

    blosc2.set_nthreads(1)
    return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})


def _overlap(
    shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...], bool]:
    """Where a crop meets the volume: slices of the volume, slices of the crop, and whether the crop is covered."""
    source, target, whole = [], [], True
    for n, s, length in zip(shape, start, size, strict=True):
        low, high = max(s, 0), min(s + length, n)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - s, max(high, low) - s))
        whole = whole and low == s and high == s + length
    return tuple(source), tuple(target), whole


def make_memory_twins(entry: Entry) -> None:
    """Write the uncompressed twins of an entry's arrays that are not there yet, each atomically."""
    for name in ("images", "foreground", *(("label",) if entry.label is not None else ())):
        path = entry.folder / f"{name}.npy"
        if path.exists():
            continue
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, _open_blosc(entry.folder / f"{name}.b2nd")[:])


def resident(
    entry: Entry, sequences: tuple[str, ...]
) -> tuple[Int16[np.ndarray, "m x y z"], UInt8[np.ndarray, "x y z"]]:
    """All of an entry: images of the sequences it has, in the order of ``sequences``, and its foreground."""
    images = _open_blosc(entry.folder / "images.b2nd")
    rows = [entry.sequences.index(name) for name in sequences if name in entry.sequences]
    return np.stack([images[row] for row in rows]), _open_blosc(entry.folder / "foreground.b2nd")[:]
