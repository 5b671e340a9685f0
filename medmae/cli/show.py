"""``medmae show``: everything a method is made of, with every number resolved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .console import emit, emit_json, flags

WIDEST, NARROWEST = 36, 30
"""Columns: of an entry that has its meaning beside it, and of a meaning however narrow the terminal is."""


def run(
    method: Annotated[str, typer.Argument(help="Name of a method, see `medmae methods`.")],
    preset: Annotated[str | None, typer.Option(help="Named set of arguments.")] = None,
    scale: Annotated[str | None, typer.Option(help="Named size.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="argument=value, as YAML; repeatable.")] = None,
) -> None:
    """Show the resolved recipe of a method and what it means, its parts and their sizes, and what its card says."""
    from dataclasses import asdict

    from medmae.find import find

    found = find(method)
    recipe = found.recipe(preset=preset, scale=scale, **_assignments(set_ or []))
    built = found.build(**recipe)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in built.named_children()}
    if flags().json:
        emit_json({
            "name": method, "recipe": recipe, "meanings": found.meanings(), "parameters": parts,
            "card": asdict(found.card), "presets": list(found.presets), "scales": list(found.scales),
        })  # fmt: skip
        return
    card = found.card
    emit(f"{method}: {card.title} ({card.paper}, {card.year}), {card.status}")
    emit(f"  reference: {card.reference}; {card.license}")
    if card.parent:
        emit(f"  differs from {card.parent}: {'; '.join(card.changed)}")
    for departure in card.departures:
        emit(f"  departure: {departure}")
    emit(f"  presets: {', '.join(found.presets) or 'none'}; scales: {', '.join(found.scales) or 'none'}")
    emit("\nrecipe")
    for line in _explained(recipe, defaults=found.recipe(), meanings=found.meanings()):
        emit(line)
    emit("\nparts")
    for name, part in built.named_children():
        emit(f"  {name}: {type(part).__name__}, {parts[name]:,} parameters")
        for inner, module in part.named_children():
            emit(f"    {inner}: {type(module).__name__}, {sum(p.numel() for p in module.parameters()):,} parameters")
    emit(f"  total: {sum(parts.values()):,} parameters")


def _explained(recipe: dict[str, Any], *, defaults: dict[str, Any], meanings: dict[str, str]) -> Iterator[str]:
    """Every entry with its meaning beside it, and with its default where it has another value.

    A terminal gets lines of its width; a pipe gets one line per entry, to search in. An entry that is too wide for its
    column, such as a list of kernels, has its meaning below.
    """
    import shutil
    import sys
    from textwrap import wrap

    entries = {key: f"  {key}: {value}" for key, value in recipe.items()}
    column = 2 + max((len(entry) for entry in entries.values() if len(entry) <= WIDEST), default=0)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for key, entry in entries.items():
        meaning = meanings.get(key, "")
        if recipe[key] != defaults[key]:
            meaning = f"{meaning} (default: {defaults[key]})".strip()
        lines = wrap(meaning, max(width - column, NARROWEST)) if width and meaning else [meaning]
        if width and len(entry) > WIDEST:
            yield entry
        else:
            yield f"{entry:{column - 2}}  {lines.pop(0)}".rstrip()
        yield from (" " * column + line for line in lines)


def _assignments(entries: list[str]) -> dict[str, Any]:
    import yaml

    from medmae.core.errors import UsageError

    result = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals:
            raise UsageError(f"--set takes argument=value, not {entry!r}")
        result[key] = yaml.safe_load(value)
    return result
