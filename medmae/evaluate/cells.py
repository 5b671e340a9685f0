"""Numbers and names as files and terminals want them.

Nothing is rounded in files, and what came from data is only ever written as a cell, never as a formula.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .statistics import Interval


def cell(name: str) -> str:
    """A name as spreadsheet programs take it literally: one that starts like a formula is quoted."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name


def csv_text(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A CSV; NaN becomes an empty cell, and bytes of file names that are no text are written as escapes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if isinstance(v, float) and math.isnan(v) else v for v in line] for line in lines)
    return storable(buffer.getvalue())


def storable(text: str) -> str:
    """Names of files that are no valid text hold lone surrogates, which no file takes; they become ``\\udcff``."""
    return text.encode(errors="backslashreplace").decode()


def json_values(value: Any) -> Any:
    """The same as values that JSON has; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): json_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(interval: Interval | None) -> str:
    """A mean with its interval, for a terminal."""
    if interval is None:
        return "-"
    if interval.cases == 1 or math.isnan(interval.low):
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of words as a table for a terminal."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in lines)
