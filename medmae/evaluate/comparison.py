"""Two written evaluations side by side, as a table, as JSON and as a picture.

What is compared is read from the two folders, not from memory, so that a comparison made years later is the one made
on the day. The picture shows differences and not two columns of means, since overlapping intervals of two means say
nothing about their difference.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmae.atomic import write_bytes, write_text
from medmae.core.errors import DataError

from .cells import aligned, cell, csv_text, json_values
from .cohort_scores import by_subset, measure_of, outcomes
from .paired import ALL, UNSURE, Difference, TwoScored, compare_measured, compare_scored
from .results import TABLE_TASKS, Results, refuse_other_cases, refuse_other_study

FILES = ("against.csv", "against.json", "against.png")
MAIN = ("psnr", "ssim", "dice", "hd95", "nsd", "auc", "auc_folds", "ap", "balanced_accuracy", "c_index",
        "c_index_folds", "mae", "r2")  # fmt: skip
"""Metrics that are printed and drawn, where they occur; the files hold all."""
_SHOWN, _COLORS = 3, {"better": "#2e7d32", "higher": "#2e7d32", "worse": "#c8102e", "lower": "#c8102e", UNSURE: "0.45"}
_HEAD = ("given", "target", "metric", "cases", "subjects", "left_out", "this", "other", "difference", "low", "high",
         "p", "p_holm", "verdict")  # fmt: skip
_HOW = {
    "interval": "95 % percentile bootstrap over subjects of this minus other, on the same cases",
    "verdict": "better or worse where the interval leaves out zero and p_holm is below 0.05",
    "p_holm": 'Holm over all subsets and targets of a metric; "all" (mean over subsets) is a family of its own',
}
_TESTS = {
    True: "p: both metrics from the same drawn subjects (within classes or events), 2000 draws; never below 2/2001 or "
    "2/2^subjects",
    False: "p: Wilcoxon signed rank over subjects, two-sided, exact up to 100, zero differences after Pratt",
}


@dataclass(frozen=True)
class Comparison:
    """The differences, and how they were made."""

    differences: Sequence[Difference]
    about: Mapping[str, Any]


def compare_results(first: Results, second: Results, *, seed: int = 0) -> Comparison:
    """The first results next to the second.

    Raises DataError, with the reason, where they are not about the same task, cases, outcomes or metrics.
    """
    refuse_other_study(first, second)
    refuse_other_cases(first, second)
    if first.task in TABLE_TASKS:
        found = _scored(first, second, seed=seed)
    else:
        mine, other = ([row for row in r.measured if row.method == "model"] for r in (first, second))
        known = {row.metric for row in mine} & {row.metric for row in other}
        if not known:
            raise DataError(f"{first.folder} and {second.folder} have no metric in common: evaluate both anew")
        if not first.subjects_known:
            owner = second.cases
            mine = [replace(row, subject=owner[row.case]) for row in mine]
        found = compare_measured(mine, other, seed=seed)
    if not found:
        raise DataError(f"{first.folder} and {second.folder} have no number in common: there is nothing to compare")
    aside = sorted(first.subsets ^ second.subsets)
    about = {
        "task": first.task,
        "this": _model(first),
        "other": _model(second),
        "cases": len(first.cases),
        "subjects": len(set(first.cases.values())) if first.subjects_known else len(set(second.cases.values())),
        "subjects_from": "the results" if first.subjects_known or second.subjects_known else "cases: none was written",
        "subsets_left_aside": aside,
        "test": _TESTS[first.task in TABLE_TASKS],
        **_HOW,
        "seed": seed,
    }
    return Comparison(found, about)


def _scored(first: Results, second: Results, *, seed: int) -> list[Difference]:
    owners = first if first.subjects_known else second
    cases, subjects, strata = outcomes(owners.said, first.task)
    row, classes = {case: i for i, case in enumerate(cases)}, list(first.about.get("classes") or ())
    one, two = by_subset(first.said), by_subset(second.said)
    parts = []
    for subset in [name for name in one if name in two]:
        both = [case for case in cases if case in one[subset] and case in two[subset]]
        if both:
            mine = measure_of([one[subset][case] for case in both], task=first.task, classes=classes)
            other = measure_of([two[subset][case] for case in both], task=first.task, classes=classes)
            lost = len(one[subset].keys() ^ two[subset].keys())
            parts.append(TwoScored(subset, np.array([row[case] for case in both]), mine, other, lost))
    target = ", ".join((first.about.get("columns") or {}).values()) or first.task
    return compare_scored(parts, subjects, strata=strata, target=target, seed=seed)


def _model(results: Results) -> dict[str, Any]:
    return {"folder": str(results.folder), **{k: results.about.get(k) for k in ("method", "model", "weights")}}


def sentences(found: Sequence[Difference]) -> list[str]:
    """One line per target and metric that is shown: what is to be said about this model next to the other."""
    lines = []
    for target, metric in dict.fromkeys((d.target, d.metric) for d in found if d.metric in MAIN):
        mine = [d for d in found if (d.target, d.metric) == (target, metric)]
        whole = next((d for d in mine if d.subset == ALL), mine[0])
        each = [d for d in mine if d.subset != ALL]
        text = f"{target}, {metric}: {whole.verdict}"
        if len(each) > 1:
            count = {word: sum(d.verdict == word for d in each) for word in ("better", "higher", "worse", "lower")}
            told = [f"{word} in {n}" for word, n in count.items() if n] or ["sure in none"]
            text += f" on the mean over subsets; {' and '.join(told)} of {len(each)} subsets"
        lines.append(text)
    return lines


def text(found: Sequence[Difference], *, metric: str) -> str:
    """A small table for the terminal: one line per target and subset."""
    lines = [["given", "target", "cases", "this", "other", "difference [95 % interval]", "p", "p Holm", "verdict"]]
    for d in [d for d in found if d.metric == metric]:
        i, k = d.interval, _SHOWN
        shown = f"{i.mean:+.{k}f}" + ("" if np.isnan(i.low) else f" [{i.low:+.{k}f}, {i.high:+.{k}f}]")
        p, corrected = (f"{value:.3g}" if not np.isnan(value) else "-" for value in (d.p, d.p_holm))
        lines.append([d.subset, d.target, str(i.cases), f"{d.first:.{k}f}", f"{d.second:.{k}f}", shown, p, corrected,
                      d.verdict])  # fmt: skip
    return aligned(lines)


def shown_metrics(found: Sequence[Difference]) -> list[str]:
    """The metrics to print and draw: the main ones, or all where none of them occurs."""
    there = list(dict.fromkeys(d.metric for d in found))
    return [name for name in MAIN if name in there][:4] or there[:4]


def as_csv(found: Sequence[Difference]) -> str:
    """One line per subset, target and metric; nothing is rounded."""
    lines = [
        [cell(d.subset), cell(d.target), d.metric, d.interval.cases, d.subjects, d.left_out, d.first, d.second,
         d.interval.mean, d.interval.low, d.interval.high, d.p, d.p_holm, d.verdict]
        for d in found
    ]  # fmt: skip
    return csv_text(_HEAD, lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """{"about", "differences": [...], "verdict": [sentence, ...]} as JSON values; NaN becomes null."""
    entries = [
        {"given": d.subset, "target": d.target, "metric": d.metric, "cases": d.interval.cases, "subjects": d.subjects,
         "left_out": d.left_out, "this": d.first, "other": d.second, "difference": d.interval.mean,
         "low": d.interval.low, "high": d.interval.high, "p": d.p, "p_holm": d.p_holm, "verdict": d.verdict}
        for d in comparison.differences
    ]  # fmt: skip
    parts = {"about": dict(comparison.about), "differences": entries, "verdict": sentences(comparison.differences)}
    return {key: json_values(value) for key, value in parts.items()}


def picture(found: Sequence[Difference], path: str | Path, *, title: str = "") -> Path:
    """A PNG: one row of panels per metric, one panel per target, one line per subset, difference and interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = shown_metrics(found)
    targets = list(dict.fromkeys(d.target for d in found if d.metric in metrics))
    names = dict.fromkeys(d.subset for d in found)
    subsets = sorted(names, key=lambda s: (s == ALL, s.count("+"), s))
    size = (2.2 + 3.2 * len(targets), 0.6 + len(metrics) * (0.9 + 0.24 * len(subsets)))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(metrics), len(targets), sharex="row", sharey=True, squeeze=False)
    for line, metric in zip(panels, metrics, strict=True):
        for panel, target in zip(line, targets, strict=True):
            mine = [d for d in found if (d.metric, d.target) == (metric, target)]
            for d in mine:
                y, color = subsets.index(d.subset), _COLORS[d.verdict]
                panel.hlines(y, d.interval.low, d.interval.high, color=color, lw=1.2)
                panel.plot(d.interval.mean, y, "o", color=color, ms=4)
            panel.axvline(0, color="0.2", lw=0.8)
            panel.set_title(f"{target}: {metric}".replace("$", r"\$"), fontsize=9)
            panel.grid(axis="x", color="0.9")
            panel.set_axisbelow(True)
            panel.locator_params(axis="x", nbins=5)
            panel.tick_params(labelsize=8)
    panels[0][0].set_yticks(range(len(subsets)), [name.replace("$", r"\$") for name in subsets])
    panels[0][0].set_ylim(len(subsets) - 0.5, -0.5)
    figure.supxlabel("this minus other, 95 % interval over subjects (gray: not surely different)", fontsize=9)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_bytes(Path(path), buffer.getvalue())


def write(folder: str | Path, comparison: Comparison) -> dict[str, Path]:
    """Write ``against.csv``, ``against.json`` and ``against.png``, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table, summary, drawn = (folder / name for name in FILES)
    title = f"{comparison.about['cases']} case(s) of {comparison.about['subjects']} subject(s)"
    picture(comparison.differences, drawn, title=title)
    write_text(table, as_csv(comparison.differences))
    write_text(summary, json.dumps(as_json(comparison), indent=2, allow_nan=False) + "\n")
    return {"against": table, "against_json": summary, "against_picture": drawn}
