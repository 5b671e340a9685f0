"""Closing the gaps of cases that lack sequences, so that stock nnU-Net predicts them.

The right filling is what the network sees as nothing: 0 after normalization. A constant image is 0 after the z-score
whatever its value, so zeros do, and zeros also leave nnU-Net's cropping to non-zero voxels alone. ``CTNormalization``
uses fixed numbers of the training set, under which zeros land near -2; there the training set's own foreground mean,
which the plans hold, is the value that lands on 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_link
from medmae.core.errors import DataError, UsageError
from medmae.core.sequences import in_order
from medmae.data.geometry import same_grid
from medmae.data.header import Header
from medmae.data.layouts import printable
from medmae.data.readers import inspect
from medmae.transfer.nnunet.case_files import image_name, jobs_for, write_cases, write_constant, write_gaps
from medmae.transfer.nnunet.plans import channels, configuration, meant
from medmae.transfer.nnunet.presence import Presence

_NIFTI = (".nii.gz", ".nii")
_OTHER = re.compile(r".+_\d{4}\.(nii|nii\.gz|mha|mhd|nrrd|nhdr|tif|tiff|png|npy|npz)", re.IGNORECASE | re.DOTALL)


def sequences_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Canonical names of a data set's channels, in channel order.

    A dataset.json of ours names them itself, because nnU-Net wants every kind of CT to be called ``CT``.
    """
    own = dataset.get("medmae")
    if isinstance(own, Mapping) and isinstance(own.get("sequences"), Sequence):
        return tuple(map(str, own["sequences"]))
    return tuple(meant(name) for name in channels(dataset))


def fill_values(plans: Mapping[str, Any], dataset: Mapping[str, Any], *, name: str = "3d_fullres") -> dict[str, float]:
    """Sequence -> the constant that a configuration's normalization turns into 0.

    Raises:
        UsageError: no such configuration, or plans without the intensities that they normalize CT by.
    """
    schemes = configuration(plans, name).get("normalization_schemes") or []
    found = plans.get("foreground_intensity_properties_per_channel") or {}
    values = {}
    for i, sequence in enumerate(sequences_of(dataset)):
        values[sequence] = 0.0
        if i < len(schemes) and schemes[i] == "CTNormalization":
            try:
                values[sequence] = float(found[str(i)]["mean"])
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"the plans normalize channel {i} ({sequence}) as CT and hold no foreground mean of it: "
                    "they are damaged, plan the data set again"
                ) from error
    return values


def fill_missing(
    input_folder: str | Path,
    *,
    dataset: Mapping[str, Any],
    plans: Mapping[str, Any],
    out: str | Path,
    name: str = "3d_fullres",
    keep: Sequence[str] | None = None,
) -> Presence:
    """Complete a folder of nnU-Net input: links to what is there, constant files for what is missing.

    Args:
        input_folder: files such as ``case_0001.nii.gz``. Where it has a ``presence.json``, or the folder above has one
            that is not of predictions, what that calls a placeholder counts as missing.
        dataset: the data set's dataset.json.
        plans: of the model that will predict.
        out: a folder of this data alone; files with other names in it are removed.
        name: configuration, for its normalization.
        keep: use these sequences only, as if the others were missing; other spellings of a name are understood.

    Returns:
        what is really there, also written to ``out/presence.json``.

    Raises:
        DataError: a case with no known channel, or whose files do not share a grid; all faults at once.
        UsageError: no such folder, no case in it, or placeholders would be needed in a format we do not write.
    """
    source, target = Path(input_folder), Path(out)
    names = sequences_of(dataset)
    ending = str(dataset.get("file_ending", ".nii.gz"))
    values = fill_values(plans, dataset, name=name)
    _claim(target, source)
    known = _record(source) or _record(source.parent)
    keep = keep if keep is None else [word if word in names else meant(word) for word in keep]
    unknown = [word for word in keep or () if word not in names]
    if unknown:
        raise UsageError(f"the model knows no sequence {', '.join(unknown)}; it has {', '.join(names)}")
    found, faults = _listing(source, names, ending)
    present: dict[str, tuple[str, ...]] = {}
    todo: list[tuple[str, dict[str, Path]]] = []
    for case, files in found.items():
        real = {n: path for n, path in files.items() if keep is None or n in keep}
        if known is not None and case in known.cases:
            real = {n: path for n, path in real.items() if n in known.cases[case]}
        if not real:
            shown = f"of the sequences asked for ({', '.join(keep)})" if keep is not None else "that is an image"
            faults.append(f"case {printable(case)}: it has no channel {shown}; it has {', '.join(files) or 'none'}")
        else:
            todo.append((case, real))
            present[case] = tuple(real)
    headers: dict[str, Header] = {}
    for case, real in todo:
        fault, header = _one_grid(real)
        if fault is not None or header is None:
            faults.append(f"case {printable(case)}: {fault}")
        else:
            headers[case] = header
    if faults:
        raise DataError(f"{source}: {len(faults)} fault(s):\n  - " + "\n  - ".join(faults))
    if ending not in _NIFTI and any(len(real) < len(names) for _, real in todo):
        raise UsageError(
            f"{source}: sequences are missing, and placeholders are written as NIfTI only, not as {ending}: "
            "give --data a spec, which converts, or write the placeholders yourself"
        )
    written = set()
    for case, real in todo:
        for i, sequence in enumerate(names):
            path = target / image_name(case, i, ending=ending)
            written.add(path.name)
            if sequence in real:
                write_link(path, real[sequence])
            else:
                write_constant(path, headers[case], values[sequence])
    _remove_others(target, written, ending)
    open_ = {n for case in present for n in names if n not in present[case]}
    presence = Presence(names, present, {n: values[n] for n in names if n in open_})
    presence.save(target)
    return presence


