"""``medmae nnunet``: pre-trained weights inside nnU-Net, in this process, with no environment variables to set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmae.cli.nnunet_export import export

if TYPE_CHECKING:
    from medmae.transfer.nnunet.folders import Folders

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Plug weights into nnU-Net: export, plan, train, predict."
)
app.command("export")(export)

Root = Annotated[
    Path | None,
    typer.Option(
        "--nnunet-root",
        help="Folder of nnUNet_raw, nnUNet_preprocessed and nnUNet_results (the environment, else ./nnunet).",
    ),
]
Dataset = Annotated[str, typer.Argument(help="Number or name of the nnU-Net data set.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes that prepare and export; 0 works in this one.")
]
Device = Annotated[str | None, typer.Option("--device", help="cuda, cpu or mps; default: what there is.")]


@app.command()
def plan(
    dataset: Dataset,
    planner: Annotated[
        str, typer.Option("--planner", help="default, ResEncM, ResEncL, ResEncXL, or a planner's class name.")
    ] = "ResEncM",
    configuration: Annotated[
        list[str] | None, typer.Option("--configuration", help="What to preprocess, repeatable (3d_fullres).")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the plans (the planner's own).")] = None,
    gpu_memory: Annotated[float | None, typer.Option("--gpu-memory", help="Gigabytes to plan for.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Also write plans for the network of this ViT.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Read every file and name all faults first.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Plan anew where plans of this name exist.")] = False,
    nnunet_root: Root = None,
    workers: Workers = None,
) -> None:
    """Take the fingerprint, plan and preprocess a data set in nnUNet_raw."""
    from medmae.cli.console import chatter_aside, emit_json, flags, say
    from medmae.transfer.nnunet.own_plans import plans_for
    from medmae.transfer.nnunet.run import plan as run
    from medmae.transfer.nnunet.weights import read_source

    folders = _folders(nnunet_root)
    wanted = tuple(configuration or ["3d_fullres"])
    if checkpoint is not None:
        read_source(checkpoint)  # a mistake shows now, not after the preprocessing
    with chatter_aside(show=False):
        done = run(
            dataset,
            folders=folders,
            planner=planner,
            configurations=wanted,
            name=name,
            gpu_memory=gpu_memory,
            workers=_count(workers),
            check=check,
            overwrite=overwrite,
            say=say,
        )
        names = [done.name]
        if checkpoint is not None:
            home = done.path.parent
            raw = folders.raw / done.dataset
            made = [
                plans_for(checkpoint, home=home, raw=raw, name=done.name, configuration=one, say=say) for one in wanted
            ]
            names += [made_name for made_name in dict.fromkeys(made) if made_name != done.name]
    for one, values in done.summary.items():
        say(f"{one}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    say(
        f"The plans are in {done.path}. Next: medmae nnunet train {done.dataset} --plans {names[-1]} --checkpoint MODEL"
    )
    if flags().json:
        emit_json({"dataset": done.dataset, "plans": names, "path": str(done.path), "configurations": done.summary})


@app.command()
def train(
    dataset: Dataset,
    configuration: Annotated[str, typer.Option("--configuration", help="Configuration of the plans.")] = "3d_fullres",
    fold: Annotated[str, typer.Option("--fold", help="From 0, or all.")] = "0",
    plans: Annotated[str | None, typer.Option("--plans", help="Name of the plans, where there are several.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Weights: model or run folder, exported or published file.")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start from random weights.")] = False,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="sawtooth (CNN), warmup (ViT) or scratch (nnU-Net's own).")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs (1000).")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", help="Training batches per epoch (250).")] = None,
    validation_iterations: Annotated[
        int | None, typer.Option("--validation-iterations", help="Validation batches per epoch (50).")
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option("--warmup-epochs", help="Length of each warm-up (50, at most a quarter of the epochs)."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Peak (sawtooth 1e-3, warmup 1e-4, scratch 1e-2).")
    ] = None,
    layer_decay: Annotated[
        float, typer.Option("--layer-decay", help="Factor of the learning rate per encoder stage or block.")
    ] = 1.0,
    modality_dropout: Annotated[
        float, typer.Option("--modality-dropout", help="How often a sample loses some of its sequences, 0 to 1.")
    ] = 0.0,
    deep_supervision: Annotated[
        bool, typer.Option("--deep-supervision/--no-deep-supervision", help="Train the coarser outputs too.")
    ] = True,
    channels: Annotated[
        str | None, typer.Option("--channels", help="What the channels are, if dataset.json does not: t1n,t1c,...")
    ] = None,
    min_loaded: Annotated[
        float | None, typer.Option("--min-loaded", help="Fail where fewer of the parameters find weights (0.8).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a training that is there.")] = False,
    results: Annotated[
        Path | None, typer.Option("--results", help="Another folder for trained models, to keep trainings apart.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Predict and score the validation cases at the end.")
    ] = True,
    device: Device = None,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, help="Graphics cards that share the batch; nnU-Net then always validates.")
    ] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the random numbers of this process.")] = None,
    nnunet_root: Root = None,
    workers: Workers = None,
) -> None:
    """Fine-tune inside nnU-Net on your own plan, from pre-trained weights or from scratch."""
    from medmae.cli.console import chatter_aside, emit_json, flags, say
    from medmae.transfer.nnunet.run import train as run
    from medmae.transfer.nnunet.settings import Settings

    settings = Settings(
        checkpoint=None if checkpoint is None else str(checkpoint),
        from_scratch=from_scratch,
        schedule=schedule,
        epochs=epochs,
        iterations=iterations,
        validation_iterations=validation_iterations,
        warmup_epochs=warmup_epochs,
        learning_rate=learning_rate,
        layer_decay=layer_decay,
        modality_dropout=modality_dropout,
        deep_supervision=deep_supervision,
        channels=None if channels is None else tuple(name.strip() for name in channels.split(",")),
        min_loaded=min_loaded,
    )
    folders = _folders(nnunet_root, results=results)
    with chatter_aside():
        done = run(
            dataset,
            folders=folders,
            configuration=configuration,
            fold=fold,
            plans=plans,
            settings=settings,
            device=device,
            resume=resume,
            overwrite=overwrite,
            validate=validate,
            workers=_count(workers),
            gpus=gpus,
            seed=seed,
            say=say,
        )
    say(f"Trained {done.folder}" + ("" if done.dice is None else f"; mean validation Dice {done.dice:.4f}"))
    say(f"Next: medmae nnunet predict {done.folder} -i IMAGES -o OUT")
    if flags().json:
        emit_json({"model": str(done.folder), "plans": done.plans, "dice": done.dice})


@app.command()
def predict(
    dataset: Annotated[str, typer.Argument(help="Number or name of the data set, or the folder of a trained model.")],
    images: Annotated[Path, typer.Option("-i", "--images", help="Folder with case_0000.nii.gz, ...; gaps are filled.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the segmentations.")],
    configuration: Annotated[str, typer.Option("--configuration", help="Configuration of the plans.")] = "3d_fullres",
    plans: Annotated[str | None, typer.Option("--plans", help="Name of the plans, where several fit.")] = None,
    trainer: Annotated[str | None, typer.Option("--trainer", help="Name of the trainer, where several fit.")] = None,
    fold: Annotated[
        list[str] | None, typer.Option("--fold", help="Average over these folds, repeatable (all trained).")
    ] = None,
    use: Annotated[str, typer.Option("--use", help="Which checkpoint of each fold.")] = "checkpoint_final.pth",
    sequences: Annotated[
        str | None, typer.Option("--sequences", help="Use these only, as if the others were missing: t1n,t2f.")
    ] = None,
    mirror: Annotated[bool, typer.Option("--mirror/--no-mirror", help="Average over mirrored copies.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace segmentations that exist.")] = False,
    device: Device = None,
    nnunet_root: Root = None,
    workers: Workers = None,
) -> None:
    """Segment the cases of a folder with whatever sequences they have."""
    from medmae.cli.console import chatter_aside, emit_json, flags, say
    from medmae.transfer.nnunet.run import predict as run

    folders = _folders(nnunet_root, quiet=Path(dataset).is_dir())
    with chatter_aside(show=False):
        done = run(
            dataset,
            folders=folders,
            images=images,
            out=out,
            configuration=configuration,
            plans=plans,
            trainer=trainer,
            folds=fold,
            checkpoint=use,
            device=device,
            mirror=mirror,
            keep=None if sequences is None else [name.strip() for name in sequences.split(",")],
            overwrite=overwrite,
            workers=_count(workers),
            say=say,
        )
    say(
        f"Wrote {len(done.files)} segmentation(s) to {done.out} "
        f"(model {done.model}, fold {', '.join(map(str, done.folds))})"
    )
    if flags().json:
        emit_json(
            {
                "out": str(done.out),
                "model": str(done.model),
                "folds": list(done.folds),
                "cases": {case: list(there) for case, there in done.presence.cases.items()},
            }
        )


@app.command()
def trainers() -> None:
    """Print what makes nnU-Net's own commands know the medmae trainer."""
    from medmae.cli.console import emit, emit_json, flags, say
    from medmae.transfer.nnunet.folders import shim
    from medmae.transfer.nnunet.settings import CHECKPOINT_VARIABLE, VARIABLE

    folder = shim()
    if flags().json:
        emit_json({"trainers": ["MedMAETrainer"], "folder": str(folder), "variable": "nnUNet_extTrainer"})
        return
    say("For nnUNetv2_train and nnUNetv2_predict; `medmae nnunet train` needs none of it.")
    emit(f"export nnUNet_extTrainer={folder}")
    say(f"export {CHECKPOINT_VARIABLE}=MODEL_OR_FILE   # weights to start from")
    say(f'export {VARIABLE}=\'{{"schedule": "sawtooth", "modality_dropout": 0.3}}\'   # further settings, optional')
    say("nnUNetv2_train DATASET 3d_fullres 0 -p PLANS -tr MedMAETrainer")
    say("Where `import torchvision` fails (a CPU build of torch), only `medmae nnunet train` finds trainers.")


def _folders(root: Path | None, *, results: Path | None = None, quiet: bool = False) -> Folders:
    """Find nnU-Net and its folders, and say where they are."""
    from medmae.cli.console import detail, say
    from medmae.transfer.nnunet.folders import Folders, require

    require()
    folders = Folders.use(root, results=results)
    (detail if quiet else say)(f"nnU-Net's folders: {folders}")
    return folders


def _count(workers: int | None) -> int:
    return min(os.cpu_count() or 1, 8) if workers is None else workers
