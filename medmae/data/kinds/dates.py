"""When things were seen: text of a table as the numbers that methods for images of several dates read."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from jaxtyping import Float32

from medmae.core.errors import DataError

COLUMN = "time"
_MOST = 3  # numbers that a date gives
FIRST_YEAR = 2002  # years are counted from here, months and hours from 0, as SatMAE does


def read_stamps(text: str | None, *, groups: int, count: int) -> Float32[np.ndarray, "groups count"]:
    """One row of numbers for each group, from the groups' dates or numbers, separated by semicolons.

    A date, such as ``2016-05-03`` or ``2016-05-03T10:20``, becomes years since 2002, months since January, hours since
    midnight, as many of the three as ``count``; in place of a date there may be ``count`` numbers with spaces between.

    Raises DataError, which says what is wanted and names no file.
    """
    dates = f"{groups} dates separated by semicolons, such as '2016-05-03T10:20; 2017-11-30; ...'"
    wanted = f"{dates}; {count} number(s) with spaces between may stand in place of a date"
    if count > _MOST:
        wanted = f"{groups} times {count} numbers with spaces between, separated by semicolons"
    if text is None or not text.strip():
        raise DataError(
            f"nothing says when each group was seen (method.stamps = {count}). Give --data a CSV with the columns path "
            f"and {COLUMN}: {wanted}. Or leave method.stamps out (0), and groups are told by their number"
        )
    rows = [_stamp(part.strip(), count) for part in text.split(";") if part.strip()]
    if len(rows) != groups or any(row is None for row in rows):
        raise DataError(f"{COLUMN} is {text!r}; wanted are {wanted}")
    return np.asarray(rows, np.float32)


def _stamp(text: str, count: int) -> list[float] | None:
    try:  # before numbers: ``20160503`` is a date
        when = datetime.fromisoformat(text)
    except ValueError:
        try:
            values = [float(part) for part in text.replace(",", " ").split()]
        except ValueError:
            return None
        return values if len(values) == count and np.isfinite(values).all() else None
    clock = [float(when.year - FIRST_YEAR), float(when.month - 1), float(when.hour)]
    return clock[:count] if count <= _MOST else None
