"""``medmae embed``: the features of a checkpoint as a table, for whatever is to be done with them elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from medmae import __version__
from medmae.core.errors import UsageError

from .console import emit, emit_json, flags, say
from .feature_encoder import VOLUME, open_data, open_encoder
from .feature_sets import PARTS, feature_set


def run(
    checkpoint: Annotated[Path, typer.Option(help="Pre-trained model or run folder.")],
    data: Annotated[str, typer.Option(help="Cohort for a model of volumes; else a folder, CSV, spec or toy.")],
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .csv.")],
    per: Annotated[str, typer.Option(help="One row per case, modality or region.")] = "case",
    pool: Annotated[str, typer.Option(help="mean, cls, modality or mean_max.")] = "mean",
    layer: Annotated[int | None, typer.Option(help="Layer of the encoder that is read [default: the last].")] = None,
    subset: Annotated[
        str | None, typer.Option(help="Sequences that are shown, such as t1n+t2w [default: all that a case has].")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Region of the label that counts, or foreground.")] = None,
    split: Annotated[str, typer.Option(help="Cases to embed: train, val, test or all.")] = "all",
    batch: Annotated[int, typer.Option(min=1, help="Windows or samples per forward pass.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read samples.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write features: one row per case, or per case and sequence, or per case and region of its label.

    Columns are case, subject, split, label where there is one, sequence or region, then f0, f1, ... Whole volumes are
    covered by windows; what a feature means is in the metadata of a Parquet file, or in the JSON beside a CSV.
    """
    from medmae.data.writing import writing
    from medmae.evaluate.feature_table import SUFFIXES, beside, check_parquet, write_features
    from medmae.evaluate.rank import collapsed, spread

    if out.is_dir() or out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out}: name a .parquet or .csv file")
    if split not in PARTS:
        raise UsageError(f"--split must be one of {', '.join(PARTS)}, not {split!r}")
    if region is not None and per == "region":
        raise UsageError("--per region takes every region: leave out --region")
    csv = out.suffix.lower() == ".csv"
    for path in (out, beside(out)) if csv else (out,):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists already; add --overwrite to replace it")
    if not csv:
        check_parquet()
    encoder = open_encoder(checkpoint, device=device, layer=layer)
    items = open_data(data, encoder).of(split)
    if not items.cases:
        raise UsageError(f"--split {split}: the data have no such part")
    shown = None
    if subset is not None and items.kind == VOLUME:
        from .segmentation_cases import chosen_subsets

        if subset in ("all", "given") or "," in subset:
            raise UsageError(f"--subset {subset}: name one subset, such as t1n+t2w")
        shown = chosen_subsets(subset, encoder.sequences, items.cases)[0]
        if lacking := sum(not set(shown or ()) <= set(case.images) for case in items.cases):
            say(f"{lacking} case(s) left aside: they lack one of {subset}", style="yellow")
    elif subset is not None:
        raise UsageError(f"--subset {subset}: {items.kind} data have no sequences to leave out")
    found = feature_set(
        encoder, items, pool=pool, region=region, subset=shown, per=per, batch=batch, precision=precision,
        workers=workers,
    )  # fmt: skip
    columns: dict[str, tuple[str | None, ...]] = {"case": found.keys, "subject": found.subjects, "split": found.splits}
    if any(label is not None for label in found.labels):
        columns["label"] = found.labels
    if per != "case":
        columns["sequence" if per == "modality" else "region"] = found.rows
    about = {"medmae": __version__, **found.about, "rows": len(found.keys), "kind": encoder.kind, "split": split}
    if per == "case" and len(found.keys) > 1 and (warning := collapsed(spread(found.values))) is not None:
        say(warning, style="yellow")
    with writing(out):
        files = write_features(out, found.values, columns, about)
    if flags().json:
        emit_json({**about, "files": [os.fspath(path) for path in files]})
    else:
        emit(os.fspath(out))
