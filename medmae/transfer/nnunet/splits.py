"""Folds by subject, in the file that nnU-Net reads them from.

nnU-Net's own five folds are drawn by case, so a patient examined twice lands on both sides, and with fewer than five
cases they cannot be drawn at all. Writing the file before the training starts settles both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from medmae.atomic import write_text
from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import Case, Cohort
from medmae.transfer.nnunet.folders import Folders
from medmae.transfer.nnunet.presence import Presence
from medmae.transfer.nnunet.raw import labeled_cases

FILE = "splits_final.json"
Fold = dict[str, list[str]]


def subject_folds(cohort: Cohort, *, folds: int = 1) -> list[Fold]:
    """``[{"train": [...], "val": [...]}, ...]`` of case names as in the raw folder; no subject is in both of a fold.

    One fold is the spec's own split. Several share out the labeled subjects of train and val, drawn by ``split.seed``.

    Raises:
        UsageError: fewer than one fold.
        DataError: too few labeled subjects, or a part of the spec's split without a labeled case.
    """
    if folds < 1:
        raise UsageError(f"--folds {folds}: at least 1 is needed")
    rule = cohort.spec.split
    cases = labeled_cases(cohort)
    if folds == 1:
        parts = cohort.split()
        fold = {part: _names([c for c in parts[part] if c.label is not None]) for part in ("train", "val")}
        empty = [part for part, names in fold.items() if not names]
        if empty:
            raise DataError(
                f"the spec's split has no labeled case to {'train' if 'train' in empty else 'validate'} on: change "
                f"split.val or split.seed in the spec, or ask for several folds (--folds {min(5, max(len(cases), 2))})"
            )
        return [fold]
    unit = {case.key: case.subject if rule.by == "subject" else case.key for case in cases}
    order = sorted(set(unit.values()), key=lambda name: _rank(rule.seed, name))
    if len(order) < folds:
        raise DataError(
            f"{len(order)} labeled subject(s) outside the test part cannot be shared out to {folds} folds: ask for "
            f"fewer (--folds {max(len(order), 1)})"
        )
    place = {name: i % folds for i, name in enumerate(order)}
    return [
        {
            "train": _names([c for c in cases if place[unit[c.key]] != fold]),
            "val": _names([c for c in cases if place[unit[c.key]] == fold]),
        }
        for fold in range(folds)
    ]


def write_splits(cohort: Cohort, folders: Folders, dataset: str, *, folds: int = 1) -> Path:
    """Write ``splits_final.json`` where nnU-Net looks for it, after planning and before training; returns its path.

    Cases that were left out of the raw folder are left out here.

    Raises:
        DataError: as :func:`subject_folds`.
    """
    found = subject_folds(cohort, folds=folds)
    presence = Presence.load(folders.raw / dataset)
    if presence is not None:
        found = [{part: [n for n in names if n in presence.cases] for part, names in fold.items()} for fold in found]
        if any(not names for fold in found for names in fold.values()):
            raise DataError("a fold is empty after leaving out the cases whose files do not share a grid")
    return write_text(folders.preprocessed / dataset / FILE, json.dumps(found, indent=1) + "\n")


def _names(cases: Sequence[Case]) -> list[str]:
    return sorted(case.file_stem for case in cases)


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"fold\0{seed}\0{name}".encode(errors="surrogatepass")).hexdigest()
