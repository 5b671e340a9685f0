"""From files of patients to NIfTI of what they lack: what ``reconstruct`` and ``predict`` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medmae.core.errors import DataError, UsageError

from .completion_job import Job, sidecar, synthesizer_in
from .console import emit, emit_json, flags, say
from .units import UNITS, scale_of

if TYPE_CHECKING:
    from .completion import Completes


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be completed and written, as it was asked for.

    Attributes:
        named: files by sequence, of one patient; empty with ``data``.
        targets: sequences to make; None is every one that is missing.
        out: file or folder.
        data: a cohort in place of ``named``.
        part: train, val, test or all of it.
        mask: foreground.
        reference: sequence whose grid is written.
        units: see ``units.scale_of``.
        match: see there.
        resample: bring inputs of another grid to that of the reference.
        hide_present: make targets that a case of the cohort has, too.
        passes: of dropout for a deviation; 0 is without.
        overwrite: replace what is there.
        identify: write names into the sidecar.
    """

    named: Mapping[str, Path]
    targets: tuple[str, ...] | None
    out: Path
    data: str | None = None
    part: str = "all"
    mask: Path | None = None
    reference: str | None = None
    units: str | None = None
    match: Path | None = None
    resample: bool = False
    hide_present: bool = False
    passes: int = 0
    overwrite: bool = False
    identify: bool = False


def complete_and_write(request: Request, opened: Callable[[], Completes], *, verb: str = "reconstructed") -> None:
    """Check the request, open the model, write the files and their sidecars, and tell which.

    Raises:
        UsageError: a request that cannot be meant, or files that exist.
        DataError: a patient that cannot be completed; of a cohort the others are written all the same.
    """
    named, targets, data, mask = request.named, request.targets, request.data, request.mask
    if request.units is not None and request.units not in UNITS:
        raise UsageError(f"--units must be {' or '.join(UNITS)}, not {request.units!r}")
    if request.match is not None and (request.units is not None or targets is None or len(targets) > 1):
        raise UsageError("--match gives the units of one target: leave out --units, and name one --target")
    if data is not None and (named or mask is not None):
        raise UsageError("--data names whole cases; it cannot be combined with single files or --mask")
    if data is None and not named:
        raise UsageError(
            "no input: give at least one sequence (--t1n FILE, --input NAME=FILE), or a cohort with --data"
        )
    keep = frozenset() if request.match is None else frozenset({Path(os.path.realpath(request.match))})
    jobs = []
    if data is None and targets is not None:  # a mistake shows before a model is loaded
        jobs = [_single(request, targets)]
        _refuse(jobs, overwrite=request.overwrite, keep=keep)
    completer = opened()
    if request.passes:
        synthesizer_in(completer).check_passes(request.passes)
    for name in (*named, *(targets or ()), *([request.reference] if request.reference else [])):
        _check_known(canonical(name), completer.sequences)
    if data is not None:
        jobs = _cohort_jobs(data, completer, request)
    elif targets is None:
        missing = tuple(name for name in completer.sequences if name not in named)
        if not missing:
            raise UsageError(
                f"every sequence of the model ({', '.join(completer.sequences)}) was given: none is missing"
            )
        jobs = [_single(request, missing)]
    _refuse(jobs, overwrite=request.overwrite, keep=keep)
    order = None if request.reference is None else canonical(request.reference)
    if order is not None and data is None and order not in named:
        raise UsageError(f"--reference {request.reference}: that sequence was not given; given are {', '.join(named)}")
    if order is not None and (others := sum(order not in job.inputs for job in jobs)):
        say(f"{others} of {len(jobs)} case(s) lack {order}: written on the grid of their first input", style="yellow")
    _say_license(completer)
    wanted = [name for name in completer.sequences if any(name in job.targets for job in jobs)]
    scales = {name: scale_of(name, completer.data, units=request.units, match=request.match) for name in wanted}
    written, faults = [], []
    for job in jobs:
        try:
            written += job.run(
                completer,
                scales,
                reference=order,
                identify=request.identify,
                resample=request.resample,
                passes=request.passes,
            )
        except DataError as error:
            if data is None:
                raise
            faults.append(str(error))
    if flags().json:
        emit_json(written)
    else:
        for entry in written:
            emit(entry["file"])
    if faults:
        raise DataError(f"{len(faults)} of {len(jobs)} case(s) could not be {verb}:\n  - " + "\n  - ".join(faults))


