"""Tables as rows of text: CSV or TSV, whichever separator was used."""

from __future__ import annotations

import csv
from pathlib import Path


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names and (line number, cells) of a CSV or TSV; ValueError where it is not one."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            head = file.readline()
        except UnicodeDecodeError as error:
            raise ValueError(f"not a text table in UTF-8 ({error}); save it as CSV UTF-8") from error
        file.seek(0)
        separator = "\t" if path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head) else ","
        if separator == "," and head.count(";") > head.count(","):
            separator = ";"
        try:
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"line {reader.line_num} has another number of cells than the header ({len(names)})"
                    )
                rows.append((reader.line_num, {name: str(value) for name, value in row.items()}))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"not a readable table ({error})") from error
    if not names or len(set(names)) != len(names):
        raise ValueError("the first line must name every column once")
    return names, rows
