"""What an evaluation left in a folder, read back, so that two of them can be compared and several be pooled.

Cases are known by their codes. Unless names were asked for, a code is a hash of the content of a case's images, so the
same case is found under any file name. Nothing is taken on trust: a folder is read as text, and one that lacks a
column, a number or a case is refused with the reason.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmae.core.errors import DataError, UsageError

from .paired import Measured

MEASUREMENTS, PREDICTIONS, SUMMARY = "measurements.csv", "predictions.csv", "summary.json"
TABLE_TASKS = {"classify": ("class",), "survive": ("time", "event"), "regress": ("value",)}
"""Tasks whose metrics belong to a cohort -> the roles of their outcomes."""
_SAYS = {"survive": ("risk",), "regress": ("value",)}  # columns of what a model says
_SETTINGS = {
    "targets": "the classes or regions",
    "empty": "the rule for empty targets (--empty)",
    "nsd_tolerance_mm": "the tolerance of the surface Dice (--tolerance)",
    "columns": "the columns of the table",
    "classes": "the class names",
    "units": "the units",
}
"""Entries of "about" that must be the same in results that are compared or pooled."""


@dataclass(frozen=True)
class Said:
    """What a model said of a case.

    Attributes:
        case: its code.
        subject: whose case it is.
        subset: the sequences as one word, or "given".
        truth: role -> outcome, as text.
        values: column -> number: ``probability_NAME``, ``risk`` or ``value``.
        fold: of pooled results, which model said it; empty otherwise.
    """

    case: str
    subject: str
    subset: str
    truth: Mapping[str, str]
    values: Mapping[str, float]
    fold: str = ""


@dataclass(frozen=True)
class Results:
    """An evaluation as it was written.

    Attributes:
        folder: where.
        task: classify, survive, segmentation, reconstruct, ...
        about: how it was made.
        measured: numbers of cases; empty for tasks whose metrics belong to a cohort.
        said: predictions, for those tasks.
        subjects_known: whether the file says whose case each is; if not, every case counts as a subject.
    """

    folder: Path
    task: str
    about: Mapping[str, Any]
    measured: tuple[Measured, ...] = ()
    said: tuple[Said, ...] = ()
    subjects_known: bool = field(default=False)

    @property
    def cases(self) -> dict[str, str]:
        """Code of every case -> its subject."""
        rows: tuple[Measured | Said, ...] = (*self.measured, *self.said)
        return {row.case: row.subject for row in rows}

    @property
    def subsets(self) -> set[str]:
        """The subsets of sequences that were given."""
        return {row.subset for row in self.measured} | {row.subset for row in self.said}


def subject_codes(codes: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """What a table calls the subject of each case: the smallest code of the subject's cases, which tells no name."""
    own: dict[str, str] = {}
    for code, subject in zip(codes, subjects, strict=True):
        own[subject] = min(own.get(subject, code), code)
    return [own[subject] for subject in subjects]


