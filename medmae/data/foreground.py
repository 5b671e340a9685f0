"""Where the patient is, found once per case and carried along ever after.

"Zero is background" is false in real files: skull-stripped volumes have been normalized afterwards, so their
background is any constant, often negative and different in every file; resampled ones ring around it; others are
not stripped and their background is noisy air. So the estimate asks the border of the volume first. If one value
dominates there, background is that value; otherwise a threshold between air and tissue is sought in the smoothed
histogram. A mask that comes with the data always wins over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

_DOMINANT = 0.2  # share of the border that one value must fill to be called the background
_RINGING = 1e-3  # share of the robust range within which a value still counts as that constant
_SMALLEST = 1e-3  # share of the volume; a smaller estimate is taken for a failure
_BINS = 256


def estimate_foreground(array: Float[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Foreground of one volume whatever its background is: zero, any constant, negative, or noise.

    Non-finite voxels are background. A volume without visible background is foreground everywhere.
    """
    finite = np.isfinite(array)
    values = np.where(finite, array, np.float32(0)).astype(np.float32)
    if not finite.any() or values.min() == values.max():
        return np.ones(array.shape, bool)
    constant = _border_constant(values[_border(array.shape) & finite])
    if constant is not None:
        low, high = np.percentile(values[::2, ::2, ::2], [0.5, 99.5])
        spread = float(high - low) or float(values.max() - values.min())
        raw = np.abs(values - constant) > max(_RINGING * spread, 1e-12)
    else:
        smooth = _smoothed(values)
        raw = smooth > _otsu(smooth[finite])
    mask = _largest_filled(raw & finite)
    if mask.mean() < _SMALLEST:
        return np.ones(array.shape, bool)
    return mask


def nonzero(arrays: Iterable[Float[np.ndarray, "x y z"]]) -> Bool[np.ndarray, "x y z"]:
    """Where any sequence is not 0, with what that encloses: the foreground of programs for which 0 is background."""
    from scipy import ndimage

    mask = np.asarray(ndimage.binary_fill_holes(combine(array != 0 for array in arrays)), bool)
    return mask if mask.any() else ~mask


def combine(masks: Iterable[Bool[np.ndarray, "x y z"]]) -> Bool[np.ndarray, "x y z"]:
    """One foreground for a case: what any of its sequences shows (fields of view may be cut differently)."""
    result: np.ndarray | None = None
    for mask in masks:
        result = mask.copy() if result is None else result | mask
    if result is None:
        raise ValueError("a case without sequences has no foreground")
    return result


def bounding_box(
    mask: Bool[np.ndarray, "x y z"], *, margin: int = 0
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """First and one-past-last voxel of the foreground on each axis, widened by ``margin``; all of an empty mask."""
    starts, stops = [], []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, mask.shape[axis])
        starts.append(max(0, first - margin))
        stops.append(min(mask.shape[axis], last + margin))
    return (starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2])


def spread_points(mask: Bool[np.ndarray, "x y z"], *, count: int = 4096) -> Int[np.ndarray, "k 3"]:
    """At most ``count`` foreground voxels, evenly taken in an order scattered over the volume: centers for crops."""
    flat = np.flatnonzero(mask)
    if len(flat) == 0:
        return np.asarray([[n // 2 for n in mask.shape]], np.int32)
    if len(flat) > count:
        flat = flat[np.linspace(0, len(flat) - 1, count).astype(np.int64)]
    return np.stack(np.unravel_index(flat, mask.shape), -1).astype(np.int32)


def _border(shape: Sequence[int]) -> Bool[np.ndarray, "x y z"]:
    border = np.zeros(tuple(shape), bool)
    for axis in range(3):
        if shape[axis] < 16 and max(shape) >= 16:
            continue  # a thin slab's large faces lie inside the patient
        face = [slice(None)] * 3
        for side in (0, -1):
            face[axis] = side  # type: ignore[call-overload]
            border[tuple(face)] = True
    return border


def _border_constant(values: Shaped[np.ndarray, " k"]) -> float | None:
    if len(values) == 0:
        return None
    found, counts = np.unique(values, return_counts=True)
    best = int(counts.argmax())
    if counts[best] >= _DOMINANT * len(values):
        return float(found[best])
    return None


def _smoothed(values: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    from scipy import ndimage

    size = tuple(3 if n >= 16 else 1 for n in values.shape)
    return np.asarray(ndimage.uniform_filter(values, size=size, mode="nearest"))


def _otsu(values: Float[np.ndarray, " k"]) -> float:
    """The threshold that separates two classes best (Otsu, 1979), on a histogram clipped to the 99.5th percentile."""
    low, high = (float(v) for v in np.percentile(values, [0.0, 99.5]))
    if high <= low:
        return low
    counts, edges = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    sum_below = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sum_below / below - (sum_below[-1] - sum_below) / above
        between = np.nan_to_num(below * above * gap**2)
    return float(edges[int(between.argmax()) + 1])


def _largest_filled(mask: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Keep components of at least a tenth of the largest one, and fill what they enclose."""
    from scipy import ndimage

    if not mask.any():
        return mask
    (x0, y0, z0), (x1, y1, z1) = bounding_box(mask)
    inner = mask[x0:x1, y0:y1, z0:z1]
    labels, count = ndimage.label(inner)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        inner = (sizes >= 0.1 * sizes.max())[labels]
    result = np.zeros_like(mask)
    result[x0:x1, y0:y1, z0:z1] = ndimage.binary_fill_holes(inner)
    return result
