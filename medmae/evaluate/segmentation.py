"""How well a segmentation overlaps and how far its surface is off, per class or region, in millimeters.

The numbers are MONAI's (Dice, Hausdorff distance, surface Dice); what is decided here is what is measured and what
counts where nothing is there to be measured, since published tables differ in that more than in anything else:

- ``score`` (default, as in the BraTS challenges): a class that is absent and was not predicted is a success (Dice 1,
  HD95 0 mm, NSD 1). One that was missed whole or invented counts with Dice 0, NSD 0 and, as distance, the diagonal of
  the image.
- ``skip`` (as in nnU-Net's own summary): absent and not predicted is no measurement. Missed whole or invented counts
  with Dice 0 and NSD 0; the distance is no measurement.

HD95 is the larger of the 95th percentiles of the distances from either surface to the other. NSD is the share of both
surfaces that lies within a tolerance of the other. A surface is the outermost voxels of a region.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped

Region = Bool[np.ndarray, "x y z"]
Labels = Shaped[np.ndarray, "x y z"]
Empty = Literal["score", "skip"]

METRICS = ("dice", "hd95", "nsd")
HIGHER_IS_BETTER = {"dice": True, "hd95": False, "nsd": True}
UNITS = {"dice": "Dice", "hd95": "HD95 (mm)", "nsd": "NSD"}
TOLERANCE = 1.0


@dataclass(frozen=True)
class Target:
    """A class or region to be measured.

    Attributes:
        name: of the class or region.
        reference: the values in a reference that belong to it.
        prediction: the values in a prediction that do.
    """

    name: str
    reference: tuple[int, ...]
    prediction: tuple[int, ...]


def measure(
    prediction: Labels,
    reference: Labels,
    targets: Sequence[Target],
    *,
    spacing: tuple[float, float, float],
    tolerance: float = TOLERANCE,
    empty: Empty = "score",
    ignore: int | None = None,
) -> dict[str, dict[str, float]]:
    """Target -> metric -> value.

    Args:
        prediction: label map.
        reference: label map on the same grid.
        targets: what to measure.
        spacing: millimeters per voxel along x, y, z.
        tolerance: millimeters within which a surface counts as found, for NSD.
        empty: see the module.
        ignore: value in the reference whose voxels count for nothing.
    """
    if ignore is not None:
        outside = reference == ignore
        prediction, reference = np.where(outside, 0, prediction), np.where(outside, 0, reference)
    found = {}
    for target in targets:
        guess, truth = np.isin(prediction, target.prediction), np.isin(reference, target.reference)
        found[target.name] = overlap(guess, truth, spacing=spacing, tolerance=tolerance, empty=empty)
    return found


def overlap(
    guess: Region,
    truth: Region,
    *,
    spacing: tuple[float, float, float],
    tolerance: float = TOLERANCE,
    empty: Empty = "score",
) -> dict[str, float]:
    """The metrics of one region.

    Args:
        guess: predicted voxels.
        truth: true voxels.
        spacing: millimeters per voxel.
        tolerance: millimeters, for NSD.
        empty: what counts where either is empty, see the module.
    """
    if not guess.any() or not truth.any():
        nothing = not guess.any() and not truth.any()
        if empty == "skip":
            return dict.fromkeys(METRICS, math.nan) if nothing else {"dice": 0.0, "hd95": math.nan, "nsd": 0.0}
        far = math.sqrt(sum((n * step) ** 2 for n, step in zip(guess.shape, spacing, strict=True)))
        return {"dice": 1.0, "hd95": 0.0, "nsd": 1.0} if nothing else {"dice": 0.0, "hd95": far, "nsd": 0.0}
    cut = _box(guess | truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI about its own arguments
        return _measured(guess[cut], truth[cut], spacing=spacing, tolerance=tolerance)


def _measured(
    guess: Region, truth: Region, *, spacing: tuple[float, float, float], tolerance: float
) -> dict[str, float]:
    """MONAI's metrics of two regions, neither of them empty."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.surface_dice import compute_surface_dice

    a, b = (torch.from_numpy(np.ascontiguousarray(part))[None, None].float() for part in (guess, truth))
    dice = compute_dice(a, b, include_background=True, ignore_empty=False)
    steps = list(spacing)
    far95 = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=steps)
    near = compute_surface_dice(a, b, class_thresholds=[tolerance], include_background=True, spacing=steps)
    return {"dice": float(dice), "hd95": float(far95), "nsd": float(near)}


def _box(region: Region) -> tuple[slice, ...]:
    """The smallest box around a region and one voxel more; what lies outside changes no distance and costs time."""
    cut = []
    for axis in range(region.ndim):
        where = np.flatnonzero(region.any(axis=tuple(k for k in range(region.ndim) if k != axis)))
        cut.append(slice(max(int(where[0]) - 1, 0), int(where[-1]) + 2))
    return tuple(cut)


def targets_of(
    classes: Mapping[str, int], regions: Mapping[str, Sequence[int]], *, predicted: Mapping[int, int] | None = None
) -> tuple[Target, ...]:
    """Targets for classes (the background, value 0, is none) and regions given as class values.

    Args:
        classes: class -> its value in references.
        regions: region -> class values.
        predicted: class value -> its value in predictions; None: the same.
    """
    values: dict[str, tuple[int, ...]] = {name: (value,) for name, value in classes.items() if value != 0}
    for name, members in regions.items():
        taken = name in values and set(values[name]) != set(members)  # a class and a region may share a name
        values[f"{name} (region)" if taken else name] = tuple(members)

    def other(members: tuple[int, ...]) -> tuple[int, ...]:
        return members if predicted is None else tuple(predicted[v] for v in members if v in predicted)

    return tuple(Target(name, members, other(members)) for name, members in values.items())
