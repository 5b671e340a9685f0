"""``medmae reconstruct``: a missing sequence as a NIfTI that overlays on what was given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .console import emit, emit_json, flags, say
from .units import UNITS, Scale, scale_of

if TYPE_CHECKING:
    import numpy as np

    from medmae.data.inference import InferenceCase

    from .completion import Completer

DESCRIPTION = "synthetic {target} by medmae, not acquired, not for diagnosis"


def run(
    checkpoint: Annotated[Path, typer.Option(help="Model folder or run folder.")],
    target: Annotated[str, typer.Option(help="Sequence to reconstruct, or several: t1c,t2f.")],
    out: Annotated[Path, typer.Option(help="File to write (.nii.gz); a folder for several targets and for --data.")],
    t1n: Annotated[Path | None, typer.Option(help="T1-weighted image.")] = None,
    t1c: Annotated[Path | None, typer.Option(help="T1-weighted image with contrast agent.")] = None,
    t2w: Annotated[Path | None, typer.Option(help="T2-weighted image.")] = None,
    t2f: Annotated[Path | None, typer.Option(help="FLAIR image.")] = None,
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="Any other sequence: NAME=FILE; repeatable.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A cohort instead of files: OUT/CASE/TARGET.nii.gz for each case that lacks it.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Foreground (brain) mask; estimated where there is none.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Sequence whose grid is written [default: the first given].")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="cohort: intensities with the mean and standard deviation that the target has on average in the "
            "foreground of the model's training cases; zscore: the model's own units (foreground mean 0, deviation 1). "
            "[default: cohort where the model knows them, else zscore]"
        ),
    ] = None,
    match: Annotated[
        Path | None,
        typer.Option(
            help="Image of the target sequence (any patient); the mean and deviation of its foreground give the units."
        ),
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring inputs that lie on another grid to that of the reference.")
    ] = False,
    overlap: Annotated[
        float,
        typer.Option(
            help="Share of a window that others cover, per axis: 0 is fast and shows seams, from 0.5 on there are none."
        ),
    ] = 0.5,
    batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    hide_present: Annotated[
        bool,
        typer.Option(
            "--hide-present", help="With --data: reconstruct targets that a case has, too, from its other sequences."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    identify: Annotated[bool, typer.Option("--identify", help="Write file and case names into the sidecar.")] = False,
) -> None:
    """Write missing sequences of a patient as NIfTI: any subset of the model's sequences in, any of the others out.

    The image has the shape, affine, qform and sform of the reference input; a sidecar .json beside it says how it was
    made and in which units. Outside the foreground it holds 0 (or its darkest foreground value, where that is below
    0). It is marked as synthetic in its header and must not be used for diagnosis.
    """
    named = named_inputs({"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}, input_ or [])
    targets = _targets(target)
    if units is not None and units not in UNITS:
        raise UsageError(f"--units must be {' or '.join(UNITS)}, not {units!r}")
    if match is not None and (units is not None or len(targets) > 1):
        raise UsageError("--match gives the units of one target: leave out --units, and name one --target")
    if data is not None and (named or mask is not None):
        raise UsageError("--data names whole cases; it cannot be combined with single files or --mask")
    if data is None and not named:
        raise UsageError(
            "no input: give at least one sequence (--t1n FILE, --input NAME=FILE), or a cohort with --data"
        )
    if data is None:
        both = [name for name in targets if name in named]
        if both:
            raise UsageError(f"{both[0]} is both an input and a --target; leave out one of the two")
        jobs = [Job(named, mask, targets, _file_names(out, targets), None)]
    else:
        jobs = []
    keep = frozenset() if match is None else frozenset({Path(os.path.realpath(match))})
    _refuse(jobs, overwrite=overwrite, keep=keep)

    from .completion import open_completer

    completer = open_completer(checkpoint, device=device, overlap=overlap, batch=batch, precision=precision)
    for name in (*named, *targets, *([reference] if reference else [])):
        _check_known(_canonical(name), completer.sequences)
    if data is not None:
        jobs = _cohort_jobs(data, completer, targets, out, hide_present=hide_present)
        _refuse(jobs, overwrite=overwrite, keep=keep)
    order = None if reference is None else _canonical(reference)
    if order is not None and data is None and order not in named:
        raise UsageError(f"--reference {reference}: that sequence was not given; given are {', '.join(named)}")
    if order is not None and (others := sum(order not in job.inputs for job in jobs)):
        say(f"{others} of {len(jobs)} case(s) lack {order}: written on the grid of their first input", style="yellow")
    _say_license(completer)
    scales = {name: scale_of(name, completer.data, units=units, match=match) for name in targets}
    written, faults = [], []
    for job in jobs:
        try:
            written += job.run(completer, scales, reference=order, identify=identify, resample=resample)
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
        raise DataError(
            f"{len(faults)} of {len(jobs)} case(s) could not be reconstructed:\n  - " + "\n  - ".join(faults)
        )


@dataclass(frozen=True)
class Job:
    """One case: inputs by sequence, and a file to write per target. ``name`` is the case's own name, in cohorts."""

    inputs: Mapping[str, Path]
    mask: Path | None
    targets: Sequence[str]
    files: Mapping[str, Path]
    name: str | None

    def run(
        self,
        completer: Completer,
        scales: Mapping[str, Scale],
        *,
        reference: str | None,
        identify: bool,
        resample: bool = False,
    ) -> list[dict[str, Any]]:
        """Reconstruct and write; returns what the sidecars say, with the path of each file."""
        from medmae.data.inference import load_case

        first = [name for name in self.inputs if name == reference]
        order = [*first, *(name for name in self.inputs if name not in first)]
        settings = {**completer.preprocess, **({"on_mismatch": "resample"} if resample else {})}
        case = load_case({name: self.inputs[name] for name in order}, settings, mask=self.mask)
        _refuse_twins(case.files)
        for name in case.odd:
            what = "has NaN or infinite voxels: background" if name in case.images else "has one value only: left out"
            say(f"{self.name + ': ' if self.name else ''}{name} {what}", style="yellow")
        with _bar(self.name or ", ".join(self.targets)) as bar:
            guesses = completer.guess(
                case.images, case.foreground, spacing=case.spacing, targets=self.targets, on_windows=bar
            )
        return [
            self._write(name, guesses[name], case, completer, scales[name], identify=identify) for name in self.targets
        ]

    def _write(
        self, target: str, guess: np.ndarray, case: InferenceCase, completer: Completer, scale: Scale, *, identify: bool
    ) -> dict[str, Any]:
        import numpy as np

        from medmae.data.inference import to_input_grid
        from medmae.data.nifti import write_like
        from medmae.data.writing import writing

        values = guess.astype(np.float32) * np.float32(scale.std) + np.float32(scale.mean)
        if not np.isfinite(values[case.foreground]).all():
            raise DataError(
                f"the model's {target} is not finite; try --precision fp32, and check the model with `medmae info`"
            )
        background = min(0.0, float(values[case.foreground].min()))
        values = np.where(case.foreground, values, np.float32(background))
        path = self.files[target]
        about = self._about(target, case, completer, scale, background, identify=identify)
        image = to_input_grid(values, case, fill=background)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_like(path, image, case.header, description=DESCRIPTION.format(target=target))
            _write_json(sidecar(path), about)
        return {"file": os.fspath(path), **about}

    def _about(
        self, target: str, case: InferenceCase, completer: Completer, scale: Scale, background: float, *, identify: bool
    ) -> dict[str, Any]:
        import torch

        from medmae import __version__

        about: dict[str, Any] = {
            "synthetic": True,
            "warning": "Made by a model, not acquired. Not for diagnosis.",
            "target": target,
            "inputs": {name: f"sha256:{digest}" for name, digest in case.files.items()},
            "reference": case.present[0],
            "units": {"kind": scale.kind, "mean": scale.mean, "std": scale.std, "source": scale.source,
                      "rule": "value = normalized * std + mean inside the foreground"},
            "background": background,
            "foreground": "given mask" if self.mask is not None else "estimated from the inputs",
            "model": {"method": completer.config["method"], "weights": f"sha256:{completer.weights}",
                      "license": completer.config.get("license") or completer.data.get("license")},
            "overlap": completer.overlap,
            "precision": completer.precision,
            "medmae": __version__,
            "torch": torch.__version__,
        }  # fmt: skip
        if identify:
            about["files"] = {name: os.fspath(path) for name, path in self.inputs.items()}
            about["case"] = self.name
        return about


