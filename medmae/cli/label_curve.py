"""``medmae evaluate --fractions``: which pre-training is worth most when labels are few.

Every model is frozen and gives one vector per patient; what differs between two lines of the table is the
pre-training, never the classifier, the patients or the labels that were drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import CheckpointError, DataError, UsageError

from .console import emit, emit_json, flags, say

if TYPE_CHECKING:
    import numpy as np
    import torch

    from medmae.core.method import Method

SCRATCH = "scratch"
PARTS = ("train", "val", "test", "all")


def label_curve(
    context: typer.Context,
    fractions: Annotated[
        str | None, typer.Option(help="Label curve: shares of the training labels, such as 0.1,0.25,1.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Cohort: spec with a table.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Model folder or run folder.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the spec's table that is to be told.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another model folder, or 'scratch' (the same network, untrained); repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables and the picture.")] = None,
    split: Annotated[str, typer.Option(help="Cases to use: train, val, test or all.")] = "all",
    cases: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    folds: Annotated[int, typer.Option(help="Parts the patients are cut into; each is tested once.")] = 5,
    draws: Annotated[int, typer.Option(help="How often labels are drawn at every fraction.")] = 10,
    batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of folds, draws, intervals and untrained weights.")] = 0,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Use the models' training cases, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
) -> None:
    """Measure a model, subset by subset, next to baselines.

    With --fractions: a label curve. Frozen features (mean over the foreground of whole volumes) go to a logistic
    regression that learns from a fraction of the labels; AUC and balanced accuracy on patients that are held out, with
    95 % bootstrap intervals over patients and draws of labels.
    """
    given = {"fractions": fractions, "data": data, "checkpoint": checkpoint, "target": target, "out": out}
    if context.invoked_subcommand is not None:
        if stray := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"--{stray[0]} stands before {context.invoked_subcommand}, where it belongs to the label curve: "
                f"write medmae evaluate {context.invoked_subcommand} --..."
            )
        return
    if lacking := [name for name, value in given.items() if value is None]:
        raise UsageError(
            f"a label curve needs --{', --'.join(lacking)}: "
            "medmae evaluate --fractions 0.1,0.25,1 --checkpoint MODEL --data SPEC --target COLUMN --out FOLDER"
        )
    assert fractions is not None
    assert data is not None
    assert checkpoint is not None
    assert target is not None
    assert out is not None
    shares = _shares(fractions)
    if split not in PARTS:
        raise UsageError(f"--split must be one of {', '.join(PARTS)}, not {split!r}")
    if batch < 1 or draws < 1 or folds < 2 or (cases is not None and cases < 1):
        raise UsageError("--batch, --draws and --cases must be at least 1, --folds at least 2")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"--precision must be fp32 or bf16, not {precision!r}")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if (out / "summary.json").exists() and not overwrite:
        raise UsageError(f"{out} holds results already; add --overwrite to replace them, or choose another --out")

    from medmae.data.cohort import open_cohort
    from medmae.data.writing import writing
    from medmae.evaluate.label_curve import INVERSE_STRENGTH
    from medmae.evaluate.label_curve import label_curve as measure
    from medmae.evaluate.label_table import curve_json, text, write

    from .leakage import prints_of, refuse_training_cases

    models = open_models([checkpoint, *(against or ())], device=device, seed=seed)
    cohort = open_cohort(data)
    part = cohort.cases if split == "all" else cohort.split()[split]
    chosen, labels = labeled_cases(part, cohort.spec, target=target, models=models)
    chosen, labels = chosen[:cases], labels[:cases]
    prints = prints_of(chosen, tuple({name for model in models for name in model.method.sequences}))
    leaked = {
        model.name: refuse_training_cases(prints, model.data, allow=allow_leakage, who=model.name) for model in models
    }
    features = features_of(models, chosen, batch=batch, precision=precision)
    curve = measure(
        features, labels, [c.subject for c in chosen], fractions=shares, draws=draws, folds=folds, seed=seed
    )
    about = {
        "target": target,
        "cases": len(chosen),
        "cases_by_class": {name: labels.count(name) for name in curve.classes},
        "subjects": len({case.subject for case in chosen}),
        "split": split,
        "models": {
            model.name: {
                "method": model.config["method"],
                "weights": model.weights,
                "features": features[model.name].shape[1],
                "training_cases": leaked[model.name],
            }
            for model in models
        },
        "classifier": f"logistic regression, C {INVERSE_STRENGTH:g} for standardized features over the square root "
        "of their number, classes balanced",
        "draws": draws,
        "seed": seed,
        "precision": precision,
        "interval": "95 % percentile bootstrap over subjects within classes and over draws of labels",
    }
    with writing(out):
        files = write(out, curve, about=about, title=f"{target}: {len(chosen)} cases, {curve.folds} folds")
    if flags().json:
        emit_json({**curve_json(curve, about), "files": {name: os.fspath(path) for name, path in files.items()}})
        return
    emit(f"{target} of {len(chosen)} case(s), {curve.folds} folds [95 % interval over subjects and draws of labels]")
    for metric in ("auc", "balanced_accuracy"):
        emit(text(curve, metric=metric))
    emit(os.fspath(out))


def _shares(words: str) -> list[float]:
    try:
        shares = [float(word) for word in words.split(",")]
    except ValueError as error:
        raise UsageError(f"--fractions {words!r}: numbers between 0 and 1 with commas, such as 0.1,0.25,1") from error
    if not all(0 < share <= 1 for share in shares):
        raise UsageError(f"--fractions {words}: every fraction must be above 0 and at most 1")
    return shares


@dataclass(frozen=True)
class Model:
    """A model under test.

    Attributes:
        name: what tables call it.
        method: with its weights, on its device, in evaluation mode.
        config: of its model folder.
        weights: SHA-256 of its weights, or "untrained".
    """

    name: str
    method: Method
    config: Mapping[str, Any]
    weights: str

    @property
    def data(self) -> Mapping[str, Any]:
        """What it remembers of its training data; an untrained one has none."""
        return {} if self.weights == "untrained" else self.config.get("data") or {}

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """How a case is brought to its grid and scale."""
        return (self.config.get("data") or {}).get("preprocess") or {}


def open_models(folders: Sequence[str | Path], *, device: str, seed: int) -> list[Model]:
    """Load model folders; the word "scratch" is the network of the first one with fresh weights.

    Raises CheckpointError where one has no encoder of volumes of named sequences, UsageError where one is given twice.
    """
    import torch

    from medmae.checkpoint import WEIGHTS, file_hash, load_model, model_folder
    from medmae.find import find

    from .completion import pick_device

    where = pick_device(device)
    models: list[Model] = []
    for folder in folders:
        if str(folder) == SCRATCH and models:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = find(models[0].config["method"]).build(**models[0].config["recipe"])
            models.append(Model(SCRATCH, fresh.to(where).eval(), models[0].config, "untrained"))
            continue
        path = model_folder(folder)
        loaded = load_model(path)
        grid = getattr(getattr(loaded.method, "tokenizer", None), "grid", None)
        named = "sequences" in loaded.config["recipe"]  # others read sequences as channels, without names
        if not hasattr(loaded.method, "encoder") or grid is None or len(grid.size) != 3 or not named:
            raise CheckpointError(
                f"{folder} holds {loaded.config['method']}, which has no encoder of volumes of named sequences"
            )
        if not (loaded.config.get("data") or {}).get("preprocess"):
            say(f"{folder} states no preprocessing: images are only oriented to RAS and normalized", style="yellow")
        absolute = path.resolve()
        leaf = absolute.parent.name if absolute.name in ("model", "model-last") else absolute.name
        name = f"{loaded.config['method']} ({leaf})"
        models.append(Model(name, loaded.method.to(where).eval(), loaded.config, f"sha256:{file_hash(path / WEIGHTS)}"))
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models would both be called {twice[0]}: give each folder once, or rename one")
    return models


def labeled_cases(
    part: Sequence[Any], spec: Any, *, target: str, models: Sequence[Model]
) -> tuple[list[Any], list[str]]:
    """The cases that have a class in the column ``target`` and a sequence that every model knows, and their classes.

    Raises DataError where there is no table, no such column or no such case; UsageError where it is no class.
    """
    columns = spec.table.columns if spec.table is not None else {}
    if target not in columns:
        has = f"its table has {', '.join(columns)}" if columns else "it names no table"
        raise DataError(
            f"the spec has no column {target!r}: {has}. Name a column under table.columns, such as {{{target}: class}}"
        )
    if columns[target] not in ("class", "event"):
        raise UsageError(
            f"--target {target} is a {columns[target]}, and a label curve needs classes: "
            f"choose a column of the kind class, or declare {target}: class in the spec"
        )
    known = [case for case in part if case.table.get(target) is not None]
    seen = [case for case in known if all(set(case.images) & set(model.method.sequences) for model in models)]
    if not seen:
        raise DataError(
            f"none of {len(part)} case(s) has a value in the column {target}"
            if not known
            else f"none of {len(known)} case(s) with {target} has a sequence that all models know"
        )
    for lack, what in ((len(part) - len(known), f"no {target}"), (len(known) - len(seen), "no sequence of a model")):
        if lack:
            say(f"{lack} case(s) left aside: {what}", style="yellow")
    return seen, [_word(case.table[target]) for case in seen]


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def features_of(models: Sequence[Model], cases: Sequence[Any], *, batch: int, precision: str) -> dict[str, np.ndarray]:
    """One row per case from every model. DataError with the faults of all cases that cannot be read."""
    import numpy as np
    import torch

    from medmae.data.workers import progress

    rows: dict[str, list[np.ndarray]] = {model.name: [] for model in models}
    faults: list[str] = []
    with progress("computing features", len(cases), quiet=flags().quiet) as advance:
        for case in cases:
            loaded: dict[str, Any] = {}
            try:
                for model in models:
                    device = next(model.method.parameters()).device
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        rows[model.name].append(_row(model, case, loaded, batch=batch))
            except DataError as error:
                faults.append(str(error))
            advance()
    if faults:
        raise DataError(f"{len(faults)} of {len(cases)} case(s) cannot be read:\n  - " + "\n  - ".join(faults))
    return {name: np.stack(found) for name, found in rows.items()}


def _row(model: Model, case: Any, loaded: dict[str, Any], *, batch: int) -> np.ndarray:
    """Features of one case; ``loaded`` keeps it for models that prepare it in the same way."""
    import torch

    from medmae.data.inference import load_case
    from medmae.transfer.backbone import volume_features

    images = {name: path for name, path in case.images.items() if name in model.method.sequences}
    way = json.dumps([model.preprocess, sorted(images)], sort_keys=True, default=str)
    if way not in loaded:
        loaded[way] = load_case(images, model.preprocess, mask=case.mask)
    ready = loaded[way]
    if not ready.images:
        raise DataError(f"case {case.key}: none of its images can be used ({'; '.join(ready.odd.values())})")
    volumes: dict[str, torch.Tensor] = {name: torch.from_numpy(image) for name, image in ready.images.items()}
    inside = torch.from_numpy(ready.foreground)
    found: np.ndarray = volume_features(model.method, volumes, inside, spacing=ready.spacing, batch_size=batch).numpy()
    return found
