"""Results as files: one CSV of every measurement, one JSON of the summary, one picture.

Nothing is rounded in the files. What came from data (case codes, names of sequences) is only ever written as a cell or
a label, never as a formula, a path or markup.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_bytes
from medmae.core.sequences import in_order

from .cells import aligned, cell, csv_text, json_values, shown
from .metrics import HIGHER_IS_BETTER, METRICS
from .protocol import Row
from .statistics import Cell

_COLORS = {
    "model": "#c8102e", "boosting": "#2e8b57", "linear": "#1f4e79", "best single": "#5b9bd5", "mean": "#a6a6a6",
}  # fmt: skip
_LABELS = {
    "psnr": "PSNR (dB)", "ssim": "SSIM", "mae": "MAE", "r2": "R²", "dice": "Dice", "hd95": "HD95 (mm)", "nsd": "NSD",
    "auc": "AUC", "ap": "average precision", "balanced_accuracy": "balanced accuracy", "c_index": "C-index",
    "spearman": "rank correlation",
}  # fmt: skip


def rows_csv(rows: Sequence[Row], *, subjects: Mapping[str, str] | None = None) -> str:
    """One line per measurement: case, given, target, method, and every metric that occurs.

    With ``subjects`` (case -> whose it is) there is a column of them, by which results are compared later.
    """
    metrics = _metrics(rows)
    lines = [
        [
            cell(r.case),
            *([] if subjects is None else [cell(subjects[r.case])]),
            cell(r.subset),
            cell(r.target),
            r.method,
            *(r.values.get(m, "") for m in metrics),
        ]
        for r in rows
    ]
    owner = [] if subjects is None else ["subject"]
    return csv_text(["case", *owner, "given", "target", "method", *metrics], lines)


def summary_csv(cells: Sequence[Cell]) -> str:
    """One line per method, target, subset and metric, with the confidence interval and the model's gain over the
    method."""
    lines = []
    for c in cells:
        gain = ["", "", ""] if c.gain is None else [c.gain.mean, c.gain.low, c.gain.high]
        lines.append(
            [
                c.method,
                cell(c.target),
                cell(c.subset),
                c.metric,
                c.interval.mean,
                c.interval.low,
                c.interval.high,
                c.interval.cases,
                *gain,
            ]
        )
    return csv_text(
        ["method", "target", "given", "metric", "mean", "low", "high", "cases", "gain", "gain_low", "gain_high"], lines
    )


def summary_json(cells: Sequence[Cell], about: Mapping[str, Any]) -> dict[str, Any]:
    """The summary as JSON values: {"about", "summary": [...], "verdict": {target: ...}}; NaN becomes null."""
    entries = []
    for c in cells:
        entry = {"method": c.method, "target": c.target, "given": c.subset, "metric": c.metric, **vars(c.interval)}
        if c.gain is not None:
            entry["gain"] = {"mean": c.gain.mean, "low": c.gain.low, "high": c.gain.high}
        entries.append(entry)
    parts = {"about": dict(about), "summary": entries, "verdict": verdict(cells)}
    return {key: json_values(value) for key, value in parts.items()}


def verdict(cells: Sequence[Cell], *, metric: str = "psnr") -> dict[str, dict[str, str]]:
    """Per target and baseline, over all subsets: "better", "worse", or "unclear" where the interval of the gain
    holds zero or one case gives none."""
    result: dict[str, dict[str, str]] = {}
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    for c in cells:
        if c.subset == "all" and c.metric == metric and c.gain is not None:
            low, high = sorted((sign * c.gain.low, sign * c.gain.high))
            result.setdefault(c.target, {})[c.method] = "better" if low > 0 else "worse" if high < 0 else "unclear"
    return {target: result[target] for target in in_order(set(result))}


def text(cells: Sequence[Cell], *, metric: str = "psnr") -> str:
    """A small table for the terminal: targets down, methods across, means over all subsets with their intervals."""
    methods = sorted({c.method for c in cells}, key=_rank)
    targets = in_order({c.target for c in cells})
    found = {(c.target, c.method): c.interval for c in cells if c.subset == "all" and c.metric == metric}
    lines = [["target", *methods]]
    for target in targets:
        entries = [found.get((target, method)) for method in methods]
        lines.append([target, *(shown(i) for i in entries)])
    return aligned(lines)


def picture(
    cells: Sequence[Cell], path: str | Path, *, metric: str = "psnr", title: str = "", heading: str = "to {}"
) -> Path:
    """A PNG: one panel per target, one line per subset, one dot with its confidence interval per method.

    ``heading`` is what stands over a panel, with ``{}`` for the target.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [c for c in cells if c.metric == metric]
    targets = in_order({c.target for c in chosen})
    if not targets:
        raise ValueError(f"there is no {metric} to draw")
    methods = sorted({c.method for c in chosen}, key=_rank)
    subsets = sorted({c.subset for c in chosen} - {"all"}, key=lambda s: (s.count("+"), s))
    rows = [*subsets, "all"]
    figure = Figure(figsize=(1.5 + 3.2 * len(targets), 1.6 + 0.28 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(targets), sharex=True, sharey=True, squeeze=False)[0]
    for panel, target in zip(panels, targets, strict=True):
        for k, method in enumerate(methods):
            mine = {c.subset: c.interval for c in chosen if c.target == target and c.method == method}
            where = [i for i, subset in enumerate(rows) if subset in mine]
            found = [mine[rows[i]] for i in where]
            shift = (k - (len(methods) - 1) / 2) * 0.16
            color = _COLORS.get(method, f"C{k}")
            panel.hlines(
                [i + shift for i in where], [f.low for f in found], [f.high for f in found], color=color, lw=1.2
            )
            panel.plot([f.mean for f in found], [i + shift for i in where], "o", color=color, ms=4, label=method)
        panel.axhline(len(rows) - 1.5, color="0.6", lw=0.8)
        panel.set_title(heading.format(target).replace("$", r"\$"), fontsize=10)
        panel.set_xlabel(_LABELS.get(metric, metric))
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), [row.replace("$", r"\$") for row in rows], fontsize=8)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("given")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(methods), frameon=False)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_bytes(Path(path), buffer.getvalue())


def write(
    folder: str | Path,
    rows: Sequence[Row],
    cells: Sequence[Cell],
    *,
    about: Mapping[str, Any],
    title: str = "",
    subjects: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Write ``measurements.csv``, ``summary.csv``, ``summary.json``, ``psnr.png`` and ``ssim.png``, each whole or
    not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "measurements": write_bytes(folder / "measurements.csv", rows_csv(rows, subjects=subjects).encode()),
        "summary": write_bytes(folder / "summary.csv", summary_csv(cells).encode()),
        "json": write_bytes(
            folder / "summary.json", (json.dumps(summary_json(cells, about), indent=2, allow_nan=False) + "\n").encode()
        ),
    }
    for metric in ("psnr", "ssim"):
        files[metric] = picture(cells, folder / f"{metric}.png", metric=metric, title=title)
    return files


def _metrics(rows: Sequence[Row]) -> list[str]:
    there = {name for row in rows for name in row.values}
    order = [*METRICS, *(name + "_label" for name in METRICS)]
    return [name for name in order if name in there] + sorted(there - set(order))


def _rank(method: str) -> tuple[int, str]:
    order = list(_COLORS)
    return (order.index(method) if method in order else -1, method)
