"""``medmae pretrain``: from a cohort, or from images, clips, clouds or sound, to a model folder.

The verb wires the rooms together and decides nothing about training: settings are merged (``medmae.config``),
the cohort is opened and prepared (``medmae.data``), the method is found and built, and the loop runs
(``medmae.engine``). Before the first step it says what will run. Under torchrun every process does the same
and only rank 0 talks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.cli import pretrain_samples
from medmae.cli.console import emit_json, flags, main_process, say
from medmae.cli.pretrain_checks import check_channels_of, check_sequences, check_window_of, wrong_data
from medmae.cli.pretrain_kinds import Stacked, count_channels, for_volumes, stacks, window_note
from medmae.cli.pretrain_layers import Plan, length, merged, normal, wanted_method
from medmae.cli.pretrain_plans import find_data, from_plans, names_dataset, next_command, opened
from medmae.cli.pretrain_run import Ready, train

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.data.cohort import Cohort
    from medmae.engine.trainer import Result

# What the "data" section may hold beside augmentation and artifacts, whose keys are those of their classes.
DATA = {
    "path": None,  # spec file, or folder or list that --data takes
    "plans": None,  # nnU-Net's plans that the settings below come from, and its configuration
    "configuration": None,
    "preprocess": None,  # what replaces the spec's own words under preprocess
    "split": None,  # and under split
    "unlabeled": None,  # of an nnU-Net folder: use imagesTs too; None: as the spec says
    "require": None,  # smallest number of sequences a case must have; None: as the spec says
    "tier": "disk",  # where crops are read from: disk, memory, device
    "cache": None,  # folder of prepared cases; None: the user's cache
    "crop": None,  # voxels per axis; None: the size of the method
    "repeat": 1,  # samples with different mask plans per crop
    "probe_target": None,  # column of the table whose class probes ask for; see train.probe_every
    "foreground_share": 1.0,  # probability that a crop is centered on foreground
}


def run(
    data: Annotated[
        str | None,
        typer.Option(help="Spec, nnU-Net, BIDS or plain folder, data list, CSV, toy-image, -video, -points or -audio."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Name of a method, see `medmae methods` (bm_mae).")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with sections method, data, train.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run (runs/COHORT-METHOD).")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training cases (100).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; start it if there is none.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    batch: Annotated[int | None, typer.Option(help="Samples per process and step.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, crops and masks.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read data.")] = None,
    preset: Annotated[str | None, typer.Option(help="Named arguments of the method, such as published.")] = None,
    scale: Annotated[str | None, typer.Option(help="Named size of the method, such as tiny.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable: train.lr=1e-4.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this model folder.")] = None,
    plans: Annotated[
        str | None, typer.Option(help="nnU-Net plans (name or file): network, window, spacing, scaling follow them.")
    ] = None,
    configuration: Annotated[str, typer.Option(help="Which configuration of --plans.")] = "3d_fullres",
    nnunet_root: Annotated[
        Path | None,
        typer.Option(help="Folder of nnUNet_raw and nnUNet_preprocessed (the environment, else ./nnunet)."),
    ] = None,
) -> None:
    """Pre-train a method on a cohort; patients may lack sequences. Methods for other kinds of data read those."""
    from medmae.config import assignments, load_config

    if "WORLD_SIZE" in os.environ:  # DDP complains that it looks for unused parameters, which incomplete cases need
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    given: dict[str, Any] = {
        "method": {"name": method, "preset": preset, "scale": scale},
        "data": {"path": data},
        "train": {
            "batch": batch,
            "device": device,
            "precision": precision,
            "seed": seed,
            "workers": workers,
            "steps": steps,
            "epochs": epochs,
        },
    }
    layers: list[tuple[str, dict[str, Any]]] = []
    if resume and out is not None and (out / "config.yaml").exists():
        layers.append((str(out / "config.yaml"), load_config(out / "config.yaml")))
    if config is not None:
        layers.append((str(config), load_config(config)))
    if plans is not None:
        planned = from_plans(plans, layers, given, configuration=configuration, root=nnunet_root)
        layers.append((f"--plans {plans}", planned))
    elif data is not None and not Path(data).exists() and names_dataset(data):
        given["data"]["path"] = str(find_data(data, root=nnunet_root))
    layers.append(("command line", {k: {n: v for n, v in part.items() if v is not None} for k, part in given.items()}))
    layers.append(("--set", assignments(set_ or [])))
    if plans is None and pretrain_samples.meant(layers, init=init):
        begin, plan = pretrain_samples.start, pretrain_samples.make_plan(layers, init=init)
    else:
        begin, plan = start, make_plan(layers, init=init)
    result = begin(plan, out=out, resume=resume, overwrite=overwrite, init=init)
    if flags().json:
        emit_json({"folder": str(result.folder), "steps": result.steps, "best": result.best})


def make_plan(layers: list[tuple[str, dict[str, Any]]], *, init: Path | None = None) -> Plan:
    """Merge and check layers of settings, each with its origin; the last one wins.

    The sequences of the method stay open (None) unless a layer names them: the cohort decides. Raises
    :class:`UsageError` for keys that do not exist and values that cannot be meant.
    """
    from dataclasses import asdict, fields

    from medmae.config import check, merge
    from medmae.core.errors import UsageError
    from medmae.data.artifacts import Artifacts
    from medmae.data.augment import Augmentation
    from medmae.data.spec import Preprocess, Split
    from medmae.engine.settings import TrainSettings, train_settings
    from medmae.find import find

    layers = [(origin, normal(layer)) for origin, layer in layers]
    whole = merged(layers)
    name, wanted = wanted_method(whole, init=init)
    found = find(name)
    known = {
        "method": {"name": None, "preset": None, "scale": None, **dict.fromkeys(found.recipe())},
        "data": {
            **DATA,
            "augmentation": dict.fromkeys(f.name for f in fields(Augmentation)),
            "artifacts": dict.fromkeys(f.name for f in fields(Artifacts)),
            "preprocess": dict.fromkeys(Preprocess.model_fields),
            "split": dict.fromkeys(Split.model_fields),
        },
        "train": dict.fromkeys(f.name for f in fields(TrainSettings)),
    }
    for origin_name, layer in layers:
        check(layer, known, origin=origin_name)
    recipe = found.recipe(**wanted)
    if init is not None:
        check_window_of(init)
    recipe |= for_volumes(found, wanted, recipe)
    if "sequences" in recipe and "sequences" not in wanted:
        recipe["sequences"] = None
    data = merge(DATA, {"augmentation": asdict(Augmentation()), "artifacts": None}, whole.get("data") or {})
    faults = wrong_data(data, asdict(Augmentation()))
    if faults:
        raise UsageError("These data settings cannot be meant:\n  " + "\n  ".join(faults))
    settings = train_settings(whole.get("train") or {})
    labels = {k: wanted[k] for k in ("preset", "scale") if wanted.get(k) is not None}
    config = {"method": {"name": name, **labels, **recipe}, "data": data, "train": settings.to_dict()}
    notes = window_note(found, wanted, recipe)
    return Plan(name=name, recipe=recipe, data=data, train=settings, config=config, notes=notes)


def start(
    plan: Plan,
    *,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    init: Path | None = None,
) -> Result:
    """Open the cohort, prepare it, build the method, say what will run, and train.

    ``out`` None is ``runs/COHORT-METHOD``. Raises what the rooms raise, and :class:`UsageError` when there is
    no cohort.
    """
    from medmae.cli import qc, qc_samples
    from medmae.cli.pretrain_probe import probe_of
    from medmae.core.errors import UsageError
    from medmae.data.artifacts import Artifacts
    from medmae.data.augment import Augmentation
    from medmae.data.loader import VolumeSource
    from medmae.find import find

    data, settings = plan.data, plan.train
    if not data["path"]:
        raise UsageError(
            "There is no cohort: --data SPEC. `medmae data init FOLDER` writes a spec for a folder of images."
        )
    cohort = opened(data)
    recipe = dict(plan.recipe)
    if "sequences" in recipe and recipe["sequences"] is None:
        recipe["sequences"] = list(cohort.sequences)
    stacked = stacks(find(plan.name), recipe)
    if stacked:
        if init is not None:
            check_channels_of(init, cohort.sequences)
        recipe["channels"] = count_channels(recipe, cohort.sequences)
        cohort = opened({**data, "require": len(cohort.sequences)})
        say(
            f"{plan.name} reads sequences as channels ({', '.join(cohort.sequences)}): cases that lack one are left out"
        )
    check_sequences(recipe.get("sequences"), cohort.sequences)
    crop = _crop(recipe, data)

    def prepare(method: Method, folder: Path, world: int) -> Ready:
        for note in (*plan.notes, *cohort.notes):
            say(note)
        volumes = VolumeSource(
            cohort,
            size=crop,
            cache=data["cache"],
            sequences=tuple(recipe.get("sequences") or cohort.sequences),
            tier=data["tier"],
            workers=settings.workers,
            augmentation=Augmentation(**_tuples(data["augmentation"])),
            artifacts=None if data["artifacts"] is None else Artifacts(**_tuples(data["artifacts"])),
            repeat=data["repeat"],
            foreground_share=data["foreground_share"],
            quiet=flags().quiet or not main_process(),
        )
        source = Stacked(volumes, entry=method.sequences[0]) if stacked else volumes
        outcomes = (cohort.cases, cohort.spec)
        probe = probe_of(source, method, settings, target=data["probe_target"], outcomes=outcomes)
        for note in volumes.notes:
            say(note)
        return Ready(
            source=source,
            lines=summary(plan, cohort, method, crop=crop, present=volumes.present, world=world),
            split={part: [case.key for case in cases] for part, cases in cohort.split().items()},
            license=cohort.spec.license,
            options={},
            picture=qc.make_on_picture(source, method, folder, seed=settings.seed)
            or qc_samples.make_on_picture(source, method, folder, seed=settings.seed),
            probe=probe,
            after=lambda model: next_command(method, model, data),
        )

    name = cohort.spec.name
    return train(plan, recipe, prepare, name=name, out=out, resume=resume, overwrite=overwrite, init=init)


def summary(
    plan: Plan,
    cohort: Cohort,
    method: Method,
    *,
    crop: tuple[int, ...],
    present: Mapping[str, frozenset[str]],
    world: int,
) -> list[str]:
    """Lines that say what will run: cohort, which sequences are missing where, sizes, length.

    ``present``: the sequences of every training and validation case that could be prepared; the others do not count.
    """
    parts = cohort.split()
    train, val = (sum(case.key in present for case in parts[part]) for part in ("train", "val"))
    there = [*present.values(), *(frozenset(case.images) for case in parts["test"])]
    gone = len(parts["train"]) + len(parts["val"]) - len(present)
    lines = [
        f"Pre-training {plan.name} on {cohort.spec.name}",
        f"  cases     {len(there)}: {train} to train, {val} to validate, {len(parts['test'])} held out"
        + (f" ({gone} left out)" if gone else ""),
        "  sequence  " + "  ".join(f"{name:>6}" for name in cohort.sequences),
        "  present   " + "  ".join(f"{sum(name in case for case in there):>6}" for name in cohort.sequences),
        "  missing   " + "  ".join(f"{sum(name not in case for case in there):>6}" for name in cohort.sequences),
    ]
    patterns = Counter(tuple(name in case for name in cohort.sequences) for case in there)
    for pattern, count in sorted(patterns.items(), key=lambda item: -item[1])[:6]:
        if not all(pattern):
            lines.append(f"    {count:>6} x " + "  ".join(f"{'yes' if p else '-':>6}" for p in pattern))
    size = sum(p.numel() for p in method.parameters() if p.requires_grad)
    lines += [
        f"  method    {size / 1e6:.1f} million trained parameters, crop {' x '.join(map(str, crop))}",
        f"  length    {length(plan.train, cases=train, repeat=int(plan.data['repeat']), world=world)}",
    ]
    return lines


def _crop(recipe: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[int, int, int]:
    from medmae.core.errors import UsageError

    size, crop = recipe.get("size"), data["crop"]
    if crop is None and size is None:
        raise UsageError("This method takes any size: say how much it sees at once with --set data.crop=[96,96,96].")
    if crop is not None and size is not None and list(crop) != list(size):
        raise UsageError(f"data.crop is {list(crop)} and method.size {list(size)}; set method.size alone.")
    shape = list(crop if crop is not None else size or ())
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UsageError(f"volumes have three axes: {shape} is not a size in voxels such as [96,96,96].")
    x, y, z = shape
    return x, y, z


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
