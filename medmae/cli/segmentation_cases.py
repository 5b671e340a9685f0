"""Which cases are measured, against what, from which subsets, and how the result is told.

Shared by the two ways to segment: inside nnU-Net, and with a model of medmae's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .against import compared
from .console import emit, emit_json, flags, say
from .segmentation_study import ENDING, GIVEN, Predictions, Reference, Rules, measure_all

if TYPE_CHECKING:
    from medmae.data.cohort import Case, Cohort


def report(
    references: Sequence[Reference],
    predictions: Sequence[Predictions],
    rules: Rules,
    *,
    out: Path,
    workers: int = 0,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    against: Path | None = None,
) -> None:
    """Measure, write the tables and pictures, print them, and compare them with those of ``against``."""
    from medmae.data.writing import writing
    from medmae.evaluate.segmentation_table import text, write
    from medmae.evaluate.statistics import summarize

    if not references:
        raise DataError("there is no case with a label to measure")
    rows = measure_all(references, predictions, rules, workers=workers)
    cells = summarize(rows, seed=seed)
    count = len({row.case for row in rows})
    about = {
        "task": "segmentation",
        "cases": count,
        "targets": {t.name: list(t.reference) for t in rules.targets},
        "empty": rules.empty,
        "nsd_tolerance_mm": rules.tolerance,
        "units": "hd95 in millimeters; dice and nsd between 0 and 1",
        "interval": "95 % percentile bootstrap over cases",
        "seed": seed,
        **(about or {}),
    }
    with writing(out):
        files = write(
            out, rows, cells, about=about, title=f"Segmentation of {count} case(s)", subjects=_owners(references)
        )
    if flags().json:
        from medmae.evaluate.table import summary_json

        found = summary_json(cells, about)
        del found["verdict"]
        listed = {name: os.fspath(path) for name, path in files.items()}
        emit_json({**found, "files": listed, **compared(out, against, seed=seed)})
        return
    for metric, title in (("dice", "Dice"), ("hd95", "HD95 in mm"), ("nsd", f"NSD at {rules.tolerance:g} mm")):
        emit(f"{title}, mean over {count} case(s) [95 % interval]")
        emit(text(cells, metric=metric))
    emit(os.fspath(out))
    compared(out, against, seed=seed)


def _owners(references: Sequence[Reference]) -> dict[str, str] | None:
    """Code of a case -> what tables call its subject; None where nobody said whose cases they are."""
    from medmae.evaluate.results import subject_codes

    if not all(reference.subject for reference in references):
        return None
    codes, subjects = [r.code for r in references], [r.subject for r in references]
    named = all(r.code == r.key for r in references)
    return dict(zip(codes, subjects if named else subject_codes(codes, subjects), strict=True))


def labeled(cohort: Cohort, *, split: str) -> list[Case]:
    """The cases of a part that have a label.

    Raises:
        UsageError: the spec has no labels.
        DataError: no case of the part has one.
    """
    label_of(cohort)
    part = cohort.cases if split == "all" else cohort.split()[split]
    found = [case for case in part if case.label is not None]
    if not found:
        raise DataError(
            f"none of the {len(part)} case(s) of the {split} part has a label: correct label.file in the spec, "
            "or choose another --split"
        )
    if len(found) < len(part):
        say(f"{len(part) - len(found)} of {len(part)} case(s) have no label and are left out", style="yellow")
    return found


def references_of(cases: Sequence[Case], sequences: Sequence[str], *, identify: bool = False) -> list[Reference]:
    """The labels of cases; tables call a case by a hash of its images, or by its name."""
    from medmae.data.fingerprint import Fingerprints, case_files, case_hash

    prints = Fingerprints(None)
    return [
        Reference(
            key=case.key,
            name=case.file_stem,
            code=case.key if identify else case_hash(case_files(case, prints)),
            path=case.label,
            given=tuple(name for name in sequences if name in case.images),
            subject=case.subject,
        )
        for case in cases
        if case.label is not None
    ]


def label_of(cohort: Cohort) -> Any:
    """The label section of the spec.

    Raises:
        UsageError: it has none.
    """
    if cohort.spec.label is None:
        raise UsageError(
            f"{cohort.spec.path or cohort.spec.name}: the spec has no 'label', so there is nothing to measure against: "
            "add label: {file: ..., classes: {background: 0, ...}}"
        )
    return cohort.spec.label


def check_labels(cases: Sequence[Case], cohort: Cohort, *, workers: int = 0) -> None:
    """Read the labels of cases before anything is predicted for them.

    Raises:
        DataError: labels that cannot be read, hold values that the spec does not name, or lie elsewhere: all at once.
    """
    from medmae.data.label_counts import label_counts

    same = mismatch(cohort) == "error"
    label_counts(cases, label_of(cohort), same_grid=same, workers=workers, quiet=flags().quiet)


def mismatch(cohort: Cohort) -> str:
    """What the spec wants where files of one case do not share a grid."""
    return cohort.spec.geometry.on_mismatch


def references_in(folder: Path) -> list[Reference]:
    """Every label of a folder.

    Raises:
        UsageError: no such folder.
        DataError: it holds none.
    """
    from medmae.data.fingerprint import Fingerprints

    if not folder.is_dir():
        raise UsageError(f"--references {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDING) and not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no label; they are called case{ENDING}")
    prints = Fingerprints(None)
    names = [path.name.removesuffix(ENDING) for path in found]
    return [Reference(n, n, prints.of(path)[:16], path) for n, path in zip(names, found, strict=True)]


def folders_in(folder: Path, sequences: Sequence[str] | None) -> list[Predictions]:
    """The folder itself, or one folder of predictions per subset in it."""
    if not folder.is_dir():
        raise UsageError(f"--predictions {folder}: no such folder")
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob(f"*{ENDING}"))]
    parts = []
    for path in inside:
        names = tuple(path.name.split("+"))
        if path.name == GIVEN:
            parts.append(Predictions(path))
        elif sequences is None or set(names) <= set(sequences):
            parts.append(Predictions(path, names))
    if any(folder.glob(f"*{ENDING}")) or not parts:
        return [Predictions(folder)]
    return parts


def chosen_subsets(text: str, known: Sequence[str], cases: Sequence[Case]) -> list[tuple[str, ...] | None]:
    """What ``--subsets`` means; None stands for what each case has."""
    from medmae.core.sequences import canonical
    from medmae.evaluate.protocol import subsets

    if text == GIVEN:
        return [None]
    if text == "all":
        every = [*subsets(tuple(known)), tuple(known)]
        return [s for s in every if any(set(s) <= set(case.images) for case in cases)]
    found: list[tuple[str, ...] | None] = []
    for word in text.split(","):
        try:
            names = {canonical(name) for name in word.split("+")}
        except ValueError as error:
            raise UsageError(f"--subsets {text!r}: {error}") from error
        unknown = sorted(names - set(known))
        if unknown:
            raise UsageError(
                f"--subsets {word}: the model has no {', '.join(unknown)}; it knows {', '.join(known)}. "
                "Write subsets such as t1n,t1n+t2w, or 'all', or 'given'"
            )
        if not any(names <= set(case.images) for case in cases):
            raise DataError(f"--subsets {word}: no case to measure has {' and '.join(sorted(names))}")
        found.append(tuple(name for name in known if name in names))
    return list(dict.fromkeys(found))
