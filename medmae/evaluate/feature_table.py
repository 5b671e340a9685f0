"""Features as a file: a row per case, columns that name it, then the numbers.

CSV opens everywhere; Parquet keeps the numbers as they are, takes a third of the space and carries what is known of
them inside. Either is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medmae.atomic import replacing, write_text
from medmae.core.errors import MissingDependency

from .cells import cell, csv_text, json_values, storable

SUFFIXES = (".parquet", ".csv")
KEY = "medmae"
"""Of the metadata in a Parquet file: JSON."""


def check_parquet() -> None:
    """MissingDependency where Parquet cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"Parquet files are written by pyarrow, which cannot be imported ({error}): pip install 'medmae[tables]', "
            "or name a .csv file"
        ) from error


def write_features(
    path: Path,
    values: Float[np.ndarray, "n d"],
    columns: Mapping[str, Sequence[str | None]],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write ``path`` (.parquet or .csv; beside a CSV a .json with ``about``) and return the files that were written.

    Args:
        path: of the table.
        values: columns ``f0``, ``f1``, ...
        columns: what stands in front of them, by name.
        about: what is known of the features, as JSON values.

    Raises:
        MissingDependency: Parquet cannot be written here.
    """
    told = json.dumps(json_values(dict(about)), indent=2, allow_nan=False)
    if path.suffix.lower() == ".parquet":
        check_parquet()
        import pyarrow
        import pyarrow.parquet

        arrays: dict[str, Any] = {
            name: pyarrow.array([None if word is None else storable(word) for word in words], pyarrow.string())
            for name, words in columns.items()
        }
        arrays |= {f"f{i}": pyarrow.array(values[:, i].astype(np.float32)) for i in range(values.shape[1])}
        table = pyarrow.table(arrays).replace_schema_metadata({KEY: told})
        with replacing(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        return [path]
    head = [*columns, *(f"f{i}" for i in range(values.shape[1]))]
    words = [[cell(word or "") for word in row] for row in zip(*columns.values(), strict=True)]
    lines = [[*row, *(f"{number:.9g}" for number in line)] for row, line in zip(words, values.tolist(), strict=True)]
    write_text(path, csv_text(head, lines))
    return [path, write_text(beside(path), told + "\n")]


def beside(path: Path) -> Path:
    """The JSON of a CSV."""
    return path.with_suffix(".json")
