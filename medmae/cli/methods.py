"""``medmae methods``: the table of methods, from their cards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .console import emit, emit_json, flags


def run(
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown, as in the README.")] = False,
) -> None:
    """List the methods: name, kind, year, status, what it differs from, title."""
    from medmae import find

    found = find.all()
    if flags().json:
        emit_json([{"name": f.name, "module": f.module, **asdict(f.card)} for f in found])
    elif markdown:
        emit(markdown_table(found))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold")
        for title in ("method", "kind", "year", "status", "parent", "title"):
            table.add_column(title, no_wrap=title != "title")
        for f in found:
            table.add_row(f.name, f.card.kind, str(f.card.year), f.card.status, f.card.parent or "-", f.card.title)
        Console(highlight=False).print(table)


def markdown_table(found: Any) -> str:
    """The methods as a Markdown table; the README holds exactly this text."""
    lines = ["| method | kind | year | status | parent | paper |", "|---|---|---|---|---|---|"]
    for f in found:
        card = f.card
        facts = (f"`{f.name}`", card.kind, card.year, card.status, card.parent or "-", f"{card.title} ({card.paper})")
        lines.append(f"| {' | '.join(str(fact) for fact in facts)} |")
    return "\n".join(lines)
