"""Between the grid of a file and the grid a model sees, without moving a voxel in the world.

Axis flips and permutations are done by copying, never by interpolation, so a volume that only needs them comes back
bit for bit. Everything else is linear (labels: nearest) resampling in world coordinates. Spacing is MONAI's transform;
the way back is one affine map, because MONAI's inverse needs the history of its own forward pass and a reconstruction
has to be written without one.

Affines are voxel-to-world in millimeters, the world is RAS+ as in NIfTI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from medmae.core.errors import DataError

_SPACING_TOLERANCE = 1e-3  # relative; smaller differences are rounding in headers, not another grid
_VOXEL_TOLERANCE = 1e-2  # voxels at the farthest corner

Affine = Float[np.ndarray, "4 4"]


def voxel_spacing(affine: Affine) -> tuple[float, float, float]:
    """Millimeters per voxel along each axis of the array."""
    x, y, z = (float(v) for v in np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0))
    return x, y, z


def same_grid(
    shape_a: tuple[int, ...], affine_a: Affine, shape_b: tuple[int, ...], affine_b: Affine, *, tolerance: float = 0.1
) -> bool:
    """Whether two grids put every voxel at the same place, up to ``tolerance`` voxels at the corners."""
    if tuple(shape_a) != tuple(shape_b):
        return False
    return _corner_shift(np.linalg.solve(affine_a, affine_b), shape_a, np.eye(4)) <= tolerance


def _corner_shift(transform: Affine, shape: tuple[int, ...], other: Affine) -> float:
    """The farthest that two index maps disagree over the corners of a grid, in voxels."""
    corners = np.stack(np.meshgrid(*[[0, max(n - 1, 0)] for n in shape], indexing="ij"), -1).reshape(-1, 3)
    homogeneous = np.concatenate([corners, np.ones((len(corners), 1))], 1).T
    return float(np.abs((transform - other) @ homogeneous)[:3].max())


def crop_affine(affine: Affine, start: tuple[int, ...]) -> Affine:
    """The affine of an array cut at voxel ``start``."""
    moved = np.array(affine, np.float64)
    moved[:3, 3] += moved[:3, :3] @ np.asarray(start, np.float64)
    return moved


def to_model_grid(
    volume: Any,
    *,
    orientation: str | None = "RAS",
    spacing: tuple[float, float, float] | None = None,
    like: tuple[tuple[int, ...], Affine] | None = None,
    nearest: bool = False,
) -> tuple[Shaped[np.ndarray, "x y z"], Affine]:
    """Bring a volume (anything with ``array`` [x y z] and ``affine``) to the model's grid.

    ``orientation`` are three axis codes ("RAS"; None keeps the axes), ``spacing`` millimeters (None keeps them).
    ``like`` is ``(shape, affine)`` of a grid to land on exactly and replaces both. ``nearest`` is for labels and
    masks. Returns the array and its affine. Where nothing needs interpolation the values are copied unchanged.

    Raises DataError for an affine that cannot be inverted.
    """
    array, affine = np.asarray(volume.array), np.asarray(volume.affine, np.float64)
    if array.ndim != 3:
        raise DataError(f"a volume must have three axes, this one has shape {array.shape}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"the affine cannot be inverted: {np.round(affine, 4).tolist()}; repair the file's header")
    if like is not None:
        shape, target = like
        return _resample(array, affine, tuple(shape), np.asarray(target, np.float64), nearest=nearest, outside=None)
    if orientation is not None:
        array, affine = _orient(array, affine, orientation)
    if spacing is not None:
        now = voxel_spacing(affine)
        if any(abs(a - b) > _SPACING_TOLERANCE * b for a, b in zip(now, spacing, strict=True)):
            array, affine = _respace(array, affine, spacing, nearest=nearest)
    return array, affine


def _orient(array: np.ndarray, affine: Affine, axcodes: str) -> tuple[np.ndarray, Affine]:
    """Flips and permutations as MONAI's Orientation makes them (tested), without waiting seconds for its import."""
    import nibabel.orientations

    orientations: Any = nibabel.orientations
    now, wanted = orientations.io_orientation(affine), orientations.axcodes2ornt(axcodes.upper())
    change = orientations.ornt_transform(now, wanted)
    if np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        return array, affine
    moved = orientations.apply_orientation(array, change)
    return np.ascontiguousarray(moved), affine @ orientations.inv_ornt_aff(change, array.shape)


