"""``medmae reconstruct``: a missing sequence as a NIfTI that overlays on what was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from medmae.core.errors import UsageError

from .completion_write import Request, canonical, complete_and_write


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
    request = Request(
        named=named_inputs({"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}, input_ or []),
        targets=target_names(target),
        out=out,
        data=data,
        mask=mask,
        reference=reference,
        units=units,
        match=match,
        resample=resample,
        hide_present=hide_present,
        overwrite=overwrite,
        identify=identify,
    )
    from .completion import open_completer

    complete_and_write(
        request, lambda: open_completer(checkpoint, device=device, overlap=overlap, batch=batch, precision=precision)
    )


def named_inputs(options: Mapping[str, Path | None], others: Sequence[str]) -> dict[str, Path]:
    """Files by sequence, in the order of the options."""
    named = {name: path for name, path in options.items() if path is not None}
    for entry in others:
        name, equals, file = entry.partition("=")
        if not equals or not name.strip() or not file:
            raise UsageError(f"--input takes NAME=FILE, such as --input pd=pd.nii.gz, not {entry!r}")
        if canonical(name) in named:
            raise UsageError(f"the sequence {canonical(name)} is given twice")
        named[canonical(name)] = Path(file)
    return named


def target_names(text: str) -> tuple[str, ...]:
    """Sequences of an option, such as ``t1c,t2f``. Raises UsageError where there is none."""
    words = [word for word in (part.strip() for part in text.split(",")) if word]
    targets = tuple(dict.fromkeys(canonical(word) for word in words))
    if not targets:
        raise UsageError("--target names no sequence; give one such as t1c, or several: t1c,t2f")
    return targets
