"""The numbers of a run: ``metrics.jsonl`` first, everything else follows it.

One row per optimizer step and one per validation, appended and flushed to disk before any checkpoint that
follows them. So a resumed run cuts the file back to its step and goes on without a gap and without a
duplicate. ``metrics.csv`` is the same table for spreadsheets. TensorBoard, wandb and mlflow are optional
listeners.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from medmae.atomic import replacing, write_text

Row = Mapping[str, Any]
FIRST = ("step", "split", "epoch", "loss")


@runtime_checkable
class Listener(Protocol):
    """Something else that wants the rows."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by name ("train/loss")."""
        ...

    def close(self) -> None:
        """No more rows."""
        ...


class Journal:
    """Appends rows to ``metrics.jsonl`` and ``metrics.csv`` in ``folder`` and passes them to the listeners.

    ``step`` is the number of completed optimizer steps of a resumed run (0 for a new one): later rows are
    removed. ``validated`` is the step of its latest validation, where that may be earlier: a validation after it
    will be done again, so its row goes too.
    """

    def __init__(
        self, folder: Path, *, step: int = 0, validated: int | None = None, listeners: Sequence[Listener] = ()
    ) -> None:
        """Open the files, cut back to ``step``."""
        self._lines, self._table = folder / "metrics.jsonl", folder / "metrics.csv"
        ends = {"val": step if validated is None else validated}
        rows = [row for row in read_rows(self._lines) if row["step"] <= ends.get(row["split"], step)]
        write_text(self._lines, "".join(json.dumps(row) + "\n" for row in rows))
        self._columns: list[str] = []
        self._rewrite_table(rows)
        self._listeners = tuple(listeners)

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows (each has "step" and "split") and flush them to disk; numbers that are not finite
        become null.
        """
        clean = [{k: _finite(v) for k, v in row.items()} for row in rows]
        if not clean:
            return
        append_text(self._lines, "".join(json.dumps(row) + "\n" for row in clean))
        if all(key in self._columns for row in clean for key in row):
            with self._table.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(clean)
        else:
            self._rewrite_table(read_rows(self._lines))
        for row in clean:
            numbers = {f"{row['split']}/{k}": v for k, v in row.items() if k not in ("step", "split") and v is not None}
            for listener in self._listeners:
                listener.add(int(row["step"]), numbers)

    def close(self) -> None:
        """Close the listeners."""
        for listener in self._listeners:
            listener.close()

    def _rewrite_table(self, rows: Sequence[Row]) -> None:
        found = dict.fromkeys(FIRST) if rows else {}
        for row in rows:
            found.update(dict.fromkeys(row))
        self._columns = list(found)
        with replacing(self._table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            if self._columns:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line that was cut off by a crash is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            rows.append(json.loads(line))
    return rows


def append_text(path: Path, text: str) -> None:
    """Append and flush to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