def _respace(
    array: np.ndarray, affine: Affine, spacing: tuple[float, float, float], *, nearest: bool
) -> tuple[np.ndarray, Affine]:
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing

    change = Spacing(pixdim=spacing, mode="nearest" if nearest else "bilinear", padding_mode="border", dtype=np.float64)
    moved: Any = change(
        MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None].double(), affine=torch.from_numpy(affine))
    )
    values = moved[0].numpy()
    values = np.rint(values).astype(array.dtype) if nearest else values.astype(np.float32)
    return np.ascontiguousarray(values), np.asarray(moved.affine).astype(np.float64)


def back_to_input(
    array: Shaped[np.ndarray, "x y z"],
    model_affine: Affine,
    header: Any,
    *,
    order: int = 1,
    fill: float | int = 0.0,
) -> Shaped[np.ndarray, "u v w"]:
    """Values on the model's grid, sampled on the grid of ``header`` (``shape``, ``affine``): world positions are
    kept.

    ``order`` 1 is linear, 0 nearest (labels). Voxels of the input outside the model's grid get ``fill``. When the
    grids differ by flips, permutations and whole-voxel shifts only, the values are copied exactly.
    """
    if order not in (0, 1):
        raise ValueError(f"order must be 0 (nearest) or 1 (linear), not {order}")
    shape = tuple(int(n) for n in header.shape[:3])
    result, _ = _resample(
        np.asarray(array),
        np.asarray(model_affine, np.float64),
        shape,
        np.asarray(header.affine, np.float64),
        nearest=order == 0,
        outside=float(fill),
    )
    return result


def _resample(
    array: np.ndarray,
    affine: Affine,
    shape: tuple[int, ...],
    target: Affine,
    *,
    nearest: bool,
    outside: float | None,
) -> tuple[np.ndarray, Affine]:
    """Sample ``array`` on another grid; beyond its border the edge continues (``outside`` None) or a constant is."""
    transform = np.linalg.solve(affine, target)  # index on the target grid -> index in the array
    whole = np.rint(transform)
    if _is_signed_permutation(whole) and _corner_shift(transform, shape, whole) <= _VOXEL_TOLERANCE:
        return _copy(array, whole.astype(int), shape, outside), target
    from scipy import ndimage

    source = array if nearest else array.astype(np.float32)
    matrix, offset = transform[:3, :3], transform[:3, 3]
    if outside is None:
        return ndimage.affine_transform(
            source, matrix, offset, output_shape=shape, order=0 if nearest else 1, mode="nearest"
        ), target
    # Half a voxel beyond the outermost centers still belongs to the volume; only what is farther gets the constant.
    padded = np.pad(source, 1, mode="edge")
    inside = ndimage.affine_transform(
        padded, matrix, offset + 1, output_shape=shape, order=0 if nearest else 1, mode="nearest"
    )
    index = [
        sum(
            matrix[row, axis] * np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
            for axis in range(3)
        )
        + offset[row]
        for row in range(3)
    ]
    for axis_index, length in zip(index, array.shape, strict=True):
        inside[(axis_index < -0.5) | (axis_index > length - 0.5)] = outside
    return inside, target


def _is_signed_permutation(transform: Affine) -> bool:
    linear = np.abs(transform[:3, :3])
    return bool((linear.sum(0) == 1).all() and (linear.sum(1) == 1).all() and (linear <= 1).all())


def _copy(array: np.ndarray, transform: np.ndarray, shape: tuple[int, ...], outside: float | None) -> np.ndarray:
    """Exact move by flips, permutation and a whole-voxel shift."""
    source_axes = [int(np.abs(transform[:3, axis]).argmax()) for axis in range(3)]  # target axis -> array axis
    moved = array.transpose(source_axes)
    takes, inside = [], []
    for axis, source in enumerate(source_axes):
        index = transform[source, axis] * np.arange(shape[axis]) + transform[source, 3]
        inside.append((index >= 0) & (index < array.shape[source]))
        takes.append(np.clip(index, 0, array.shape[source] - 1))
    result = np.ascontiguousarray(moved[np.ix_(*takes)])
    if outside is not None:
        for axis, keep in enumerate(inside):
            if not keep.all():
                result[(slice(None),) * axis + (~keep,)] = outside
    return result
