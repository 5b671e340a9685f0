"""What a user writes under ``data.reading``, checked against the settings of a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from medmae.core.errors import UsageError


def checked_options(kind: Any, options: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A user's options for a kind that is a dataclass, whose defaults show what type each has.

    Where the default is a text, a number written as text comes as a number (``scale: "unit"`` or ``100``). ``without``
    are fields that the recipe of a method sets.

    Raises UsageError for an unknown option, or a value that is no number where one is wanted.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in without}
    if strange := sorted(set(options) - set(defaults)):
        raise UsageError(f"data.reading has no {', '.join(strange)}; of {kind.name} it takes {', '.join(defaults)}")
    return {name: _as(defaults[name], value, name) for name, value in options.items()}


def _as(default: Any, value: Any, name: str) -> Any:
    try:
        if isinstance(default, str):
            return _number_or_text(value)
        number = float(value)
        if isinstance(value, bool) or (isinstance(default, int) and number != int(number)):
            raise ValueError
        return int(number) if isinstance(default, int) else number
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "a whole number" if isinstance(default, int) else "a number"
        raise UsageError(f"data.reading.{name} is {wanted} such as {default}, not {value!r}") from error


def _number_or_text(value: Any) -> Any:
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value