def sidecar(path: Path) -> Path:
    """The .json beside an image."""
    name = path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem
    return path.with_name(name + ".json")


def _canonical(name: str) -> str:
    from medmae.core.sequences import canonical

    try:
        return canonical(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def named_inputs(options: Mapping[str, Path | None], others: Sequence[str]) -> dict[str, Path]:
    """Files by sequence, in the order of the options."""
    named = {name: path for name, path in options.items() if path is not None}
    for entry in others:
        name, equals, file = entry.partition("=")
        if not equals or not name.strip() or not file:
            raise UsageError(f"--input takes NAME=FILE, such as --input pd=pd.nii.gz, not {entry!r}")
        if _canonical(name) in named:
            raise UsageError(f"the sequence {_canonical(name)} is given twice")
        named[_canonical(name)] = Path(file)
    return named


def _targets(text: str) -> tuple[str, ...]:
    words = [word for word in (part.strip() for part in text.split(",")) if word]
    targets = tuple(dict.fromkeys(_canonical(word) for word in words))
    if not targets:
        raise UsageError("--target names no sequence; give one such as t1c, or several: t1c,t2f")
    return targets


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


def _refuse_twins(files: Mapping[str, str]) -> None:
    """One image under two names is a slip, and its reconstruction would look as good as any."""
    first: dict[str, str] = {}
    for name, digest in files.items():
        if first.setdefault(digest, name) != name:
            raise DataError(f"{first[digest]} and {name} are the same image; give each sequence its own file")


def _refuse(jobs: Sequence[Job], *, overwrite: bool, keep: frozenset[Path]) -> None:
    """Before any work: nothing is overwritten unasked, and no input (nor what is in ``keep``) ever."""
    there = []
    for job in jobs:
        sources = keep | {
            Path(os.path.realpath(path)) for path in (*job.inputs.values(), *([job.mask] if job.mask else []))
        }
        for path in job.files.values():
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


def _cohort_jobs(
    source: str, completer: Completer, targets: Sequence[str], out: Path, *, hide_present: bool
) -> list[Job]:
    """A job for every case of a cohort that lacks a target and has something to start from."""
    from medmae.data.cohort import open_cohort

    if _is_image(out) or out.is_file():
        raise UsageError(f"--out {out}: --data writes one folder per case, so give a folder")
    cohort = open_cohort(source, require=1)
    for note in cohort.notes:
        say(note, style="dim")
    jobs, idle = [], 0
    root = Path(os.path.realpath(out))
    own = {Path(os.path.realpath(path)).parent for case in cohort.cases for path in case.images.values()}
    for case in cohort.cases:
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
        jobs.append(Job(inputs, case.mask, wanted, {n: folder / f"{n}.nii.gz" for n in wanted}, case.key))
    if idle:
        say(f"{idle} case(s) left aside: they have every target, or nothing to start from")
    if not jobs:
        raise DataError(
            f"no case of {source} lacks {' or '.join(targets)}; add --hide-present to reconstruct them all the same"
        )
    return jobs


def _say_license(completer: Completer) -> None:
    stated = completer.config.get("license") or completer.data.get("license")
    if stated:
        say(f"license of the model: {stated}", style="dim")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    import json

    from medmae.atomic import write_text

    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    """A progress bar over windows; silent when not a terminal or under --quiet."""
    import sys

    if flags().quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    from .console import console

    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task(what.replace("[", r"\["), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
