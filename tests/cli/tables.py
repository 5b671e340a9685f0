"""Folders of results as evaluations write them, for the tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmae.evaluate.cells import csv_text
from medmae.evaluate.protocol import Row
from medmae.evaluate.table import rows_csv

CLASSES = ["mutant", "wildtype"]


def codes(count: int, *, start: int = 0) -> list[str]:
    """Case codes."""
    return [f"{i:016x}" for i in range(start, start + count)]


def classified(
    folder: Path,
    cases: Sequence[str],
    *,
    skill: float,
    seed: int = 0,
    subsets: Sequence[str] = ("t1n", "t1n+t2w"),
    subjects: Sequence[str] | None = None,
    **about: object,
) -> Path:
    """Results of ``evaluate classify``: class ``wildtype`` scores higher by ``skill``."""
    rng = np.random.default_rng(seed)
    head = ["case", *(["subject"] if subjects else []), "given", "true_class", "prediction", "probability_mutant",
            "probability_wildtype"]  # fmt: skip
    lines = []
    for subset in subsets:
        for i, case in enumerate(cases):
            kind = int(case, 16) % 2
            score = float(1 / (1 + np.exp(-rng.normal() - skill * (kind - 0.5))))
            owner = [subjects[i]] if subjects else []
            lines.append([case, *owner, subset, CLASSES[kind], CLASSES[int(score > 0.5)], 1 - score, score])
    folder.mkdir(parents=True)
    (folder / "predictions.csv").write_text(csv_text(head, lines))
    told = {"task": "classify", "columns": {"class": "idh"}, "classes": CLASSES, "weights": f"sha256:{seed}", **about}
    (folder / "summary.json").write_text(json.dumps({"about": told, "summary": []}))
    return folder


def surviving(folder: Path, cases: Sequence[str], *, skill: float, seed: int = 0) -> Path:
    """Results of ``evaluate survive`` of a model in discrete time, whose time bins are its own."""
    rng = np.random.default_rng(seed)
    head = ["case", "given", "true_time", "true_event", "risk", "expected", f"survival_{100 + seed}"]
    lines = []
    for case in cases:
        i = int(case, 16)
        time = 50.0 + 37 * i % 400
        lines.append([case, "given", time, float(i % 3 > 0), float(rng.normal() - skill * time / 100), 1.0, 0.5])
    folder.mkdir(parents=True)
    (folder / "predictions.csv").write_text(csv_text(head, lines))
    told = {"task": "survive", "columns": {"time": "os_days", "event": "os_event"}, "classes": []}
    (folder / "summary.json").write_text(json.dumps({"about": told, "summary": []}))
    return folder


def regressed(folder: Path, cases: Sequence[str], *, noise: float, seed: int = 0) -> Path:
    """Results of ``evaluate regress``."""
    rng = np.random.default_rng(seed)
    ages = [30.0 + 7 * int(case, 16) % 50 for case in cases]
    lines = [[case, "given", age, float(age + noise * rng.normal())] for case, age in zip(cases, ages, strict=True)]
    folder.mkdir(parents=True)
    (folder / "predictions.csv").write_text(csv_text(["case", "given", "true_value", "value"], lines))
    told = {"task": "regress", "columns": {"value": "age"}, "classes": []}
    (folder / "summary.json").write_text(json.dumps({"about": told, "summary": []}))
    return folder


def segmented(
    folder: Path,
    cases: Sequence[str],
    *,
    dice: float,
    seed: int = 0,
    subjects: dict[str, str] | None = None,
    subsets: Sequence[tuple[str, ...]] = (("t1n",), ("t1n", "t2w")),
    **about: object,
) -> Path:
    """Results of ``evaluate segment``: Dice around ``dice`` of what a case allows."""
    rng = np.random.default_rng(seed)
    rows = []
    for given in subsets:
        for case in cases:
            level = 0.2 * (int(case, 16) % 5) / 4
            for target in ("core", "=edema"):
                value = float(np.clip(dice - level + 0.02 * rng.normal(), 0, 1))
                rows.append(Row(case, given, target, "model", {"dice": value, "hd95": 20 * (1 - value)}))
    folder.mkdir(parents=True)
    (folder / "measurements.csv").write_text(rows_csv(rows, subjects=subjects))
    told = {"task": "segmentation", "empty": "score", "nsd_tolerance_mm": 1.0, "targets": {"core": [1]}, **about}
    (folder / "summary.json").write_text(json.dumps({"about": told, "summary": []}))
    return folder
