"""Segmentation results as files and as a table: subsets of sequences down, classes across.

The rows are those of every other evaluation, with the class or region as target, so that one summary and one picture
serve both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_bytes

from .protocol import Row
from .segmentation import METRICS
from .statistics import Cell
from .table import picture, rows_csv, summary_csv, summary_json

_DIGITS = {"dice": 3, "hd95": 1, "nsd": 3}


def text(cells: Sequence[Cell], *, metric: str = "dice") -> str:
    """A small table for the terminal: mean [95 % interval] over cases; subsets down, targets across."""
    targets = list(dict.fromkeys(c.target for c in cells))
    subsets = sorted({c.subset for c in cells} - {"all"}, key=lambda s: (s.count("+"), s))
    rows = [*subsets, "all"] if len(subsets) != 1 else subsets
    found = {(c.subset, c.target): c.interval for c in cells if c.metric == metric}
    lines = [["given", *targets]]
    digits = _DIGITS.get(metric, 3)
    for row in rows:
        line = [row]
        for target in targets:
            i = found.get((row, target))
            if i is None:
                line.append("-")
            elif i.cases == 1:
                line.append(f"{i.mean:.{digits}f}")
            else:
                line.append(f"{i.mean:.{digits}f} [{i.low:.{digits}f}, {i.high:.{digits}f}]")
        lines.append(line)
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def write(
    folder: str | Path,
    rows: Sequence[Row],
    cells: Sequence[Cell],
    *,
    about: Mapping[str, Any],
    title: str = "",
    subjects: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Write ``measurements.csv``, ``summary.csv``, ``summary.json`` and one picture per metric, each whole or not."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = summary_json(cells, about)
    del summary["verdict"]  # there is no baseline to be better than
    files = {
        "measurements": write_bytes(folder / "measurements.csv", rows_csv(rows, subjects=subjects).encode()),
        "summary": write_bytes(folder / "summary.csv", summary_csv(cells).encode()),
        "json": write_bytes(folder / "summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode()),
    }
    for metric in METRICS:
        if any(c.metric == metric for c in cells):
            files[metric] = picture(cells, folder / f"{metric}.png", metric=metric, title=title, heading="{}")
    return files