def _single(request: Request, targets: tuple[str, ...]) -> Job:
    both = [name for name in targets if name in request.named]
    if both:
        raise UsageError(f"{both[0]} is both an input and a --target; leave out one of the two")
    return Job(request.named, request.mask, targets, _file_names(request.out, targets), None, request.passes > 0)


def canonical(name: str) -> str:
    """The name of a sequence, however it is spelled. Raises UsageError where it is none."""
    from medmae.core.sequences import canonical

    try:
        return canonical(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _file_names(out: Path, targets: Sequence[str]) -> dict[str, Path]:
    """Where each target goes: ``out`` itself for one target, else files of their names in the folder ``out``."""
    if _is_image(out) and not out.is_dir():
        if len(targets) > 1:
            raise UsageError(f"--out {out} is one file, but there are {len(targets)} targets; give a folder")
        return {targets[0]: out}
    if out.is_file() or (out.suffix and not out.is_dir()):
        raise UsageError(f"--out {out}: give a name that ends in .nii.gz or .nii, or a folder")
    return {name: out / f"{name}.nii.gz" for name in targets}


def _refuse(jobs: Sequence[Job], *, overwrite: bool, keep: frozenset[Path]) -> None:
    """Before any work: nothing is overwritten unasked, and no input (nor what is in ``keep``) ever."""
    there = []
    for job in jobs:
        sources = keep | {
            Path(os.path.realpath(path)) for path in (*job.inputs.values(), *([job.mask] if job.mask else []))
        }
        for path in job.written:
            for file in (path, sidecar(path)):
                if Path(os.path.realpath(file)) in sources:
                    raise UsageError(f"{file} is an input; choose another --out")
                if file.exists() or file.is_symlink():
                    there.append(file)
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UsageError(f"{there[0]}{more} exist already; add --overwrite to replace, or choose another --out")


def _check_known(name: str, sequences: Sequence[str]) -> None:
    from medmae.core.sequences import nearest

    if name not in sequences:
        near = nearest(name, among=tuple(sequences))
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UsageError(f"this model does not know the sequence {name!r}{hint} It knows {', '.join(sequences)}.")


def _cohort_jobs(source: str, completer: Completes, request: Request) -> list[Job]:
    """A job for every case of a cohort that lacks a target and has something to start from."""
    out, hide_present = request.out, request.hide_present
    targets = request.targets or tuple(completer.sequences)
    if request.targets is None and hide_present:
        raise UsageError("--hide-present needs names: which sequences are to be hidden?")
    from medmae.data.cohort import open_cohort

    if _is_image(out) or out.is_file():
        raise UsageError(f"--out {out}: --data writes one folder per case, so give a folder")
    cohort = open_cohort(source, require=1)
    for note in cohort.notes:
        say(note, style="dim")
    jobs, idle = [], 0
    root = Path(os.path.realpath(out))
    own = {Path(os.path.realpath(path)).parent for case in cohort.cases for path in case.images.values()}
    chosen = cohort.cases if request.part == "all" else cohort.split()[request.part]
    for case in chosen:
        wanted = [name for name in targets if hide_present or name not in case.images]
        inputs = {
            n: path
            for n, path in case.images.items()
            if n in completer.sequences and n not in (targets if hide_present else ())
        }
        if not wanted or not inputs:
            idle += 1
            continue
        folder = out / case.file_stem
        if Path(os.path.realpath(folder)).parent != root:
            raise UsageError(f"{folder} leads out of {out}; remove that link or choose another --out")
        loose = cohort.spec.layout == "folder" or Path(source).is_dir()  # whatever lies there is a case next time
        listed = loose and root.is_relative_to(os.path.realpath(cohort.spec.folder))
        if listed or root in own or root / case.file_stem in own:  # they would be taken for real ones ever after
            raise UsageError(f"--out {out} would put synthetic images among the cohort's own; choose another folder")
        files = {n: folder / f"{n}.nii.gz" for n in wanted}
        jobs.append(Job(inputs, case.mask, wanted, files, case.key, request.passes > 0))
    if idle:
        say(f"{idle} case(s) left aside: they have every target, or nothing to start from")
    if not jobs:
        raise DataError(
            f"no case of {source} lacks {' or '.join(targets)}; add --hide-present to reconstruct them all the same"
        )
    return jobs


def _say_license(completer: Completes) -> None:
    stated = completer.config.get("license") or completer.data.get("license")
    if stated:
        say(f"license of the model: {stated}", style="dim")
