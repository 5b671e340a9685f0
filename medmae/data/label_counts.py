"""How many voxels each class has in each case, read from the label files before anything is trained.

A fault in one label of a thousand would show hours later, or never: a value that the spec does not name would be
trained as background. So every label is read once, and all faults are told together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medmae.core.errors import DataError

from .cohort import Case
from .geometry import same_grid as same
from .labels import read_label
from .readers import inspect
from .spec import Label
from .workers import each, progress

_SHOWN = 20


def label_counts(
    cases: Sequence[Case], label: Label, *, same_grid: bool = True, workers: int = 0, quiet: bool = True
) -> dict[str, dict[int, int]]:
    """Case key -> class value -> voxels, of the cases that have a label file; the background is counted as well.

    Args:
        cases: of a cohort.
        label: what values mean; file values go through its ``remap``.
        same_grid: a label that does not lie on the grid of its images is a fault.
        workers: processes that read; 0 or 1 is this one.
        quiet: show no progress.

    Raises:
        DataError: no case has a label, or some cannot be read, hold values that the spec does not name or lie on
            another grid: all at once.
    """
    labeled = [case for case in cases if case.label is not None]
    if not labeled:
        raise DataError(
            f"none of {len(cases)} case(s) has a label: correct label.file in the spec "
            f"({label.file or 'the layout says where labels are'})"
        )
    mapping = {value: label.remap.get(value, value) for value in label.file_values | {0}}
    owner = {case.label: case.key for case in reversed(labeled)}  # jobs end in any order: the file says whose it was
    image = {case.label: next(iter(case.images.values())) if same_grid else None for case in reversed(labeled)}
    jobs = [(path, mapping, image[path]) for path in reversed(owner)]
    found: dict[Path | None, dict[int, int]] = {}
    faults: list[str] = []
    with progress("reading labels", len(jobs), quiet=quiet) as advance:
        in_processes = workers if workers > 1 and len(jobs) > 1 else 0
        for job, outcome in each(_count, jobs, workers=in_processes, preload=(__name__,)):
            advance()
            if isinstance(outcome.error, DataError) or outcome.died:
                faults.append(f"case {owner[job[0]]}: {outcome.error or 'the process reading it was killed'}")
            elif outcome.error is not None:
                raise outcome.error
            else:
                found[job[0]] = outcome.value
    if faults:
        more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError(
            f"{len(faults)} of {len(labeled)} label(s) cannot be used:\n  - " + "\n  - ".join(faults[:_SHOWN]) + more
        )
    return {case.key: found[case.label] for case in labeled}


def _count(path: Path, mapping: Mapping[int, int], image: Path | None) -> dict[int, int]:
    volume, classes, _ = read_label(path, mapping)
    if image is not None:
        grid = inspect(image, length=False)
        if not same(volume.array.shape, volume.affine, grid.shape, grid.affine):
            raise DataError(
                f"{path}: the label is not on the grid of {image.name}: shape {tuple(volume.array.shape)} against "
                f"{tuple(grid.shape)}, or another place. Repair it, or set geometry.on_mismatch in the spec"
            )
    counts = np.bincount(classes.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
