"""Which sequences a case really has, where every channel has a file.

nnU-Net knows no missing channel: it stacks the files of a case, so each gap is closed with a file of one value. After
that nothing in the folder tells a gap from an image, and this record is the only place that does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.core.errors import DataError

FILE = "presence.json"
NOTHING = 0.05
"""Deviations from zero, after normalization, below which a channel holds no image: the placeholders of CT in training
miss zero by the sampling error of nnU-Net's fingerprint, and images vary around zero by one."""


@dataclass(frozen=True)
class Presence:
    """For every case (by its name in the folder) the sequences that are images, in channel order.

    Attributes:
        sequences: all channels, canonical names.
        cases: case -> those really there.
        values: sequence -> the value that closes its gaps; only for those that have gaps.
        predicted: it stands beside predictions, and says what each was made from.
    """

    sequences: tuple[str, ...]
    cases: Mapping[str, tuple[str, ...]]
    values: Mapping[str, float] = field(default_factory=dict)
    predicted: bool = False

    def missing(self, case: str) -> tuple[str, ...]:
        """The sequences of ``case`` that are placeholders."""
        return tuple(name for name in self.sequences if name not in self.cases[case])

    def save(self, folder: str | Path) -> Path:
        """Write ``presence.json`` into ``folder``, whole or not at all; a file that says the same is left alone."""
        value: dict[str, Any] = {
            "sequences": list(self.sequences),
            "cases": {name: list(found) for name, found in sorted(self.cases.items())},
            "values": dict(self.values),
        }
        if self.predicted:
            value["predicted"] = True
        path, text = Path(folder) / FILE, json.dumps(value, indent=1) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return path
        return write_text(path, text)

    @classmethod
    def load(cls, folder: str | Path) -> Presence | None:
        """The record in ``folder``; None where there is none.

        Raises:
            DataError: a file of that name that is no such record.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            cases = {str(name): tuple(map(str, found)) for name, found in value["cases"].items()}
            values = {str(name): float(number) for name, number in value["values"].items()}
            return cls(tuple(map(str, value["sequences"])), cases, values, bool(value.get("predicted")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: no record of present sequences ({error}); convert the data again") from error
