"""One case of a cohort as the files nnU-Net reads: links where a file can stay as it is, converted copies elsewhere.

nnU-Net trusts its input: it stacks the files of a case by voxel index, whatever their headers say, and a NaN anywhere
becomes a NaN loss. So every file is read here once, before anything is planned, with the same readers and the same
messages as everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmae.atomic import write_link
from medmae.core.errors import DataError
from medmae.data.geometry import same_grid, to_model_grid
from medmae.data.labels import plain_nifti, read_label
from medmae.data.layouts import printable
from medmae.data.nifti import write_like
from medmae.data.readers import Volume, read
from medmae.transfer.nnunet.plans import axis_codes

if TYPE_CHECKING:
    from medmae.data.header import Header

ENDING = ".nii.gz"
_EXACT = 1e-4  # millimeters; what is farther apart than rounding in a header gets the header of the first image


@dataclass(frozen=True)
class Job:
    """What to write for one case.

    Attributes:
        key: name of the case in the cohort, for messages.
        name: its name in the folder.
        images: sequence -> file, of the sequences that are there; the first is the reference grid.
        label: the label file, or None.
        channels: every sequence, in channel order.
        mapping: value in the label file -> value for nnU-Net.
        on_mismatch: ``error``, ``resample`` or ``skip``, where files of the case do not share a grid.
        image_folder: absolute.
        label_folder: absolute; None where there is no label.
        average: sequences whose mean over the labeled voxels is wanted.
    """

    key: str
    name: str
    images: Mapping[str, Path]
    label: Path | None
    channels: tuple[str, ...]
    mapping: Mapping[int, int]
    on_mismatch: str
    image_folder: Path
    label_folder: Path | None = None
    average: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Written:
    """What became of a case.

    Attributes:
        name: its name in the folder.
        images: sequence -> the file written.
        label: the label written.
        header: of the first image, whose grid all files have.
        axes: its axis codes.
        copied: how many files are converted copies.
        means: sequence -> mean over the labeled voxels.
        empty: the label holds the background only.
        skipped: why nothing was written, or "".
    """

    name: str
    images: Mapping[str, Path] = field(default_factory=dict)
    label: Path | None = None
    header: Header | None = None
    axes: str = ""
    copied: int = 0
    means: Mapping[str, float] = field(default_factory=dict)
    empty: bool = False
    skipped: str = ""


class _SkippedError(Exception):
    """The case is left out, as its spec asks."""


def image_name(name: str, channel: int, *, ending: str = ENDING) -> str:
    """nnU-Net's name for the file of a channel: ``case_0002.nii.gz``."""
    return f"{name}_{channel:04d}{ending}"


def write_case(job: Job) -> Written:
    """Link or convert the files of one case; sequences that are missing are left to the caller.

    Raises:
        DataError: a file cannot be read, a label holds what it may not, or the grids differ and may not.
    """
    try:
        return _write(job)
    except _SkippedError as reason:
        return Written(job.name, skipped=str(reason))


def write_cases(jobs: Sequence[Job], *, workers: int, what: str, quiet: bool = True) -> list[Written]:
    """Every case, in the order of ``jobs``.

    Raises:
        DataError: with the faults of all cases.
    """
    from medmae.data.workers import each, progress

    done: dict[str, Written] = {}
    faults: list[str] = []
    with progress(what, len(jobs), quiet=quiet) as advance:
        for (job,), outcome in each(write_case, ((job,) for job in jobs), workers=workers, preload=(__name__,)):
            if outcome.died:
                faults.append(f"case {printable(job.key)}: its process was killed, most likely for lack of memory")
            elif isinstance(outcome.error, DataError):
                faults.append(f"case {printable(job.key)}: {outcome.error}")
            elif outcome.error is not None:
                raise outcome.error
            else:
                done[job.name] = outcome.value
            advance()
    if faults:
        raise DataError(f"{len(faults)} of {len(jobs)} case(s) cannot be used:\n  - " + "\n  - ".join(sorted(faults)))
    return [done[job.name] for job in jobs]


