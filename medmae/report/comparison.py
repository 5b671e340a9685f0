"""A model beside its baselines, as tables: who wins, by how much, how sure that is, and where the model loses.

It reads the entries of the ``summary.json`` that ``medmae evaluate`` writes: one mapping per number with ``method``,
``target``, ``given`` (a subset such as "t1n+t2w", or "all": the mean over subsets), ``metric``, ``mean``, ``low``,
``high`` (95 % interval over cases), ``cases`` and, except for the model, ``gain``: mean, low and high of the model's
value minus this method's on the same cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmae.report.values import Cell, Table, Tabs, Tile, Tone

METRICS = {
    "mae": ("MAE", "mean absolute error in standard deviations of the volume, lower is better", False, 3),
    "psnr": ("PSNR", "peak signal-to-noise ratio in dB, higher is better", True, 2),
    "ssim": ("SSIM", "structural similarity, higher is better", True, 3),
    "r2": ("R²", "share of the variance explained, higher is better", True, 3),
    "mae_label": ("MAE in the label", "mean absolute error inside the label alone, lower is better", False, 3),
}
LABELS = {
    "model": "model",
    "mean": "mean intensity",
    "best single": "best single sequence",
    "linear": "linear regression",
    "boosting": "gradient boosting",
}
Summary = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """The summary, by key; ``methods`` with the model first, ``targets`` and ``metrics`` in order."""

    cells: Mapping[tuple[str, str, str, str], Mapping[str, Any]]
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    sequences: tuple[str, ...]
    metrics: tuple[str, ...]

    def mean(self, method: str, target: str, subset: str, metric: str) -> float | None:
        """The mean over cases, or None where there is none."""
        cell = self.cells.get((method, target, subset, metric))
        return None if cell is None or cell["mean"] is None else float(cell["mean"])

    def beats(self, method: str, *, metric: str) -> tuple[str, ...]:
        """Targets on which the model's mean over all subsets is better than that of ``method``."""
        better = []
        for target in self.targets:
            mine, other = (self.mean(name, target, "all", metric) for name in ("model", method))
            if mine is not None and other is not None and (mine > other) == METRICS[metric][2] and mine != other:
                better.append(target)
        return tuple(better)


def compare(summary: Summary, *, sequences: Sequence[str]) -> Comparison:
    """Order a summary; ``sequences`` gives the order of targets and of the columns of subsets."""
    cells = {(c["method"], c["target"], c["given"], c["metric"]): c for c in summary}
    found = list(dict.fromkeys(c["method"] for c in summary))
    methods = [name for name in LABELS if name in found] + [name for name in found if name not in LABELS]
    targets = {c["target"] for c in summary}
    metrics = {c["metric"] for c in summary}
    return Comparison(
        cells=cells,
        methods=tuple(methods),
        targets=tuple(name for name in sequences if name in targets),
        sequences=tuple(sequences),
        metrics=tuple(name for name in METRICS if name in metrics),
    )


def headline(comparison: Comparison, *, metric: str = "mae") -> tuple[Tile, ...]:
    """One tile per baseline: on how many sequences the model beats it."""
    tiles = []
    total = len(comparison.targets)
    for method in comparison.methods:
        if method == "model":
            continue
        won = comparison.beats(method, metric=metric)
        lost = [name for name in comparison.targets if name not in won]
        detail = f"sequences, by {METRICS[metric][0]} over all subsets" + (
            f"; not on {', '.join(lost)}" if lost else ""
        )
        tone: Tone = "good" if not lost else "bad" if len(won) * 2 < total else "plain"
        tiles.append(Tile(f"beats {LABELS.get(method, method)}", f"{len(won)} of {total}", detail, tone))
    return tuple(tiles)


def overview(comparison: Comparison) -> Tabs:
    """Means over all subsets: targets down, methods across, one panel per metric."""
    panels = {}
    for metric in comparison.metrics:
        name, words, _, _ = METRICS[metric]
        rows = tuple((Cell(target), *_cells(comparison, target, "all", metric)) for target in comparison.targets)
        columns = ("sequence to reconstruct", *(LABELS.get(m, m) for m in comparison.methods))
        note = (
            f"{name}: {words}. Means over the cases of the mean over all subsets; in small print the 95 % bootstrap "
            "interval over cases. A star marks the best of a row. Green and red: the model is better or worse than "
            "that baseline by more than the interval of the difference on the same cases."
        )
        panels[name] = (Table("", columns, rows, note),)
    return Tabs("Model and baselines, over all subsets", panels)


def by_subset(comparison: Comparison) -> Tabs:
    """Every subset of visible sequences: one panel per metric, one table per target."""
    panels = {}
    for metric in comparison.metrics:
        name, _, _, _ = METRICS[metric]
        panels[name] = tuple(_target_table(comparison, target, metric) for target in comparison.targets)
    return Tabs(
        "Every subset",
        panels,
        "A filled dot is a sequence that was given. Where a baseline is best, the star is with it.",
    )


