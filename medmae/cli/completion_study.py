"""Reconstruction and synthesis measured alike: a model next to what anybody gets without one, subset by subset."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .against import check_against, compared
from .console import emit, emit_json, flags, say
from .leakage import Prints, image_hashes, leaks, prints_of, refuse_training_cases, voxel_hashes

if TYPE_CHECKING:
    from medmae.evaluate.baselines import Baselines
    from medmae.evaluate.boosting import Boosting
    from medmae.evaluate.protocol import Guess, Row, Subject
    from medmae.evaluate.statistics import Cell

    from .completion import Completes

HELD_OUT = "heldout"
PARTS = (HELD_OUT, "train", "val", "test", "all")


def measure(
    opened: Callable[[], Completes],
    *,
    data: str,
    out: Path,
    split: str,
    cases: int | None,
    fit: str | None,
    fit_cases: int,
    boosting: bool,
    seed: int,
    allow_leakage: bool,
    overwrite: bool,
    identify: bool,
    against: Path | None = None,
) -> None:
    """Check the options, open the model, measure it on a part of a cohort, write and tell the results.

    Raises:
        UsageError: options that cannot be meant.
        DataError: no case can be measured; see also :func:`run_study`.
    """
    from medmae.data.cohort import open_cohort
    from medmae.data.preprocess import label_remap
    from medmae.data.writing import writing

    if split not in PARTS:
        raise UsageError(f"--split must be one of {', '.join(PARTS)}, not {split!r}")
    if (cases is not None and cases < 1) or fit_cases < 1:
        raise UsageError("--cases and --fit-cases must be at least 1")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if (out / "summary.json").exists() and not overwrite:
        raise UsageError(f"{out} holds results already; add --overwrite to replace them, or choose another --out")
    check_against(against, out)
    completer = opened()
    cohort = open_cohort(data)
    parts = cohort.split()
    part = cohort.cases if split in (HELD_OUT, "all") else parts[split]
    usable = [case for case in part if len(set(case.images) & set(completer.sequences)) > 1]
    if not usable:
        raise DataError(
            f"no case of the {split} part of {data} has two of the model's sequences ({', '.join(completer.sequences)})"
        )
    pairs: list[tuple[Any, Prints | None]] = [(case, None) for case in usable]
    if split == HELD_OUT:
        pairs = _held_out(usable, completer)
    chosen, prints = [case for case, _ in pairs[:cases]], [found for _, found in pairs[:cases] if found is not None]
    training = (open_cohort(fit).split() if fit is not None else parts)["train"]
    if fit is None:
        measured = {case.key for case in chosen}
        training = tuple(case for case in training if case.key not in measured)
    study = run_study(
        completer,
        chosen,
        prints=prints or None,
        training=training,
        fit_cases=fit_cases,
        boosting=boosting,
        remap=label_remap(cohort.spec),
        allow_leakage=allow_leakage,
        identify=identify,
        seed=seed,
    )
    about = {**study.about, "split": split, "fit": "the training part of " + ("--fit" if fit is not None else "--data")}
    with writing(out):
        files = study.write(out, about=about)
    if flags().json:
        from medmae.evaluate.table import summary_json

        listed = {name: os.fspath(path) for name, path in files.items()}
        emit_json({**summary_json(study.cells, about), "files": listed, **compared(out, against, seed=seed)})
        return
    from medmae.evaluate.table import text

    emit(f"PSNR in dB, mean over all subsets [95 % interval over {study.about['cases']} case(s)]")
    emit(text(study.cells))
    for line in study.verdict():
        emit(line)
    emit(os.fspath(out))
    compared(out, against, seed=seed)


def _held_out(cases: Sequence[Any], completer: Completes) -> list[tuple[Any, Prints | None]]:
    """The cases that the model was neither trained nor chosen on, with their hashes."""
    chosen_on = [{"subjects": data.get("validation_subjects") or ()} for data in completer.seen]
    pairs = zip(cases, prints_of(cases, completer.sequences), strict=True)
    found = [(case, own) for case, own in pairs if not any(leaks(own, data) for data in (*completer.seen, *chosen_on))]
    if not found:
        raise DataError(
            f"the model was trained or chosen on all {len(cases)} case(s): there is none to measure. "
            "Give other cases, or --split all --allow-leakage"
        )
    return list(found)


@dataclass(frozen=True)
class Study:
    """The measurements, their summary, how they were made, and whose each case is, by its code."""

    rows: Sequence[Row]
    cells: Sequence[Cell]
    about: Mapping[str, Any]
    subjects: Mapping[str, str] | None = None

    def write(self, folder: str | Path, *, about: Mapping[str, Any] | None = None) -> dict[str, Path]:
        """Tables and pictures, see ``medmae.evaluate.table.write``."""
        from medmae.evaluate.table import write

        title = f"{self.about['method']}: reconstruction from every subset, {self.about['cases']} case(s)"
        told = self.about if about is None else about
        return write(folder, self.rows, self.cells, about=told, title=title, subjects=self.subjects)

    def verdict(self) -> list[str]:
        """One sentence per target: which baselines the model beats, to which it loses, and where that is not sure."""
        from medmae.evaluate.table import verdict

        lines = []
        for target, found in verdict(self.cells).items():
            words = {"better": "better than", "worse": "WORSE than", "unclear": "not surely different from"}
            parts = [
                f"{words[kind]} {', '.join(names)}"
                for kind in words
                if (names := [n for n, v in found.items() if v == kind])
            ]
            lines.append(f"{target}: {'; '.join(parts)}")
        return lines


def run_study(
    completer: Completes,
    cases: Sequence[Any],
    *,
    training: Sequence[Any],
    prints: Sequence[Prints] | None = None,
    fit_cases: int = 50,
    boosting: bool = False,
    remap: Mapping[int, int] | None = None,
    allow_leakage: bool = False,
    identify: bool = False,
    seed: int = 0,
) -> Study:
    """Measure a model on ``cases`` and fit the baselines on at most ``fit_cases`` of ``training``, both from a cohort.

    Training cases that share an image with a measured one are left out. ``prints`` are the hashes of the cases where
    they are known. With ``boosting`` there is one more baseline. ``remap`` (value in the label file -> class) goes
    before the label region is taken, which is every class above 0.

    Raises DataError where a case cannot be read, with the faults of all cases, or was a training case of the model and
    ``allow_leakage`` is not set.
    """
    from medmae.data.workers import progress
    from medmae.evaluate.protocol import rows_of
    from medmae.evaluate.results import subject_codes
    from medmae.evaluate.statistics import summarize

    prints = prints_of(cases, completer.sequences) if prints is None else prints
    leaked = sum(refuse_training_cases(prints, data, allow=allow_leakage) for data in completer.seen)
    measured = frozenset[str]().union(*(found.all for found in prints))
    boosted = None
    if boosting:
        from medmae.evaluate.boosting import Boosting

        boosted = Boosting(completer.sequences, seed=seed)
    baselines, fitted, twins = _fit(completer, training, measured=measured, limit=fit_cases, boosted=boosted)
    if twins:
        say(f"{twins} case(s) left out of the baselines: they share an image with a measured case", style="yellow")
    if baselines is None:
        say(
            "there are no training cases to fit the baselines on: the model is measured alone (see --fit)",
            style="yellow",
        )

    def guess(shown: Subject, given: tuple[str, ...], targets: tuple[str, ...]) -> Mapping[str, Any]:
        return completer.guess(shown.images, shown.foreground, spacing=spacing, targets=targets)

    guesses: dict[str, Guess] = {"model": guess}
    if boosted is not None and baselines is not None:
        guesses["boosting"] = boosted.guess
    estimated = 0 if completer.preprocess.get("foreground") == "all" else sum(case.mask is None for case in cases)
    if estimated:
        say(
            f"{estimated} of {len(cases)} case(s) have no mask: their foreground is estimated from all sequences, "
            "the hidden one included",
            style="yellow",
        )
    rows: list[Row] = []
    faults: list[str] = []
    labels = elsewhere = 0
    with progress("evaluating", len(cases), quiet=flags().quiet) as advance:
        for case, found in zip(cases, prints, strict=True):
            try:
                code = case.key if identify else found.code
                subject, spacing = load_subject(completer, case, code=code, remap=remap)
            except DataError as error:
                faults.append(str(error))
            else:
                labels += subject.label is not None
                elsewhere += subject.label is None and case.label is not None
                rows += rows_of(subject, guesses, sequences=completer.sequences, baselines=baselines)
            advance()
    if faults:
        raise DataError(f"{len(faults)} of {len(cases)} case(s) cannot be read:\n  - " + "\n  - ".join(faults))
    if elsewhere:
        say(f"{elsewhere} label(s) left aside: they do not lie on the grid of their images", style="yellow")
    given = f"given masks in {len(cases) - estimated} case(s)"
    guessed = f"estimated from all sequences, the hidden one included, in {estimated} case(s)"
    about = {
        "method": completer.config["method"],
        "weights": f"sha256:{completer.weights}",
        "sequences": list(completer.sequences),
        "cases": len(cases),
        "cases_with_label": labels,
        "labels_on_another_grid": elsewhere,
        "foreground": "; ".join(([given] if estimated < len(cases) else []) + ([guessed] if estimated else [])),
        "training_cases_of_the_model": leaked,
        "baselines_fitted_on": fitted,
        "left_out_of_the_baselines": twins,
        "units": "normalized volume (mean 0 and deviation 1 in the foreground); "
        "PSNR and SSIM for the range between the 0.5 and 99.5 percentile of the truth in the foreground",
        "interval": "95 % percentile bootstrap over cases",
        "seed": seed,
        "overlap": completer.overlap,
        "precision": completer.precision,
    }
    codes, subjects = [found.code for found in prints], [case.subject for case in cases]
    owners = dict(zip(codes, subject_codes(codes, subjects), strict=True))
    if identify:
        owners = {case.key: case.subject for case in cases}
    return Study(rows, summarize(rows, seed=seed), about, owners)


def load_subject(
    completer: Completes, case: Any, *, code: str, remap: Mapping[int, int] | None = None
) -> tuple[Subject, tuple[float, float, float]]:
    """One case of a cohort on the model's grid and scale, and its spacing.

    Every class above 0, after ``remap``, is the label region. A label on another grid than the images is left out,
    unless the model's training cases were resampled.
    """
    from medmae.data.geometry import same_grid, to_model_grid
    from medmae.data.inference import load_case
    from medmae.data.preprocess import classes_of
    from medmae.data.readers import read
    from medmae.evaluate.protocol import Subject

    images = {name: path for name, path in case.images.items() if name in completer.sequences}
    loaded = load_case(images, completer.preprocess, mask=case.mask)
    label = None
    if case.label is not None:
        file = read(case.label)
        same = same_grid(file.array.shape, file.affine, loaded.header.shape, loaded.header.affine)
        if same or completer.preprocess.get("on_mismatch") == "resample":
            values, _ = to_model_grid(file, like=(loaded.shape, loaded.affine), nearest=True)
            label = classes_of(values, remap or {}) > 0
    return Subject(code, dict(loaded.images), loaded.foreground, label), loaded.spacing


def _fit(
    completer: Completes, training: Sequence[Any], *, measured: frozenset[str], limit: int, boosted: Boosting | None
) -> tuple[Baselines | None, int, int]:
    """The baselines, from how many cases (at most ``limit``), and how many share an image with a measured one.

    Cases that cannot be read are left out and said.
    """
    from medmae.data.fingerprint import Fingerprints, case_files
    from medmae.data.workers import progress
    from medmae.evaluate.baselines import Baselines, Sums

    sums, twins, prints = Sums(completer.sequences), 0, Fingerprints(None)
    with progress("fitting baselines", min(len(training), limit), quiet=flags().quiet) as advance:
        for case in training:
            if sums.cases == limit:
                break
            if len(set(case.images) & set(completer.sequences)) > 1:
                try:
                    own = {*image_hashes(case_files(case, prints)), *voxel_hashes(case, completer.sequences)}
                    if own & measured:
                        twins += 1
                        continue
                    subject, _ = load_subject(completer, dataclasses.replace(case, label=None), code="")
                    sums.add(subject.images, subject.foreground)
                    if boosted is not None:
                        boosted.add(subject.images, subject.foreground)
                except DataError as error:
                    say(f"left out of the baselines: {error}", style="yellow")
            advance()
    return (Baselines(sums), sums.cases, twins) if sums.cases else (None, 0, twins)
