"""How sure a mean over cases is.

Cases are what varies from one study to the next, not voxels and not subsets, so cases are drawn again. The draws come
from a fixed seed: the same table twice. Models are compared on the same cases, so their difference is drawn as a
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .protocol import Row


@dataclass(frozen=True)
class Interval:
    """A mean over ``cases`` with the bounds of its bootstrap confidence interval, NaN where one case gives no
    interval."""

    mean: float
    low: float
    high: float
    cases: int


def bootstrap(
    values: Sequence[float] | Float[np.ndarray, " n"], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over cases; NaN values are left out. Raises ValueError where no value is
    left."""
    known = np.asarray([v for v in values if not np.isnan(v)], dtype=np.float64)
    if not len(known):
        raise ValueError("no values: a mean needs at least one case")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if len(known) == 1:
        return Interval(float(known[0]), float("nan"), float("nan"), 1)
    picks = np.random.default_rng(seed).integers(0, len(known), (draws, len(known)))
    low, high = np.quantile(known[picks].mean(1), ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(known.mean()), float(low), float(high), len(known))


@dataclass(frozen=True)
class Cell:
    """One entry of the summary: ``metric`` of ``method`` for ``target`` given ``subset`` (or "all": mean over the
    subsets).

    Attributes:
        interval: over cases.
        gain: over cases, of the model's value minus this method's, on the cases both have; None for the model itself.
    """

    method: str
    target: str
    subset: str
    metric: str
    interval: Interval
    gain: Interval | None = None


def summarize(rows: Sequence[Row], *, model: str = "model", level: float = 0.95, seed: int = 0) -> list[Cell]:
    """Every metric of every method by target and subset, and by target over all subsets ("all").

    For "all" a case counts once, with its mean over the subsets.
    """
    table: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        for metric, value in row.values.items():
            for subset in (row.subset, "all"):
                key = (row.method, row.target, subset, metric)
                table.setdefault(key, {}).setdefault(row.case, []).append(value)
    means = {key: {case: _mean(values) for case, values in cases.items()} for key, cases in table.items()}
    cells = []
    for (method, target, subset, metric), cases in means.items():
        if np.isnan(list(cases.values())).all():
            continue
        mine = means.get((model, target, subset, metric), {})
        shared = [mine[case] - value for case, value in cases.items() if case in mine]
        gain = None
        if method != model and shared and not np.isnan(shared).all():
            gain = bootstrap(shared, level=level, seed=seed)
        cells.append(
            Cell(method, target, subset, metric, bootstrap(list(cases.values()), level=level, seed=seed), gain)
        )
    return cells


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")
