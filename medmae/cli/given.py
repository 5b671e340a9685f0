"""Which options somebody typed: an option of another way to do the work is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping

import typer


def given_options(ctx: typer.Context, options: Mapping[str, str]) -> list[str]:
    """Those of ``options`` (parameter -> how it is written) that stand on the command line."""
    found = []
    for name, written in options.items():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            found.append(written)
    return found
