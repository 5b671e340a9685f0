"""``medmae doctor``: show what :mod:`medmae.doctor` finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from medmae.core.errors import MissingDependency


def run(
    quick: Annotated[bool, typer.Option("--quick", help="Do not import packages and do not train.")] = False,
) -> None:
    """Check this machine: versions, torch, GPUs, memory, disk, extras, and one tiny training step.

    Ends with exit code 4 when something that medmae needs does not work; every problem comes with its remedy.
    With --json, everything found goes to standard output.
    """
    from medmae.cli.console import emit_json, flags
    from medmae.doctor import examine

    diagnosis = examine(imports=not quick, step=not quick)
    if flags().json:
        emit_json(diagnosis.describe())
    else:
        _show(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(MissingDependency.exit_code)


def _show(diagnosis: Any) -> None:
    """Print the facts as a table and the problems below it."""
    from rich.markup import escape
    from rich.table import Table

    from medmae.cli.console import console

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(diagnosis.facts):
        table.add_row(name, escape(value))
    screen = console()
    screen.print(table)
    for problem in sorted(diagnosis.problems, key=lambda each: not each.needed):
        word = "[bold red]broken[/]" if problem.needed else "[yellow]note[/]"
        screen.print(f"{word}  {escape(problem.what)}\n        {escape(problem.remedy)}", highlight=False)
    needed = sum(problem.needed for problem in diagnosis.problems)
    screen.print(
        f"[bold red]{needed} needed part(s) do not work[/]" if needed else "[bold green]everything needed works[/]"
    )


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts in words, one line each."""
    yield from facts["versions"].items()
    torch = facts["torch"]
    if torch is None:
        yield "torch", "does not import"
    else:
        yield "torch", f"{torch['version']}, {torch['build']} build, {torch['threads']} threads"
        vision = facts["torchvision"]
        yield "torchvision", vision["state"] + (f" ({vision['version']})" if vision["version"] else "")
        for gpu in torch["gpus"]:
            yield (
                "GPU",
                f"{gpu['name']}, {gpu['free_gib']} of {gpu['memory_gib']} GiB free, capability {gpu['capability']}",
            )
        if not torch["gpus"]:
            yield "GPU", "Apple (mps)" if torch["mps"] else "none"
    machine = facts["machine"]
    yield "CPU", f"{machine['cores']} cores"
    yield "RAM", f"{machine['ram_free_gib']} of {machine['ram_gib']} GiB free"
    yield "disk", f"{machine['disk_free_gib']} GiB free here"
    yield "packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items())
    for extra, wanted in facts["extras"].items():
        absent = [name for name, version in wanted.items() if version is None]
        state = "present" if not absent else f"absent: pip install 'medmae[{extra}]'"
        if absent and len(absent) < len(wanted):
            state = f"incomplete, without {', '.join(absent)}: pip install 'medmae[{extra}]'"
        yield f"extra {extra}", state
    for step in facts.get("training_step", ()):
        loss = f"loss {step['before']} -> {step['after']}"
        yield f"training on {step['device']}", f"{step['method']}, {loss}, {step['seconds']} s a step"