def write_gaps(written: Written, channels: Sequence[str], values: Mapping[str, float], folder: Path) -> dict[str, Path]:
    """Files of one value for the sequences that a case lacks, on its grid; sequence -> path."""
    if written.header is None:
        return {}
    return {
        name: write_constant(folder / image_name(written.name, i), written.header, values.get(name, 0.0))
        for i, name in enumerate(channels)
        if name not in written.images
    }


def write_constant(path: Path, header: Header, value: float) -> Path:
    """A volume of one value on the grid of ``header``."""
    kind = "uint8" if value == 0 else "float32"
    array = np.full(header.shape, value, dtype=kind)
    return write_like(path, array, header, dtype=kind, description="medmae: placeholder, no image")


def _write(job: Job) -> Written:
    reference: Volume | None = None
    images: dict[str, Path] = {}
    copied = 0
    kept: dict[str, np.ndarray] = {}
    for name, path in job.images.items():
        found = read(path)
        reference = found if reference is None else reference
        array, moved = _on_grid(found, reference, job, name, nearest=False)
        finite = bool(np.isfinite(array).all())
        target = job.image_folder / image_name(job.name, job.channels.index(name))
        if moved or not finite or not _as_it_is(path, found, reference):
            array = array if finite else np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
            images[name] = write_like(target, array, reference.header)
            copied += 1
        else:
            images[name] = write_link(target, path)
        if name in job.average:
            kept[name] = array
    if reference is None:
        raise DataError("it has none of the sequences " + ", ".join(job.channels))
    label, means, empty = None, {}, False
    if job.label is not None and job.label_folder is not None:
        found, classes, used = read_label(job.label, job.mapping)
        on_grid, moved = _on_grid(
            Volume(classes.astype(np.float32), found.affine, found.header), reference, job, "label", nearest=True
        )
        target = job.label_folder / f"{job.name}{ENDING}"
        same = all(source == value for source, value in used.items())
        if moved or not same or not _as_it_is(job.label, found, reference):
            label = write_like(target, on_grid, reference.header, dtype=classes.dtype)
            copied += 1
        else:
            label = write_link(target, job.label)
        inside = on_grid > 0
        empty = not bool(inside.any())
        if not empty:
            means = {name: float(array[inside].mean(dtype=np.float64)) for name, array in kept.items()}
    return Written(job.name, images, label, reference.header, axis_codes(reference.affine), copied, means, empty)


def _on_grid(found: Volume, reference: Volume, job: Job, role: str, *, nearest: bool) -> tuple[np.ndarray, bool]:
    """The values on the grid of the reference, and whether they had to be moved there."""
    if same_grid(found.array.shape, found.affine, reference.array.shape, reference.affine):
        return found.array, False
    if job.on_mismatch == "resample":
        like: Any = (reference.array.shape, reference.affine)
        return to_model_grid(found, like=like, nearest=nearest)[0], True
    first = next(iter(job.images))
    message = (
        f"{role} is not on the grid of {first}: shape {found.array.shape} against {reference.array.shape}, affine "
        f"{np.round(found.affine, 3).tolist()} against {np.round(reference.affine, 3).tolist()}. "
        "Set geometry.on_mismatch in the spec to resample (bring it there) or skip (leave the case out)"
    )
    if job.on_mismatch == "skip":
        raise _SkippedError(message)
    raise DataError(message)


def _as_it_is(path: Path, found: Volume, reference: Volume) -> bool:
    """Whether nnU-Net reads from the file itself what we read, on exactly the reference's grid."""
    return plain_nifti(path, found.header) and bool(np.allclose(found.affine, reference.affine, rtol=0, atol=_EXACT))


def jobs_for(
    cases: Iterable[Any], channels: Sequence[str], folder: Path, *, on_mismatch: str, keep: Sequence[str] | None = None
) -> Iterator[Job]:
    """Jobs without labels that put ``cases`` of a cohort into ``folder``, showing only the sequences ``keep``."""
    shown = set(channels if keep is None else keep)
    for case in cases:
        images = {name: case.images[name] for name in channels if name in case.images and name in shown}
        yield Job(case.key, case.file_stem, images, None, tuple(channels), {}, on_mismatch, folder)