def read_results(folder: str | Path) -> Results:
    """The results of ``medmae evaluate segment``, ``reconstruct``, ``classify``, ``survive`` and their like.

    Raises:
        UsageError: the folder holds no results.
        DataError: what it holds cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the --out of an earlier 'medmae evaluate'")
    if not (folder / SUMMARY).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY}"))
        hint = f". Results are in {', '.join(str(folder / name) for name in inside)}" if inside else ""
        raise UsageError(f"{folder} holds no results of 'medmae evaluate' (no {SUMMARY}){hint}")
    try:
        about = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["about"]
        if not isinstance(about, dict):
            raise TypeError("'about' is no mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / SUMMARY} cannot be read as results ({error}); evaluate again") from error
    if "task" not in about and isinstance(about.get("models"), list):
        raise UsageError(f"{folder} is of 'medmae probe', which compares models itself: name the other with --against")
    task = str(about.get("task") or "reconstruct")
    if (folder / PREDICTIONS).is_file() and task in TABLE_TASKS:
        lines = _lines(folder / PREDICTIONS, ("case", "given", *(f"true_{role}" for role in TABLE_TASKS[task])))
        said = tuple(_said(line, task, about, folder / PREDICTIONS) for line in lines)
        _once(((row.case, row.subset) for row in said), folder)
        return Results(folder, task, about, said=said, subjects_known="subject" in lines[0])
    if (folder / MEASUREMENTS).is_file():
        lines = _lines(folder / MEASUREMENTS, ("case", "given", "target", "method"))
        _once(((li["case"], li["given"], li["target"], li["method"]) for li in lines), folder)
        measured = tuple(row for line in lines for row in _measured(line, folder / MEASUREMENTS))
        return Results(folder, task, about, measured=measured, subjects_known="subject" in lines[0])
    raise UsageError(f"{folder} holds neither {MEASUREMENTS} nor {PREDICTIONS} of a task that can be compared ({task})")


def refuse_other_study(first: Results, second: Results) -> None:
    """Raises DataError, with the reason, where two results are of another task or were measured in another way."""
    where = f"{first.folder} and {second.folder} cannot be put side by side: "
    if first.task != second.task:
        raise DataError(f"{where}one is of the task {first.task}, the other of {second.task}")
    for key, words in _SETTINGS.items():
        one, two = first.about.get(key), second.about.get(key)
        if key == "targets" and isinstance(one, Mapping) and isinstance(two, Mapping):
            shared = [name for name in one if name in two]  # one model may know more regions than the other
            one, two = {name: one[name] for name in shared}, {name: two[name] for name in shared}
        if one != two:
            raise DataError(f"{where}{words} differ: {_short(one)} and {_short(two)}")


def refuse_other_cases(first: Results, second: Results) -> None:
    """Raises DataError, with the reason, where two results are not about the same cases, subjects and outcomes."""
    where = f"{first.folder} and {second.folder} cannot be compared: "
    one, two = first.cases, second.cases
    if one.keys() != two.keys():
        lacking, more = sorted(one.keys() - two.keys()), sorted(two.keys() - one.keys())
        parts = [f"{len(names)} case(s) only in {r.folder} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                 for names, r in ((lacking, first), (more, second)) if names]  # fmt: skip
        hint = "evaluate both with the same --data, --split and --cases, and both with or both without --identify"
        raise DataError(f"{where}they are not about the same cases: {'; '.join(parts)}. {hint[0].upper()}{hint[1:]}")
    if first.subjects_known and second.subjects_known:
        moved = [case for case in one if one[case] != two[case]]
        if moved:
            raise DataError(f"{where}{len(moved)} case(s) belong to another subject ({', '.join(moved[:3])})")
    outcomes = [{(row.case, tuple(row.truth.items())) for row in results.said} for results in (first, second)]
    wrong = sorted({case for case, _ in outcomes[0] ^ outcomes[1]})
    if wrong:
        raise DataError(f"{where}{len(wrong)} case(s) have another outcome ({', '.join(wrong[:3])}): the table changed")
    if not first.subsets & second.subsets:
        raise DataError(
            f"{where}no subset of sequences is in both: {', '.join(sorted(first.subsets))}; and "
            f"{', '.join(sorted(second.subsets))}. Evaluate both with the same --subsets"
        )


def literal(text: str) -> str:
    """A name as it was before it was quoted for spreadsheet programs."""
    return text[1:] if text[:1] == "'" and text[1:2] in ("=", "+", "-", "@", "\t", "\r") else text


def _lines(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); evaluate again") from error
    lacking = [name for name in needed if name not in (reader.fieldnames or ())]
    if lacking:
        raise DataError(f"{path} has no column {', '.join(lacking)}: it was not written by 'medmae evaluate'")
    if not lines:
        raise DataError(f"{path} holds no case")
    if any(None in line or None in line.values() for line in lines):
        raise DataError(f"{path} has lines with too many or too few cells; evaluate again")
    return [{literal(key): literal(value) for key, value in line.items()} for line in lines]


def _number(text: str, path: Path, column: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError as error:
        raise DataError(f"{path}: {text!r} in the column {column} is no number") from error


def _measured(line: Mapping[str, str], path: Path) -> list[Measured]:
    case, rest = line["case"], {k: v for k, v in line.items() if k not in ("case", "subject", "given", "target")}
    method, subject = rest.pop("method"), line.get("subject") or case
    return [
        Measured(case, subject, line["given"], line["target"], metric, _number(text, path, metric), method)
        for metric, text in rest.items()
    ]


def _said(line: Mapping[str, str], task: str, about: Mapping[str, Any], path: Path) -> Said:
    truth = {role: line[f"true_{role}"] for role in TABLE_TASKS[task]}
    names = [f"probability_{name}" for name in about.get("classes") or ()] if task == "classify" else list(_SAYS[task])
    values = {name: _number(line.get(name, ""), path, name) for name in names}
    lacking = [name for name, value in values.items() if not math.isfinite(value)]
    if lacking or not values:
        raise DataError(f"{path}: case {line['case']} has no number for {', '.join(lacking) or 'any class'}")
    if task == "classify" and truth["class"] not in about["classes"]:
        raise DataError(f"{path}: case {line['case']} has the class {truth['class']!r}, which is none of the model's")
    if task != "classify":
        outcome = {role: _number(text, path, f"true_{role}") for role, text in truth.items()}
        if not all(math.isfinite(value) for value in outcome.values()):
            raise DataError(f"{path}: case {line['case']} has no {' or no '.join(truth)}")
        truth = {role: repr(value) for role, value in outcome.items()}
    return Said(line["case"], line.get("subject") or line["case"], line["given"], truth, values, line.get("fold", ""))


def _once(keys: Any, folder: Path) -> None:
    seen: set[Any] = set()
    for key in keys:
        if key in seen:
            raise DataError(
                f"{folder}: case {key[0]} is there twice given {key[1]}; cases with the same images have the same "
                "code. Remove copies from the cohort ('medmae data check' names them) and evaluate again"
            )
        seen.add(key)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
