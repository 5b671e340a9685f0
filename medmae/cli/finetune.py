"""``medmae finetune``: from a data spec and a pre-trained model to a model that does a task."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .console import chatter_aside, emit, emit_json, flags, say
from .finetune_run import Wish
from .finetune_segment import finetune_segment
from .finetune_synthesize import synthesize
from .finetune_table import classify, regress, survive
from .given import given_options

if TYPE_CHECKING:
    from medmae.transfer.nnunet.folders import Folders

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
BACKENDS = ("nnunet", "medmae")
LABELS = ("classes", "regions")
NNUNET = (
    "dataset_id", "name", "planner", "configuration", "iterations", "validation_iterations", "warmup_epochs",
    "learning_rate", "min_loaded", "tta", "nnunet_root", "plan_only",
)  # fmt: skip
OWN = (
    "method", "scale", "fraction", "features", "deep_supervision", "dropout", "class_weights", "label_share", "distill",
    "preset", "sequences", "steps", "batch", "lr", "patience", "precision", "cache", "set_",
)  # fmt: skip
app.command()(classify)
app.command()(survive)
app.command("survival", hidden=True)(survive)
app.command()(regress)
app.command()(synthesize)


@app.callback()
def _root() -> None:
    """Fine-tune a pre-trained model to a task."""


@app.command()
def segment(
    ctx: typer.Context,
    data: Annotated[str, typer.Option(help="Cohort with labels: spec, nnU-Net folder, data list or CSV.")],
    out: Annotated[Path, typer.Option(help="Folder for everything: the model, the test results, nnU-Net's folders.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights to start from: model or run folder, exported or published file.")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start from random weights.")] = False,
    backend: Annotated[str, typer.Option(help="What trains: nnunet, or medmae (one network, any subset).")] = "nnunet",
    dataset_id: Annotated[int, typer.Option(help="Number of the nnU-Net data set, 1 to 999.")] = 501,
    name: Annotated[str | None, typer.Option(help="nnunet: name of its data set [default: the spec's].")] = None,
    label: Annotated[str, typer.Option(help="Train on the spec's classes or its regions.")] = "classes",
    planner: Annotated[str, typer.Option(help="nnunet: default, ResEncM, ResEncL, ResEncXL.")] = "ResEncM",
    configuration: Annotated[str, typer.Option(help="nnunet: configuration of the plans.")] = "3d_fullres",
    folds: Annotated[int, typer.Option(min=1, help="Folds by subject; 1 is the split of the spec.")] = 1,
    fold: Annotated[str, typer.Option(help="Which of them, from 0; nnunet: or all (no validation).")] = "0",
    schedule: Annotated[
        str | None, typer.Option(help="full, frozen, warmup, sawtooth; nnunet: sawtooth, warmup, scratch.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs [default: 200; nnunet: 1000].")] = None,
    iterations: Annotated[int | None, typer.Option(help="nnunet: batches per epoch [250].")] = None,
    validation_iterations: Annotated[int | None, typer.Option(help="nnunet: of validation, per epoch [50].")] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="nnunet: length of each warm-up.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="nnunet: peak learning rate.")] = None,
    layer_decay: Annotated[float, typer.Option(help="Factor of the learning rate per encoder stage.")] = 1.0,
    modality_dropout: Annotated[
        float | None,
        typer.Option(help="How often a sample loses sequences [default: 0.5; nnunet: 0.3 with several]."),
    ] = None,
    min_loaded: Annotated[float | None, typer.Option(help="nnunet: fail where fewer of the weights fit.")] = None,
    subsets: Annotated[
        str | None, typer.Option(help="Of the test: given, all, or t1n,t1n+t2w [default: all; nnunet: given].")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Predict and measure the test part.")
    ] = True,
    tta: Annotated[bool, typer.Option("--tta/--no-tta", help="nnunet: average over mirrored inputs.")] = True,
    nnunet_root: Annotated[
        Path | None, typer.Option(help="Folder of nnU-Net's three folders [default: OUT/nnunet].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; 0 is this one [default: 2; nnunet: up to 8].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of training and of the bootstrap.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again where a model is.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="nnunet: stop before training.")] = False,
    method: Annotated[str | None, typer.Option(help="medmae, from scratch: name of a method (bm_mae).")] = None,
    scale: Annotated[str | None, typer.Option(help="medmae, from scratch: named size of the method.")] = None,
    fraction: Annotated[float, typer.Option(help="medmae: share of the training subjects, in (0, 1].")] = 1.0,
    features: Annotated[int, typer.Option(min=1, help="medmae: channels at full resolution.")] = 16,
    deep_supervision: Annotated[
        bool, typer.Option("--deep-supervision/--no-deep-supervision", help="medmae: losses at coarser scales, too.")
    ] = True,
    dropout: Annotated[float, typer.Option(help="medmae: of the decoder's last channels.")] = 0.0,
    class_weights: Annotated[
        str, typer.Option(help="medmae: none, or balanced (rare ones weigh more: 1 / sqrt(voxels)).")
    ] = "none",
    label_share: Annotated[float, typer.Option(help="medmae: share of crops centered on a labeled voxel.")] = 0.5,
    distill: Annotated[
        float, typer.Option(help="medmae: weight of a teacher (mean of the model) that sees all sequences; 0: none.")
    ] = 0.0,
    preset: Annotated[
        str, typer.Option(help="medmae: any-subset; published: BM-MAE's decoder, tied to --sequences.")
    ] = "any-subset",
    sequences: Annotated[
        str | None, typer.Option(help="medmae, published: the one subset, such as t1c,t2f [default: all].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="medmae: optimizer steps, in place of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(help="medmae: crops per step [default: 2].")] = None,
    lr: Annotated[float | None, typer.Option(help="medmae: peak learning rate [default: 3e-4].")] = None,
    patience: Annotated[
        int | None, typer.Option(help="medmae: validations without progress before it stops; 0: never [30].")
    ] = None,
    precision: Annotated[str, typer.Option(help="medmae: fp32 or bf16.")] = "fp32",
    cache: Annotated[Path | None, typer.Option(help="medmae: folder of prepared cases.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="medmae: train.key=value, repeatable: train.ema=0.999.")
    ] = None,
) -> None:
    """Fine-tune to segmentation, predict the test part and measure it.

    With --backend medmae, one network learns every subset of the sequences, whatever patients lack; the cases that it
    has not seen are measured from every subset. Options that a backend does not have are refused.

    With --backend nnunet, the spec's cohort becomes an nnU-Net data set (links where possible, placeholders for missing
    sequences, splits by subject), is planned by nnU-Net and trained on that plan, then the test part is predicted and
    measured. What is done already and has not changed is not done again.
    """
    from medmae.data.cohort import open_cohort
    from medmae.data.writing import writing
    from medmae.transfer.nnunet.folders import Folders, require
    from medmae.transfer.nnunet.raw import write_raw
    from medmae.transfer.nnunet.run import train
    from medmae.transfer.nnunet.settings import Settings
    from medmae.transfer.nnunet.splits import write_splits
    from medmae.transfer.nnunet.weights import read_source

    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend!r}: there is {', '.join(BACKENDS)}")
    foreign = {name: f"--{name.strip('_').replace('_', '-')}" for name in (OWN if backend == "nnunet" else NNUNET)}
    if given := given_options(ctx, foreign):
        other = BACKENDS[1 - BACKENDS.index(backend)]
        raise UsageError(f"{', '.join(given)}: of --backend {other}, and this is --backend {backend}")
    if label not in LABELS:
        raise UsageError(f"--label must be one of {', '.join(LABELS)}, not {label!r}")
    if backend == "medmae":
        if not fold.isdecimal():
            raise UsageError(f"--fold {fold}: a number from 0 to {folds - 1}")
        tied = preset == "published"
        asked = {
            "fold": int(fold), "schedule": schedule or "full", "workers": 2 if workers is None else workers,
            "modality_dropout": (0.0 if tied else 0.5) if modality_dropout is None else modality_dropout,
        }  # fmt: skip
        finetune_segment(
            Wish.of({**locals(), **asked}),
            label=label,
            features=features,
            deep_supervision=deep_supervision,
            dropout=dropout,
            class_weights=class_weights,
            label_share=label_share,
            preset=preset,
            sequences=sequences,
            subsets=subsets or "all",
            evaluate=evaluate,
        )
        return
    if epochs is not None and epochs != int(epochs):
        raise UsageError(f"--epochs {epochs:g}: nnU-Net counts whole epochs")
    if (checkpoint is None) != from_scratch:
        raise UsageError("give --checkpoint (weights to start from) or --from-scratch, one of them")
    if fold != "all" and (not fold.isdecimal() or int(fold) >= folds):
        raise UsageError(f"--fold {fold}: with --folds {folds} it is a number from 0 to {folds - 1}, or all")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    cohort = open_cohort(data)
    if modality_dropout is None:
        modality_dropout = 0.3 if len(cohort.sequences) > 1 else 0.0
    settings = Settings(
        checkpoint=None if checkpoint is None else str(checkpoint),
        from_scratch=from_scratch,
        schedule=schedule,
        epochs=None if epochs is None else int(epochs),
        iterations=iterations,
        validation_iterations=validation_iterations,
        warmup_epochs=warmup_epochs,
        learning_rate=learning_rate,
        layer_decay=layer_decay,
        modality_dropout=modality_dropout,
        channels=cohort.sequences,
        min_loaded=min_loaded,
    )
    require()
    if checkpoint is not None:
        read_source(checkpoint)  # a mistake shows now, not after converting and planning
    many = min(os.cpu_count() or 1, 8) if workers is None else workers
    where = None if device == "auto" else device
    folders = Folders.use(out / "nnunet" if nnunet_root is None else nnunet_root)
    with writing(out):
        dataset = write_raw(
            cohort,
            folders,
            dataset_id=dataset_id,
            name=name or cohort.spec.name,
            workers=many,
            label=label,  # type: ignore[arg-type]
            say=say,
            quiet=flags().quiet,
        )
        planned = _plan(folders, dataset, planner=planner, configuration=configuration, workers=many)
        write_splits(cohort, folders, dataset, folds=folds)
        if plan_only:
            _finish({"dataset": dataset, "plans": planned, "root": os.fspath(folders.raw.parent)}, planned)
            return
        done = _finished(folders, dataset, planned, configuration, fold)
        if done is not None and not overwrite and not resume:
            raise UsageError(
                f"{done} was trained to the end already: add --overwrite to train again, or measure it with "
                f"medmae evaluate segment --data {data} --checkpoint {done.parent} --out ..."
            )
        with chatter_aside():
            trained = train(
                dataset,
                folders=folders,
                configuration=configuration,
                fold=fold,
                plans=planned,
                settings=settings,
                device=where,
                resume=resume,
                overwrite=overwrite,
                workers=many,
                seed=seed,
                say=say,
            )
    from .evaluate_segment import evaluate_model
    from .segmentation_model import remember_training

    used = _training_cases(cohort, folders, dataset, fold)
    remember_training(trained.folder, used, cohort.sequences)
    result = {
        "dataset": dataset,
        "plans": trained.plans,
        "model": os.fspath(trained.folder),
        "fold": fold,
        "validation_dice": trained.dice,
        "sequences": list(cohort.sequences),
        "settings": settings.to_dict(),
    }
    with writing(out):
        from medmae.data.fingerprint import write_json

        write_json(out / "finetune.json", result)
    dice = "" if trained.dice is None else f", validation Dice {trained.dice:.3f}"
    say(f"The model is {trained.folder}{dice}. Next: medmae nnunet predict {trained.folder} -i IMAGES -o OUT")
    test = [case for case in cohort.split()["test"] if case.label is not None]
    if evaluate and not test:
        say("there is no labeled case in the test part, so nothing is measured", style="yellow")
    if not evaluate or not test:
        _finish(result, os.fspath(trained.folder))
        return
    evaluate_model(
        trained.folder,
        cohort,
        test,
        out=out / "test",
        subsets=subsets or "given",
        folds=[fold],
        device=device,
        workers=many,
        tta=tta,
        seed=seed,
        about={"split": "test"},
    )


def _plan(folders: Folders, dataset: str, *, planner: str, configuration: str, workers: int) -> str:
    """Plans of the data set as it is now; made again only where the data, planner or configuration are others."""
    from medmae.data.fingerprint import read_json, write_json
    from medmae.transfer.nnunet.plans import PLANNED
    from medmae.transfer.nnunet.run import plan

    home = folders.preprocessed / dataset
    raw = json.loads((folders.raw / dataset / "dataset.json").read_text(encoding="utf-8"))
    digest, record = raw["medmae"]["digest"], home / PLANNED
    known = read_json(record, {})
    key = f"{planner}/{configuration}"
    if known.get("digest") != digest:
        if known and home.is_dir():
            say(f"the data changed: planning {dataset} again")
            shutil.rmtree(home)  # nnU-Net would keep cases that are no longer there
        known = {"digest": digest, "plans": {}}
    found = known["plans"].get(key)
    if found is not None and (home / f"{found}.json").is_file():
        say(f"{dataset} is planned and preprocessed already ({found})")
        return str(found)
    with chatter_aside(show=False):
        done = plan(
            dataset,
            folders=folders,
            planner=planner,
            configurations=(configuration,),
            workers=workers,
            check=False,  # every file was read while converting
            say=say,
        )
    known["plans"][key] = done.name
    write_json(record, known)
    return str(done.name)


def _finished(folders: Folders, dataset: str, plans: str, configuration: str, fold: str) -> Path | None:
    """The fold's folder where its training came to its end."""
    pattern = f"*__{plans}__{configuration}/fold_{fold}/checkpoint_final.pth"
    return next((path.parent for path in sorted((folders.results / dataset).glob(pattern))), None)


def _training_cases(cohort: Any, folders: Folders, dataset: str, fold: str) -> list[Any]:
    """The cohort's cases that a fold is trained on."""
    from medmae.transfer.nnunet.raw import labeled_cases
    from medmae.transfer.nnunet.splits import FILE

    cases = labeled_cases(cohort)
    if fold == "all":
        return list(cases)
    try:
        names = set(json.loads((folders.preprocessed / dataset / FILE).read_text(encoding="utf-8"))[int(fold)]["train"])
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{folders.preprocessed / dataset / FILE} cannot be read ({error})") from error
    return [case for case in cases if case.file_stem in names]


def _finish(result: dict[str, Any], line: str) -> None:
    if flags().json:
        emit_json(result)
    else:
        emit(line)