def _target_table(comparison: Comparison, target: str, metric: str) -> Table:
    found = {subset for (_, t, subset, m) in comparison.cells if t == target and m == metric and subset != "all"}
    place = {name: i for i, name in enumerate(comparison.sequences)}
    subsets = sorted(found, key=lambda s: (s.count("+"), [place.get(part, 99) for part in s.split("+")]))
    rows = []
    for subset in subsets:
        cases = next(
            c["cases"]
            for m in comparison.methods
            if (c := comparison.cells.get((m, target, subset, metric))) is not None
        )
        detail = f"{_dots(subset, comparison.sequences, target)}  {cases} case{'s' if cases != 1 else ''}"
        rows.append((Cell(subset.replace("+", " + "), detail), *_cells(comparison, target, subset, metric)))
    rows.append((Cell("all subsets"), *_cells(comparison, target, "all", metric)))
    columns = ("given", *(LABELS.get(m, m) for m in comparison.methods))
    return Table(f"{target} from the others, {METRICS[metric][0]}", columns, tuple(rows), totals=(len(rows) - 1,))


def _dots(subset: str, sequences: Sequence[str], target: str) -> str:
    given = subset.split("+")
    return " ".join("●" if name in given else "-" if name == target else "○" for name in sequences)


def _cells(comparison: Comparison, target: str, subset: str, metric: str) -> tuple[Cell, ...]:
    """One row: the best is starred, baselines are colored by what the model's gain over them is worth."""
    _, _, higher, digits = METRICS[metric]
    means = {m: comparison.mean(m, target, subset, metric) for m in comparison.methods}
    known = {m: v for m, v in means.items() if v is not None}
    best = (max if higher else min)(known, key=known.__getitem__) if known else None
    cells = []
    for method in comparison.methods:
        value = means[method]
        if value is None:
            cells.append(Cell("-", tone="quiet"))
            continue
        cell = comparison.cells[(method, target, subset, metric)]
        gain = _gain(cell)
        known_ends = cell["low"] is not None and cell["high"] is not None
        detail = f"{cell['low']:.{digits}f} to {cell['high']:.{digits}f}" if known_ends else ""
        tone = "plain"
        if gain is not None and gain["low"] * gain["high"] > 0:
            tone = "good" if (gain["mean"] > 0) == higher else "bad"
        cells.append(Cell(f"{value:.{digits}f}", detail, tone, best=method == best))  # type: ignore[arg-type]
    return tuple(cells)


def summary_lines(comparison: Comparison, *, metric: str = "mae") -> tuple[str, ...]:
    """Plain sentences: what was compared, and where the model loses."""
    name = METRICS[metric][0]
    lines = []
    lost = {
        m: [t for t in comparison.targets if t not in comparison.beats(m, metric=metric)]
        for m in comparison.methods
        if m != "model"
    }
    whole = [LABELS.get(m, m) for m, targets in lost.items() if not targets]
    if whole:
        lines.append(f"By {name} over all subsets the model is better than {_and(whole)} on every sequence.")
    for method, targets in lost.items():
        if targets:
            lines.append(f"It is not better than {LABELS.get(method, method)} on {_and(targets)} (by {name}).")
    worse = [
        f"{target} from {subset.replace('+', ' + ')}"
        for (method, target, subset, m), cell in comparison.cells.items()
        if m == metric
        and subset != "all"
        and method not in ("model",)
        and _clearly_better(cell, higher=METRICS[metric][2])
    ]
    worse = list(dict.fromkeys(worse))
    if worse:
        shown = _and(worse[:6]) + (f" and {len(worse) - 6} more" if len(worse) > 6 else "")
        lines.append(f"Clearly worse than some baseline (beyond the interval of the difference): {shown}.")
    return tuple(lines)


def _clearly_better(cell: Mapping[str, Any], *, higher: bool) -> bool:
    """Whether the baseline of this cell is better than the model beyond the interval of the difference."""
    gain = _gain(cell)
    return gain is not None and (gain["high"] < 0 if higher else gain["low"] > 0)


def _gain(cell: Mapping[str, Any]) -> Mapping[str, float] | None:
    """The model's gain over the method of this cell, where it is known."""
    gain = cell.get("gain")
    return None if gain is None or None in (gain["mean"], gain["low"], gain["high"]) else gain


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def text_table(comparison: Comparison, *, metrics: Sequence[str] = ("mae", "psnr")) -> str:
    """The overview for a terminal: one line per target, one block of columns per metric; a star marks the best."""
    blocks = []
    for metric in (m for m in metrics if m in comparison.metrics):
        name, _, higher, digits = METRICS[metric]
        lines = [[f"{name} over all subsets", *(LABELS.get(m, m) for m in comparison.methods)]]
        for target in comparison.targets:
            means = [comparison.mean(method, target, "all", metric) for method in comparison.methods]
            known = [v for v in means if v is not None]
            best = (max if higher else min)(known) if known else None
            lines.append(
                [target, *("-" if v is None else f"{v:.{digits}f}{' *' if v == best else '  '}" for v in means)]
            )
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        blocks.append(
            "\n".join("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in lines)
        )
    return "\n\n".join(blocks)