def write_inputs(
    cases: Sequence[Any],
    *,
    dataset: Mapping[str, Any],
    plans: Mapping[str, Any],
    out: str | Path,
    name: str = "3d_fullres",
    keep: Sequence[str] | None = None,
    on_mismatch: str = "error",
    workers: int = 0,
    quiet: bool = True,
) -> Presence:
    """Cases of a cohort as complete nnU-Net input; like :func:`fill_missing`, from any format our readers know.

    Raises:
        DataError: a case with no known channel, unreadable, or whose files do not share a grid; all faults at once.
    """
    target = Path(out)
    _claim(target)
    names = sequences_of(dataset)
    values = fill_values(plans, dataset, name=name)
    jobs = list(jobs_for(cases, names, target, on_mismatch=on_mismatch, keep=keep))
    done = [w for w in write_cases(jobs, workers=workers, what="preparing", quiet=quiet) if not w.skipped]
    written: set[str] = set()
    for one in done:
        paths = {**one.images, **write_gaps(one, names, values, target)}
        written |= {path.name for path in paths.values()}
    _remove_others(target, written, ".nii.gz")
    open_ = {n for one in done for n in names if n not in one.images}
    presence = Presence(
        names, {one.name: tuple(n for n in names if n in one.images) for one in done}, {n: values[n] for n in open_}
    )
    presence.save(target)
    return presence


def _record(folder: Path) -> Presence | None:
    """What a folder says of its input; what stands beside predictions is about those."""
    found = Presence.load(folder)
    return None if found is None or found.predicted else found


def _listing(source: Path, names: Sequence[str], ending: str) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """case -> sequence -> file, and what is wrong with the names."""
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder; give the folder with files such as case_0000{ending}")
    expression = re.compile(r"(.+)_(\d{4})" + re.escape(ending), re.DOTALL)
    found: dict[str, dict[str, Path]] = {}
    faults = []
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.name.endswith(ending):
            if _OTHER.fullmatch(path.name):
                faults.append(f"{printable(path.name)}: the model reads files that end in {ending}; convert it")
            continue
        match = expression.fullmatch(path.name)
        if match is None:
            faults.append(f"{printable(path.name)}: no channel number; name it case_0000{ending} for {names[0]}")
        elif int(match[2]) >= len(names):
            faults.append(
                f"{printable(path.name)}: there is no channel {match[2]}; the model has {len(names)}: "
                + ", ".join(f"{i:04d} {n}" for i, n in enumerate(names))
            )
        else:
            found.setdefault(match[1], {})[names[int(match[2])]] = path
    if not found and not faults:
        raise UsageError(f"{source}: no file such as case_0000{ending} in it")
    return {case: {n: files[n] for n in names if n in files} for case, files in found.items()}, faults


def _one_grid(files: Mapping[str, Path]) -> tuple[str | None, Header | None]:
    """What is wrong with the grids of a case, and the header of its first file."""
    try:
        headers = {name: inspect(path) for name, path in files.items()}
    except DataError as error:
        return str(error), None
    first, reference = next(iter(headers.items()))
    for name, header in headers.items():
        if not same_grid(header.shape, header.affine, reference.shape, reference.affine):
            return (
                f"{name} is not on the grid of {first}: shape {header.shape} against {reference.shape}, "
                f"or another place in the world. Resample the images of a case onto one grid first"
            ), None
    return None, reference


def _claim(target: Path, source: Path | None = None) -> None:
    """Make the folder of the output; UsageError where it holds files of somebody else."""
    if source is not None and source.resolve() == target.resolve():
        raise UsageError(f"{target}: the completed input needs a folder of its own; choose another")
    target.mkdir(parents=True, exist_ok=True)
    if Presence.load(target) is None and any(not path.name.startswith(".") for path in target.iterdir()):
        raise UsageError(f"{target} is not empty and no input we completed; choose an empty or new folder")
    if Presence.load(target) is None:
        Presence((), {}).save(target)  # from now on the folder is known to be ours


def _remove_others(folder: Path, written: set[str], ending: str) -> None:
    for path in folder.iterdir():
        if path.name.endswith(ending) and path.name not in written and re.search(r"_\d{4}\.", path.name):
            path.unlink()


def gaps(presence: Presence) -> str:
    """One sentence on what was filled, for the user; "" where nothing was."""
    lacking = {case: presence.missing(case) for case in presence.cases if presence.missing(case)}
    if not lacking:
        return ""
    counts = ", ".join(
        f"{name} {sum(name in found for found in lacking.values())}"
        for name in in_order({n for found in lacking.values() for n in found})
    )
    return f"placeholders for missing sequences in {len(lacking)} of {len(presence.cases)} case(s): {counts}"
