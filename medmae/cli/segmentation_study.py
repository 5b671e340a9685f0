"""From label files and predictions to measurements: what ``evaluate segment`` and ``finetune segment`` share.

A prediction may number its classes otherwise than the spec does (nnU-Net wants 0, 1, 2 without gaps), so both sides
are compared by class name: the dataset.json that nnU-Net leaves beside its predictions says what its numbers mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .console import flags

if TYPE_CHECKING:
    from medmae.data.spec import Label
    from medmae.evaluate.protocol import Row
    from medmae.evaluate.segmentation import Empty, Target

ENDING = ".nii.gz"
CHOICES = ("auto", "classes", "regions", "both")
GIVEN = "given"  # stands for the sequences of a case where nobody said which


@dataclass(frozen=True)
class Reference:
    """A true segmentation.

    Attributes:
        key: of the case, for messages.
        name: of the prediction's file, without ending.
        code: what tables call it.
        path: the label file.
        given: the sequences the case has.
        subject: whose case it is; empty where nobody said.
    """

    key: str
    name: str
    code: str
    path: Path
    given: tuple[str, ...] = (GIVEN,)
    subject: str = ""


@dataclass(frozen=True)
class Rules:
    """How labels are read and measured.

    Attributes:
        values: value in a reference file -> class value.
        targets: what to measure.
        predicted: values a prediction may hold.
        tolerance: millimeters, of the surface Dice.
        empty: see ``medmae.evaluate.segmentation``.
        ignore: class value whose voxels count for nothing.
        resample: bring a reference on another grid to that of the prediction rather than refuse.
    """

    values: Mapping[int, int]
    targets: tuple[Target, ...]
    predicted: frozenset[int]
    tolerance: float = 1.0
    empty: Empty = "score"
    ignore: int | None = None
    resample: bool = False


@dataclass(frozen=True)
class Predictions:
    """A folder of predictions made from one subset of the sequences; None: from what its record says, or each has."""

    folder: Path
    given: tuple[str, ...] | None = None
    cases: frozenset[str] | None = field(default=None)  # names to look for; None: all


def measure_pair(prediction: str, reference: str, rules: Rules) -> dict[str, dict[str, float]]:
    """Target -> metric -> value of one case.

    Raises:
        DataError: a file cannot be read, holds values it may not, or lies on another grid.
    """
    from medmae.data.geometry import same_grid, to_model_grid, voxel_spacing
    from medmae.data.labels import read_label
    from medmae.data.readers import Volume
    from medmae.evaluate.segmentation import measure

    guess, guessed, _ = read_label(prediction, {value: value for value in rules.predicted})
    truth, classes = _truth(reference, tuple(sorted(rules.values.items())))
    if not same_grid(guess.array.shape, guess.affine, truth.array.shape, truth.affine):
        if not rules.resample:
            raise DataError(
                f"{prediction} is not on the grid of {reference}: shape {guess.array.shape} against "
                f"{truth.array.shape}, or another place in the world. Write predictions on the grid of the labels"
            )
        like: Any = (guess.array.shape, guess.affine)
        moved, _ = to_model_grid(Volume(classes.astype("float32"), truth.affine, truth.header), like=like, nearest=True)
        classes = moved.astype(classes.dtype)
    return measure(
        guessed,
        classes,
        rules.targets,
        spacing=voxel_spacing(guess.affine),
        tolerance=rules.tolerance,
        empty=rules.empty,
        ignore=rules.ignore,
    )


@lru_cache(maxsize=1)
def _truth(path: str, values: tuple[tuple[int, int], ...]) -> tuple[Any, Any]:
    """A label file and its classes: the same one is compared with the prediction from every subset."""
    from medmae.data.labels import read_label

    found, classes, _ = read_label(path, dict(values))
    classes.flags.writeable = False
    return found, classes


def measure_all(
    references: Sequence[Reference], predictions: Sequence[Predictions], rules: Rules, *, workers: int = 0
) -> list[Row]:
    """A row per case, folder of predictions and target.

    Raises:
        DataError: predictions that are missing, unreadable or on another grid: all of them at once.
    """
    from medmae.data.workers import each, progress
    from medmae.evaluate.protocol import Row
    from medmae.transfer.nnunet.presence import Presence

    jobs: list[tuple[str, str, Rules]] = []
    owners: dict[tuple[str, str], list[tuple[Reference, tuple[str, ...]]]] = {}
    faults: list[str] = []
    for part in predictions:
        seen = Presence.load(part.folder)
        for reference in references:
            if part.cases is not None and reference.name not in part.cases:
                continue
            path = part.folder / f"{reference.name}{ENDING}"
            if not path.is_file():
                faults.append(f"case {reference.key}: no prediction {path}")
                continue
            job = (str(path), str(reference.path), rules)
            given = part.given or (reference.given if seen is None else seen.cases.get(reference.name, reference.given))
            owners.setdefault(job[:2], []).append((reference, given))
            jobs.append(job)
    rows: dict[tuple[str, str], list[Row]] = {}
    _truth.cache_clear()
    ordered = [] if faults else sorted(jobs, key=lambda job: job[1])  # so that a label is read once
    with progress("measuring", len(jobs), quiet=flags().quiet) as advance:
        for job, outcome in each(measure_pair, ordered, workers=workers, preload=(__name__,)):
            for reference, given in owners[job[:2]]:
                if isinstance(outcome.error, DataError) or outcome.died:
                    faults.append(f"case {reference.key}: {outcome.error or 'its process was killed'}")
                elif outcome.error is not None:
                    raise outcome.error
                else:
                    rows[job[:2]] = [
                        Row(reference.code, given, name, "model", values) for name, values in outcome.value.items()
                    ]
            advance()
    if faults:
        raise DataError(
            f"{len(faults)} case(s) cannot be measured:\n  - " + "\n  - ".join(faults[:50])
            + (f"\n  ... and {len(faults) - 50} more" if len(faults) > 50 else "")
        )  # fmt: skip
    return [row for job in jobs for row in rows[job[:2]]]


def rules_of(
    label: Label, dataset: Mapping[str, Any] | None, *, targets: str = "auto", on_mismatch: str = "error", **more: Any
) -> Rules:
    """Rules for a spec's labels, and predictions numbered as ``dataset`` (a dataset.json) says; None: as the spec.

    ``more`` are ``tolerance`` and ``empty`` of :class:`Rules`.

    Raises:
        UsageError: an unknown choice of targets, regions that the spec does not have, or nothing in common.
    """
    from medmae.evaluate.segmentation import targets_of

    if targets not in CHOICES:
        raise UsageError(f"--targets must be one of {', '.join(CHOICES)}, not {targets!r}")
    if targets == "regions" and not label.regions:
        raise UsageError("--targets regions: the spec has no label.regions")
    regions = {} if targets == "classes" else dict(label.regions)
    classes = {} if targets == "regions" or (targets == "auto" and regions) else dict(label.classes)
    ignore = classes.pop("ignore", None) or label.classes.get("ignore")
    found = targets_of(classes, regions)
    predicted = set(label.classes.values()) | {0}
    if dataset is not None:
        found = _named(found, label, dataset["labels"])
        predicted = _values(dataset["labels"]) | {0}
    if not found:
        raise UsageError(
            "nothing to measure: the spec and the predictions' dataset.json have no class or region in common"
        )
    values = {value: label.remap.get(value, value) for value in label.file_values | {0}}
    return Rules(values, found, frozenset(predicted), ignore=ignore, resample=on_mismatch == "resample", **more)


def rules_without_spec(dataset: Mapping[str, Any] | None, references: Sequence[Reference], **more: Any) -> Rules:
    """Rules for folders of labels and predictions of one numbering: that of ``dataset``, else every value there is.

    Raises:
        DataError: a reference cannot be read.
        UsageError: there is nothing but background.
    """
    import numpy as np

    from medmae.data.readers import read
    from medmae.evaluate.segmentation import Target

    if dataset is not None:
        named = {name: _members(value) for name, value in dataset["labels"].items() if name != "ignore"}
        targets = tuple(Target(name, values, values) for name, values in named.items() if values and 0 not in values)
        values = _values(dataset["labels"]) | {0}
        ignore = dataset["labels"].get("ignore")
    else:
        values = {int(v) for r in references for v in np.unique(read(r.path).array) if v == round(float(v))} | {0}
        targets = tuple(Target(f"class {v}", (v,), (v,)) for v in sorted(values) if v > 0)
        ignore = None
    if not targets:
        raise UsageError("nothing to measure: the references hold the background only")
    return Rules({v: v for v in values}, targets, frozenset(values), ignore=ignore, **more)


def find_dataset(*folders: Path | None) -> Mapping[str, Any] | None:
    """The first dataset.json in ``folders``; None where there is none.

    Raises:
        DataError: one that cannot be read.
    """
    for folder in folders:
        if folder is not None and (folder / "dataset.json").is_file():
            try:
                value = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{folder / 'dataset.json'}: cannot be read ({error})") from error
            if not isinstance(value, dict) or not isinstance(value.get("labels"), dict):
                raise DataError(f"{folder / 'dataset.json'}: names no labels")
            return value
    return None


def _named(targets: Sequence[Target], label: Label, labels: Mapping[str, Any]) -> tuple[Target, ...]:
    """The targets with the values that predictions have for them; those the predictions do not know are left out."""
    from dataclasses import replace

    from medmae.transfer.nnunet.label_scheme import LabelScheme

    for kind in ("regions", "classes"):
        try:
            scheme = LabelScheme.of(label, kind=kind)  # type: ignore[arg-type]
        except UsageError:
            continue
        if dict(scheme.labels) == dict(labels):
            place = scheme.place
            moved = [replace(t, prediction=tuple(place[v] for v in t.reference if v in place)) for t in targets]
            return tuple(t for t in moved if len(t.prediction) == len(t.reference))
    known = {name: _members(value) for name, value in labels.items()}
    return tuple(replace(t, prediction=known[t.name]) for t in targets if t.name in known)


def _members(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)


def _values(labels: Mapping[str, Any]) -> set[int]:
    return {v for value in labels.values() for v in _members(value)}
