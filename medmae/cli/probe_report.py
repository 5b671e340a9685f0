"""The result of ``medmae probe`` as files and as a table for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .probe import Probed
    from .probe_target import Goal


def write(
    out: Path, found: Sequence[Probed], goal: Goal, names: Mapping[str, str], about: Mapping[str, Any]
) -> dict[str, Path]:
    """``predictions.csv``, ``summary.csv`` and ``summary.json``, each whole or not at all."""
    from medmae.atomic import write_text
    from medmae.evaluate.cells import cell, csv_text, json_values

    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / file for name, file in (("predictions", "predictions.csv"), ("summary", "summary.csv"),
                                                 ("json", "summary.json"))}  # fmt: skip
    said = _said(found[0].result.classes, goal)
    head = ["case", "model", "probe", "given", "fold", *goal.columns, *said]
    lines = [
        [names[key], p.model, p.result.kind, p.subset, int(fold), *goal.words(key), *_values(p, row, goal)]
        for p in found
        for row, (key, fold) in enumerate(zip(p.features.keys, p.result.fold.tolist(), strict=True))
        if fold >= 0
    ]
    shown = [[cell(value) if isinstance(value, str) else value for value in line] for line in lines]
    rows = entries(found)
    write_text(files["predictions"], csv_text([cell(name) for name in head], shown))
    columns = ("model", "probe", "given", "metric", "mean", "low", "high", "cases", "gain", "gain_low", "gain_high")
    flat = [[_flat(row).get(name, "") for name in columns] for row in rows]
    plain = [[cell(value) if isinstance(value, str) else value for value in line] for line in flat]
    write_text(files["summary"], csv_text(list(columns), plain))
    whole = json_values({"about": dict(about), "summary": rows})
    write_text(files["json"], json.dumps(whole, indent=2, allow_nan=False) + "\n")
    return files


def entries(found: Sequence[Probed]) -> list[dict[str, Any]]:
    """One entry per model, probe, subset and metric; ``gain`` is the first model's value minus this one's."""
    rows = []
    for p in found:
        for metric, interval in p.result.scores.items():
            row: dict[str, Any] = {
                "model": p.model, "probe": p.result.kind, "given": p.subset, "metric": metric, **vars(interval)
            }  # fmt: skip
            if p.gain is not None and metric in p.gain:
                gain = p.gain[metric]
                row["gain"] = {"mean": gain.mean, "low": gain.low, "high": gain.high}
            rows.append(row)
    return rows


def text(found: Sequence[Probed]) -> str:
    """Models, probes and subsets down, metrics across; then the differences to the first model."""
    from medmae.evaluate.cells import aligned, shown

    metrics = list(dict.fromkeys(name for p in found for name in p.result.scores))
    lines = [["model", "probe", "given", "cases", *metrics]]
    for p in found:
        scores = p.result.scores
        row = [p.model, p.result.kind, p.subset, str(len(p.result.subjects))]
        lines.append([*row, *(shown(scores.get(metric)) for metric in metrics)])
    told = aligned(lines)
    gains = [["gain over", "probe", "given", *metrics]]
    for p in found:
        if p.gain is not None:
            gains.append([p.model, p.result.kind, p.subset, *(_signed(p.gain.get(metric)) for metric in metrics)])
    return told if len(gains) == 1 else f"{told}\n\n{aligned(gains)}"


def _signed(gain: Any) -> str:
    if gain is None or math.isnan(gain.low):
        return "-" if gain is None else f"{gain.mean:+.2f}"
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _said(classes: Sequence[str], goal: Goal) -> list[str]:
    if goal.kind == "class":
        return ["prediction", *(f"probability_{name}" for name in classes)]
    return ["prediction"] if goal.kind == "value" else ["risk"]


def _values(p: Probed, row: int, goal: Goal) -> list[object]:
    numbers = p.result.prediction[row].tolist()
    return [p.result.classes[int(p.result.prediction[row].argmax())], *numbers] if goal.kind == "class" else numbers


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    gain = row.get("gain") or {}
    return {**row, "gain": gain.get("mean", ""), "gain_low": gain.get("low", ""), "gain_high": gain.get("high", "")}
