"""Charts and cards of a run folder's plain content: metric rows, settings, versions, what the data was."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medmae.report.values import Cell, Chart, Curve, FactList, Table

Rows = Sequence[Mapping[str, Any]]
_SMOOTH = 100  # points that the training curve is reduced to, by means of neighbors


def training_charts(rows: Rows) -> tuple[Chart, ...]:
    """Loss of training (means of neighboring steps) and validation, and the learning rate, from ``metrics.jsonl``
    rows."""
    train = [row for row in rows if row.get("split") == "train"]
    val = [row for row in rows if row.get("split") == "val"]
    if not train and not val:
        return ()
    curves = [_curve("training", train, "loss", bins=_SMOOTH), _curve("validation", val, "loss")]
    curves = [curve for curve in curves if curve.x]
    positive = all(y > 0 for curve in curves for y in curve.y if math.isfinite(y))
    note = "Validation uses the same samples and the same masks every time."
    charts = [Chart("Loss", tuple(curves), y_label="loss", log=positive, note=note)]
    rates = _curve("learning rate", train, "lr")
    if rates.x:
        charts.append(Chart("Learning rate", (rates,)))
    return tuple(charts)


def quality_chart(rows: Rows) -> tuple[Chart, ...]:
    """Error of hidden patches beside that of guessing the mean, from the rows of ``qc/quality.jsonl``."""
    if not rows:
        return ()
    model = _curve("model", rows, "mae")
    mean = _curve("guessing the mean", rows, "mae_mean")
    sequences = list(rows[-1].get("sequences", {}))
    each = []
    for name in sequences[:4]:
        found = [{"step": r["step"], "mae": r["sequences"].get(name, {}).get("mae")} for r in rows]
        each.append(_curve(name, found, "mae"))
    dashed = Curve(mean.name, mean.x, mean.y, dashed=True)
    note = "Fixed validation samples and masks, hidden foreground only."
    return (Chart("Error of hidden patches", (model, dashed, *each), y_label="mean absolute error", note=note),)


def _curve(name: str, rows: Rows, key: str, *, bins: int | None = None) -> Curve:
    points = [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    if bins is not None and len(points) > 2 * bins:
        size = math.ceil(len(points) / bins)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        points = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return Curve(name, tuple(x for x, _ in points), tuple(y for _, y in points))


def availability_table(
    patterns: Sequence[Sequence[str]], sequences: Sequence[str], *, parts: Sequence[str] = ()
) -> tuple[Table, ...]:
    """Which sequences cases have: how often each is there, and how often each combination.

    Args:
        patterns: the sequences of every case.
        sequences: all of them, in order.
        parts: the part of the split every case is in (train, val, test), or nothing.
    """
    parts = tuple(parts) or ("all",) * len(patterns)
    names = list(dict.fromkeys(parts))
    rows: list[tuple[Cell | str, ...]] = []
    for sequence in sequences:
        counts = [sum(sequence in p for p, part in zip(patterns, parts, strict=True) if part == name) for name in names]
        missing = sum(sequence not in p for p in patterns)
        share = f"{100 * missing / len(patterns):.0f} %" if patterns else "-"
        rows.append((sequence, *(str(c) for c in counts), str(sum(counts)), Cell(str(missing), share)))
    total = [str(parts.count(name)) for name in names]
    rows.append(("cases", *total, str(len(patterns)), ""))
    per_sequence = Table(
        "Sequences that cases have", ("sequence", *names, "all", "missing in"), tuple(rows), totals=(len(rows) - 1,)
    )
    found = Counter(tuple(name in pattern for name in sequences) for pattern in patterns)
    combos = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    lines = tuple((" ".join("●" if here else "○" for here in combo), str(count)) for combo, count in combos[:16])
    note = (
        "Dots in the order " + ", ".join(sequences) + "." + (" Only the 16 most frequent." if len(combos) > 16 else "")
    )
    return per_sequence, Table("Combinations", ("available", "cases"), lines, note)


def geometry_table(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], *, title: str = "Prepared volumes"
) -> Table:
    """Smallest, median and largest size and spacing per axis, of the prepared volumes."""
    rows = []
    for what, values, digits in (("voxels", shapes, 0), ("spacing, mm", spacings, 2)):
        for axis, letter in enumerate("xyz"):
            column = sorted(float(v[axis]) for v in values)
            if column:
                picks = (column[0], column[len(column) // 2], column[-1])
                rows.append((f"{what}, {letter}", *(f"{v:.{digits}f}" for v in picks)))
    return Table(title, ("", "smallest", "median", "largest"), tuple(rows))


def fact_lists(values: Mapping[str, Any], *, title: str) -> tuple[FactList, ...]:
    """Nested settings as lists of facts: one per section, deeper levels joined by dots."""
    loose = {key: _text(value) for key, value in values.items() if not isinstance(value, Mapping)}
    lists = [FactList(title, loose)] if loose else []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lists.append(FactList(f"{title}: {key}", dict(_flat(value))))
    return tuple(lists)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", _text(value)))
    return found


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        joined = ", ".join(_text(v) for v in value[:12])
        return joined + (f", … ({len(value)})" if len(value) > 12 else "")
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
