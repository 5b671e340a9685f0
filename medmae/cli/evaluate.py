"""``medmae evaluate reconstruct``: a model next to what anybody gets without one, subset by subset.

Without a command, ``medmae evaluate --fractions`` measures a label curve.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from . import evaluate_table
from .console import emit, emit_json, flags, say
from .evaluate_segment import segment
from .label_curve import label_curve
from .leakage import image_hashes, prints_of, refuse_training_cases, voxel_hashes

if TYPE_CHECKING:
    from medmae.evaluate.baselines import Baselines
    from medmae.evaluate.protocol import Row, Subject
    from medmae.evaluate.statistics import Cell

    from .completion import Completer

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
PARTS = ("train", "val", "test", "all")


app.callback(invoke_without_command=True)(label_curve)
app.command()(segment)
app.command()(evaluate_table.classify)
app.command()(evaluate_table.survive)


@app.command()
def reconstruct(
    data: Annotated[str, typer.Option(help="Cohort: spec, folder, data list or CSV.")],
    checkpoint: Annotated[Path, typer.Option(help="Model folder or run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and pictures.")],
    split: Annotated[str, typer.Option(help="Cases to measure: train, val, test or all.")] = "test",
    cases: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    fit: Annotated[
        str | None, typer.Option(help="Cohort whose training cases the baselines are fitted on [default: --data].")
    ] = None,
    fit_cases: Annotated[int, typer.Option(help="At most so many of them.")] = 50,
    overlap: Annotated[float, typer.Option(help="Share of a window that others cover, per axis.")] = 0.5,
    batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Measure on the model's training cases, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    identify: Annotated[
        bool, typer.Option("--identify", help="Write case names in place of short content hashes.")
    ] = False,
) -> None:
    """Reconstruct every sequence from every subset of the others, and compare with baselines.

    PSNR, SSIM, MAE and R2 are taken inside the foreground, and inside the label where a case has one, in units of the
    normalized volume. The baselines (mean intensity, best single sequence after a linear fit, linear regression from
    all given sequences) are fitted on training cases only. Intervals are 95 % bootstrap intervals over cases.
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
    from .completion import open_completer

    completer = open_completer(checkpoint, device=device, overlap=overlap, batch=batch, precision=precision)
    cohort = open_cohort(data)
    parts = cohort.split()
    part = cohort.cases if split == "all" else parts[split]
    chosen = [case for case in part if len(set(case.images) & set(completer.sequences)) > 1][:cases]
    if not chosen:
        raise DataError(
            f"no case of the {split} part of {data} has two of the model's sequences ({', '.join(completer.sequences)})"
        )
    training = (open_cohort(fit).split() if fit is not None else parts)["train"]
    if fit is None:
        measured = {case.key for case in chosen}
        training = tuple(case for case in training if case.key not in measured)
    study = run_study(
        completer,
        chosen,
        training=training,
        fit_cases=fit_cases,
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

        emit_json(
            {**summary_json(study.cells, about), "files": {name: os.fspath(path) for name, path in files.items()}}
        )
        return
    from medmae.evaluate.table import text

    emit(f"PSNR in dB, mean over all subsets [95 % interval over {study.about['cases']} case(s)]")
    emit(text(study.cells))
    for line in study.verdict():
        emit(line)
    emit(os.fspath(out))


@dataclass(frozen=True)
class Study:
    """The measurements, their summary, and how they were made."""

    rows: Sequence[Row]
    cells: Sequence[Cell]
    about: Mapping[str, Any]

    def write(self, folder: str | Path, *, about: Mapping[str, Any] | None = None) -> dict[str, Path]:
        """Tables and pictures, see ``medmae.evaluate.table.write``."""
        from medmae.evaluate.table import write

        title = f"{self.about['method']}: reconstruction from every subset, {self.about['cases']} case(s)"
        return write(folder, self.rows, self.cells, about=self.about if about is None else about, title=title)

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
    completer: Completer,
    cases: Sequence[Any],
    *,
    training: Sequence[Any],
    fit_cases: int = 50,
    remap: Mapping[int, int] | None = None,
    allow_leakage: bool = False,
    identify: bool = False,
    seed: int = 0,
) -> Study:
    """Measure a model on ``cases`` and fit the baselines on at most ``fit_cases`` of ``training``, both from a cohort.

    Training cases that share an image with a measured one are left out. ``remap`` (value in the label file -> class)
    goes before the label region is taken, which is every class above 0.

    Raises DataError where a case cannot be read, with the faults of all cases, or was a training case of the model and
    ``allow_leakage`` is not set.
    """
    from medmae.data.workers import progress
    from medmae.evaluate.protocol import rows_of
    from medmae.evaluate.statistics import summarize

    prints = prints_of(cases, completer.sequences)
    leaked = refuse_training_cases(prints, completer.data, allow=allow_leakage)
    measured = frozenset[str]().union(*(found.all for found in prints))
    baselines, fitted, twins = _fit(completer, training, measured=measured, limit=fit_cases)
    if twins:
        say(f"{twins} case(s) left out of the baselines: they share an image with a measured case", style="yellow")
    if baselines is None:
        say(
            "there are no training cases to fit the baselines on: the model is measured alone (see --fit)",
            style="yellow",
        )

    def guess(shown: Subject, given: tuple[str, ...], targets: tuple[str, ...]) -> Mapping[str, Any]:
        return completer.guess(shown.images, shown.foreground, spacing=spacing, targets=targets)

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
                rows += rows_of(subject, {"model": guess}, sequences=completer.sequences, baselines=baselines)
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
    return Study(rows, summarize(rows, seed=seed), about)


def load_subject(
    completer: Completer, case: Any, *, code: str, remap: Mapping[int, int] | None = None
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
    completer: Completer, training: Sequence[Any], *, measured: frozenset[str], limit: int
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
                except DataError as error:
                    say(f"left out of the baselines: {error}", style="yellow")
            advance()
    return (Baselines(sums), sums.cases, twins) if sums.cases else (None, 0, twins)
