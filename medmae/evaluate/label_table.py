"""Label curves as files: one CSV of every measurement, one of the summary, one JSON, one picture."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_bytes

from .cells import aligned, cell, csv_text, json_values, shown
from .label_curve import METRICS, Curve, Measurement, Point

_WORDS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}


def measurements_csv(rows: Sequence[Measurement]) -> str:
    """One line per model, fraction, draw and fold."""
    names = [field.name for field in dataclasses.fields(Measurement)]
    return csv_text(names, [[cell(row.model), *(getattr(row, name) for name in names[1:])] for row in rows])


def points_csv(points: Sequence[Point]) -> str:
    """One line per model, fraction and metric, with the interval and the first model's gain over the model."""
    lines: list[list[object]] = []
    for p in points:
        gain = ["", "", ""] if p.gain is None else [p.gain.mean, p.gain.low, p.gain.high]
        interval = [p.interval.mean, p.interval.low, p.interval.high, p.interval.cases]
        lines.append([cell(p.model), p.fraction, p.labeled, p.metric, *interval, *gain])
    head = ["model", "fraction", "labeled", "metric", "mean", "low", "high", "cases", "gain", "gain_low", "gain_high"]
    return csv_text(head, lines)


def curve_json(curve: Curve, about: Mapping[str, Any]) -> dict[str, Any]:
    """The summary as JSON values: {"about", "summary": [...], "verdict": {model: {fraction: ...}}}."""
    entries = []
    for p in curve.points:
        entry = {"model": p.model, "fraction": p.fraction, "labeled": p.labeled, "metric": p.metric, **vars(p.interval)}
        if p.gain is not None:
            entry["gain"] = {"mean": p.gain.mean, "low": p.gain.low, "high": p.gain.high}
        entries.append(entry)
    told = {"folds": curve.folds, "classes": list(curve.classes), **about}
    return {key: json_values(v) for key, v in (("about", told), ("summary", entries), ("verdict", verdict(curve)))}


def verdict(curve: Curve, *, metric: str = "auc") -> dict[str, dict[str, str]]:
    """Per model and fraction, what the first model is next to it: "better", "worse", or "unclear" where the interval
    of the gain holds zero."""
    result: dict[str, dict[str, str]] = {}
    for p in curve.points:
        if p.metric == metric and p.gain is not None:
            word = "better" if p.gain.low > 0 else "worse" if p.gain.high < 0 else "unclear"
            result.setdefault(p.model, {})[f"{p.fraction:g}"] = word
    return result


def text(curve: Curve, *, metric: str = "auc") -> str:
    """A small table for the terminal: models down, fractions across."""
    labeled = {p.fraction: p.labeled for p in curve.points}
    found = {(p.model, p.fraction): p.interval for p in curve.points if p.metric == metric}
    head = [_WORDS[metric], *(f"{100 * f:g} % ({n:.0f} labels)" for f, n in labeled.items())]
    models = dict.fromkeys(p.model for p in curve.points)
    return aligned([head, *([model, *(shown(found[model, f]) for f in labeled)] for model in models)])


def picture(curve: Curve, path: str | Path, *, title: str = "") -> Path:
    """A PNG: one panel per metric, one line per model over the number of labels, with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for k, model in enumerate(dict.fromkeys(p.model for p in curve.points)):
            mine = [p for p in curve.points if p.model == model and p.metric == metric]
            x = [p.labeled for p in mine]
            panel.fill_between(
                x, [p.interval.low for p in mine], [p.interval.high for p in mine], color=f"C{k}", alpha=0.15, lw=0
            )
            panel.plot(x, [p.interval.mean for p in mine], "o-", color=f"C{k}", ms=4, label=model.replace("$", r"\$"))
        panel.axhline(0.5 if metric == "auc" else 1 / len(curve.classes), color="0.6", lw=0.8)
        panel.set_xscale("log")
        panel.set_xlabel("labeled cases")
        panel.set_ylabel(_WORDS[metric])
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(4, len(labels))), frameon=False)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_bytes(Path(path), buffer.getvalue())


def write(folder: str | Path, curve: Curve, *, about: Mapping[str, Any], title: str = "") -> dict[str, Path]:
    """Write ``measurements.csv``, ``summary.csv``, ``summary.json`` and ``curve.png``, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = json.dumps(curve_json(curve, about), indent=2, allow_nan=False) + "\n"
    return {
        "measurements": write_bytes(folder / "measurements.csv", measurements_csv(curve.measurements).encode()),
        "summary": write_bytes(folder / "summary.csv", points_csv(curve.points).encode()),
        "json": write_bytes(folder / "summary.json", summary.encode()),
        "curve": picture(curve, folder / "curve.png", title=title),
    }
