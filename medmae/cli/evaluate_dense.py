"""A segmentation model of medmae on held-out cases, subset by subset.

A case is read and prepared once and shown in every subset. Where a hidden sequence would have a say in that (no mask
says what the foreground is, one has holes, or decides the grid), every subset is prepared by itself, as it would be in
use. An image with one value only is missing, in whichever subset: what is tabled is what the model saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError

from .console import flags, say
from .dense_model import OVERLAP, Segmenter, open_segmenter, write_labels
from .evaluate_table import held_out
from .segmentation_cases import GIVEN, check_labels, chosen_subsets, label_of, labeled, mismatch, references_of, report
from .segmentation_study import Predictions, Reference, Rules, rules_of

if TYPE_CHECKING:
    from medmae.data.cohort import Case, Cohort
    from medmae.data.inference import InferenceCase

Subset = tuple[str, ...] | None
"""Sequences that are shown; None is what a case has."""


def evaluate_segmenter(
    checkpoint: Path,
    cohort: Cohort,
    *,
    out: Path,
    subsets: str = GIVEN,
    split: str = "heldout",
    cases: int | None = None,
    targets: str = "auto",
    batch: int = 4,
    overlap: float = OVERLAP,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = 0,
    seed: int = 0,
    allow_leakage: bool = False,
    identify: bool = False,
    after_training: bool = False,
    against: Path | None = None,
    **more: Any,
) -> bool:
    """Predict, measure, write and print; whether there was anything to measure.

    Args:
        checkpoint: model folder or run folder.
        cohort: with labels.
        out: folder of the tables, pictures and ``predictions``.
        subsets: given, all, or a list.
        split: heldout, or a part of the cohort, or all.
        cases: at most so many.
        targets: see ``segmentation_study.rules_of``.
        batch: windows per forward pass.
        overlap: share of a window that the next one covers again.
        device: where the model runs.
        precision: fp32 or bf16.
        workers: processes that measure; 0 is this one.
        seed: of the bootstrap.
        allow_leakage: measure training cases, too.
        identify: write case names in place of hashes.
        against: results to compare with.
        after_training: with no case to measure, say so rather than raise.
        more: ``tolerance`` and ``empty`` of the rules.

    Raises:
        CheckpointError: no segmentation model.
        DataError: no case to measure, training cases, cases that cannot be read: all of them at once.
        UsageError: options that cannot be meant.
    """
    model = open_segmenter(checkpoint, device=device, batch=batch, precision=precision, overlap=overlap)
    rules = _rules(model, cohort, targets=targets, **more)
    try:
        part = labeled(cohort, split="all" if split == "heldout" else split)
        needed = set(model.sequences)
        usable = [c for c in part if (needed <= set(c.images) if model.tied else needed & set(c.images))]
        if not usable:
            raise DataError(f"no case has {'all' if model.tied else 'any'} of {', '.join(model.sequences)}")
        if left := len(part) - len(usable):
            say(f"{left} case(s) left aside: without {'all' if model.tied else 'any'} of the model's sequences")
        options = {"split": split, "allow_leakage": allow_leakage}
        chosen, _, seen = held_out(usable, model.model, options)
    except DataError as error:
        if not after_training:
            raise
        say(f"nothing was measured: {error}", style="yellow")
        return False
    chosen = chosen[:cases]
    wanted: list[Subset] = [model.tied] if model.tied else chosen_subsets(subsets, model.sequences, chosen)
    check_labels(chosen, cohort, workers=workers)
    found = references_of(chosen, model.sequences, identify=identify)
    found, parts = predict_subsets(model, chosen, found, wanted, out=out / "predictions")
    about = {
        "model": checkpoint.name,
        "weights": model.model.weights,
        "sequences": list(model.sequences),
        "subsets": subsets,
        "split": split,
        "overlap": overlap,
        "precision": precision,
        **seen,
    }
    report(found, parts, rules, out=out, workers=workers, seed=seed, about=about, against=against)
    return True


def predict_subsets(
    model: Segmenter, cases: Sequence[Case], references: Sequence[Reference], wanted: Sequence[Subset], *, out: Path
) -> tuple[list[Reference], list[Predictions]]:
    """The references, with what could be used of each, and one folder of label maps per subset that a case has.

    Raises:
        DataError: cases that cannot be read, all of them at once, or none of a subset: nothing is to be measured then.
    """
    from medmae.data.workers import progress
    from medmae.data.writing import writing

    new = [folder for folder in out.parents if not folder.exists()]  # the deepest first
    _clear(out)
    done: dict[Subset, set[str]] = {subset: set() for subset in wanted}
    used: dict[str, Reference] = {reference.name: reference for reference in references}
    faults: list[str] = []
    with progress("predicting", len(cases), quiet=flags().quiet) as advance:
        for case, reference in zip(cases, references, strict=True):
            try:
                for subset, loaded, given in _shown(model, case, wanted):
                    labels = model.labels(model.probability(loaded, given=given), loaded)
                    with writing(out):
                        write_labels(out / _name(subset) / f"{reference.name}.nii.gz", labels, loaded)
                    done[subset].add(reference.name)
                    if subset is None:
                        used[reference.name] = replace(reference, given=tuple(n for n in reference.given if n in given))
            except DataError as error:
                faults.append(str(error))
            advance()
    if not faults and not any(done.values()):
        faults = [f"case {case.key}: no image that can be used" for case in cases]
    if faults:
        _clear(out)
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise DataError(f"{len(faults)} of {len(cases)} case(s) cannot be read:\n  - " + "\n  - ".join(faults))
    parts = [Predictions(out / _name(subset), subset, frozenset(names)) for subset, names in done.items() if names]
    return list(used.values()), parts


def _shown(
    model: Segmenter, case: Case, wanted: Sequence[Subset]
) -> Iterator[tuple[Subset, InferenceCase, tuple[str, ...]]]:
    """The subsets that a case has, each with the prepared case and what is shown of it."""
    from medmae.data.oddities import NOT_FINITE
    from medmae.data.preprocess import SkippedCaseError

    mine = [subset for subset in wanted if subset is None or set(subset) <= set(case.images)]
    known = tuple(name for name in case.images if name in model.sequences)
    name, settings = f"case {case.key}", model.model.preprocess
    whole = None
    if (case.mask is not None or settings.get("foreground") == "all") and settings.get("on_mismatch") != "resample":
        with suppress(SkippedCaseError):
            whole = model.load(case.images, mask=case.mask, name=name)
        if whole is not None and NOT_FINITE in whole.odd.values():
            whole = None
    gone: set[str] = set()
    for subset in mine:
        asked = known if subset is None else subset
        loaded = whole
        if loaded is None:
            with suppress(SkippedCaseError):  # nothing to see in any of them, or what the spec wants to be left out
                loaded = model.load({n: case.images[n] for n in asked}, mask=case.mask, name=name)
        there = () if loaded is None else tuple(n for n in asked if n in loaded.images)
        gone |= set(asked) - set(there)
        if loaded is not None and there and (subset is None or there == subset):
            yield subset, loaded, there
    if gone:
        say(f"{name}: {', '.join(sorted(gone))} cannot be used and counts as missing", style="yellow")


def _rules(model: Segmenter, cohort: Cohort, *, targets: str, **more: Any) -> Rules:
    """What is measured, by name, since the cohort may number its classes otherwise than the model."""
    label, meaning = label_of(cohort), model.meaning
    labels = {name: list(held) for name, held in meaning.labels().items()}
    rules = rules_of(label, {"labels": labels}, targets=targets, on_mismatch=mismatch(cohort), **more)
    whole = rules_of(label, None, targets=targets, **more)
    measured = {target.name for target in rules.targets}
    if lost := [target.name for target in whole.targets if target.name not in measured]:
        say(f"not measured, the model has no such output: {', '.join(lost)}", style="yellow")
    return replace(rules, predicted=frozenset({*rules.predicted, 0, *meaning.paint}))


def _name(subset: Subset) -> str:
    return GIVEN if subset is None else "+".join(subset)


def _clear(folder: Path) -> None:
    """Remove earlier predictions: a case that is no longer measured must not stay beside those that are."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
