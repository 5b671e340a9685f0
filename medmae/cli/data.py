"""``medmae data``: write a spec from a folder, and find every fault before training."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.cli.data_surfaces import run as run_surfaces
from medmae.data.preprocess_command import run_cache_clear, run_cache_status, run_preprocess
from medmae.data.synthetic.command import run_synthesize

if TYPE_CHECKING:
    from rich.table import Table

    from medmae.data.check import Checked
    from medmae.data.facts import Facts

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Write, check, preprocess, cache and synthesize data."
)
_cache = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the prepared cases.")

_SHOWN = 60


def _verb(function: Callable[..., Any]) -> Callable[..., None]:
    """A verb of the data room, which knows no global flags, made to obey them."""

    @wraps(function)
    def call(**given: Any) -> None:
        from medmae.cli.console import emit_json, flags

        if "quiet" in given:
            given["quiet"] = given["quiet"] or flags().quiet
        result = function(**given)
        if flags().json and result is not None:
            emit_json(result)

    return call


app.command("preprocess")(_verb(run_preprocess))
app.command("synthesize")(_verb(run_synthesize))
app.command("surfaces")(run_surfaces)
_cache.command("status")(_verb(run_cache_status))
_cache.command("clear")(_verb(run_cache_clear))
app.add_typer(_cache, name="cache")


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(help="A folder of images, an nnU-Net or BIDS folder, a data list or a CSV.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the spec; otherwise it is printed.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a data spec from what lies in FOLDER, to read and correct."""
    from medmae.atomic import write_bytes
    from medmae.cli.console import emit, say
    from medmae.core.errors import UsageError
    from medmae.data.cohort import list_cohort
    from medmae.data.initialize import guess_spec, spec_text
    from medmae.data.writing import writing

    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already. Give another name, or --overwrite.")
    guess = guess_spec(folder, labels=True)
    home = (folder if folder.is_dir() else folder.parent).absolute()
    root = "." if out is None else os.path.relpath(home, out.absolute().parent)
    text = spec_text(guess, root=root if out is not None else str(home))
    found = list_cohort(guess.spec)
    for note in (*guess.notes, *found.cohort.notes):
        say(note)
    for fault in found.faults:
        say(f"fault: {fault}", style="red")
    if out is None:
        emit(text)
    else:
        with writing(out):
            write_bytes(out, text.encode())
        say(f"Wrote {out}. Read it, then run: medmae data check --data {out}")


@app.command()
def check(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="A spec, nnU-Net or BIDS folder, data list, CSV, plain folder, toy-image, -video, -points or -audio.",
        ),
    ],
    report: Annotated[Path | None, typer.Option("--report", help="Also write the outcome as one HTML file.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that read files; 0 reads in this one.")
    ] = None,
    identify: Annotated[
        bool, typer.Option("--identify", help="Name the cases in the HTML file instead of short codes.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="volume, image, video, points or audio, where the files do not make it clear."),
    ] = None,
) -> None:
    """Find every fault of every case (geometry, NaN, constant, truncated, labels, duplicates); exit code 3 if any."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from medmae.cli.console import console, emit_json, flags, say
    from medmae.core.errors import DataError, UsageError
    from medmae.data.check import check_cohort
    from medmae.data.cohort import find_cohort
    from medmae.data.kinds.endings import nothing_in
    from medmae.data.kinds.listing import guess_kind

    count = min(os.cpu_count() or 1, 8) if workers is None else workers
    guessed = kind is None
    if kind is None:
        kind = guess_kind(data)
    if kind not in (None, "volume"):
        from medmae.cli.data_samples import check as check_samples

        check_samples(data, kind, workers=count, report=report, identify=identify, guessed=guessed)
        return
    if guessed and Path(data).is_dir() and (nothing := nothing_in(Path(data))) is not None:
        raise UsageError(nothing)
    found = find_cohort(data)
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        checked = check_cohort(
            found, workers=count, tick=lambda done, total: bar.update(task, completed=done, total=total)
        )
    for note in checked.cohort.notes:
        say(note)
    if checked.cohort.cases:
        console().print(_table(checked))
    for remark in checked.remarks():
        say(remark, style="yellow")
    for fault in checked.listing:
        say(f"listing: {fault}", style="red")
    for finding in checked.findings:
        say(
            ("" if finding.error else "warning: ") + finding.text(),
            style="red" if finding.error else "yellow",
        )
    if flags().json:
        emit_json(checked.as_json())
    if report is not None:
        from medmae.atomic import write_bytes
        from medmae.data.check_report import html_report
        from medmae.data.writing import writing

        with writing(report):
            write_bytes(report, html_report(checked, identify=identify).encode(errors="replace"))
        say(f"Report: {report}")
    if checked.errors:
        if flags().quiet and not flags().json:
            faults = (*checked.listing, *(finding.text() for finding in checked.findings if finding.error))
            raise DataError(f"{checked.summary()}. Correct the files or the spec:\n  - " + "\n  - ".join(faults))
        raise DataError(f"{checked.summary()}. Every fault is listed above; correct the files or the spec.")
    say(f"No fault found in {len(checked.cohort.cases)} case(s).", style="green")


def _table(checked: Checked) -> Table:
    """Cases x sequences with geometry; of a large cohort only the cases with faults."""
    from rich.table import Table
    from rich.text import Text

    from medmae.data.facts import LABEL, MASK
    from medmae.data.layouts import printable

    cases = checked.cohort.cases
    caption = None
    if len(cases) > _SHOWN:
        cases = tuple(case for case in cases if case.key in checked.faulty)[:_SHOWN]
        caption = f"{len(checked.cohort.cases)} cases; shown are {len(cases)} of {len(checked.faulty)} with faults"
    columns = [*checked.cohort.sequences]
    columns += [
        role for role in (LABEL, MASK) if any((case.key, role) in checked.facts for case in checked.cohort.cases)
    ]
    table = Table(caption=caption)
    table.add_column("case", overflow="fold", min_width=24)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for case in cases:
        cells = [_cell(checked.facts.get((case.key, role)), checked.kinds(case.key, role)) for role in columns]
        table.add_row(Text(printable(case.key)), *(Text(text, style=style) for text, style in cells))
    return table


def _cell(facts: Facts | None, kinds: tuple[str, ...]) -> tuple[str, str]:
    if facts is None:
        return "none", "dim"
    text = "" if facts.fault is not None else facts.geometry.replace(" @ ", "\n")
    return f"{text} {', '.join(kinds)}".strip(), "red" if kinds else ""
