"""``medmae pretrain`` on images, clips, clouds and sound: the same run, from a list of samples in place of a cohort.

Which of the two is meant follows from the method and the data together: a method for images given a folder of images
reads images, given a cohort of volumes it reads volumes (``pretrain_kinds.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.cli.console import detail, flags, main_process, say
from medmae.cli.pretrain_layers import Layers, Plan, folder_name, initialize, length, merged, normal, wanted_method
from medmae.core.errors import UsageError

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.data.kinds.listing import Listing
    from medmae.data.kinds.source import SampleSource
    from medmae.engine.trainer import Result

DATA: Mapping[str, Any] = {
    "path": None,  # folder, CSV, spec file or toy-KIND that --data takes
    "split": None,  # what replaces the spec's own words under split
    "on_error": None,  # of samples that cannot be read: fail or skip; None: as the spec says
    "check": True,  # look at every file before the first step
    "repeat": 1,  # samples with different mask plans per reading
    "reading": {},  # how samples are cut and scaled; what there is to say depends on the kind
}
INIT = 0x696E6974  # stream of the initial weights


def meant(layers: Layers, *, init: Path | None = None) -> bool:
    """Whether method and data together mean samples rather than a cohort of volumes."""
    from medmae.data.kinds import KINDS
    from medmae.data.kinds.listing import guess_kind, names_samples
    from medmae.find import find

    whole = merged([(origin, normal(layer)) for origin, layer in layers])
    path = (whole.get("data") or {}).get("path")
    name, wanted = wanted_method(whole, init=init)
    kind, size = find(name).card.kind, wanted.get("size")
    if kind in KINDS and not path:
        raise UsageError(f"There is no data: --data FOLDER, a CSV, a spec with 'kind: {kind}', or toy-{kind}.")
    if not isinstance(path, str) or not path:
        return False
    if kind == "volume" and path.startswith("toy-") and not Path(path).exists():
        raise UsageError(f"{name} reads 3-D cohorts, and {path} is none. `medmae data synthesize` makes one.")
    if kind == "volume" and names_samples(path, kind="video") and (held := guess_kind(path)) is not None:
        raise UsageError(
            f"{name} reads 3-D cohorts, and {path} holds {held} data. `medmae methods` lists what reads it"
        )
    if kind == "image" and isinstance(size, list | tuple) and len(size) == 3 and Path(path).is_dir():
        return False  # a folder of DICOM files is one or the other
    return names_samples(path, kind=kind)


def make_plan(layers: Layers, *, init: Path | None = None) -> Plan:
    """Merge and check layers of settings, each with its origin; the last one wins.

    Raises :class:`UsageError` for keys that do not exist and values that cannot be meant.
    """
    from dataclasses import fields

    from medmae.config import check, merge
    from medmae.data.spec import Split
    from medmae.engine.settings import TrainSettings, train_settings
    from medmae.find import find

    layers = [(origin, normal(layer)) for origin, layer in layers]
    whole = merged(layers)
    name, wanted = wanted_method(whole, init=init)
    found = find(name)
    known = {
        "method": {"name": None, "preset": None, "scale": None, **dict.fromkeys(found.recipe())},
        "data": {**DATA, "split": dict.fromkeys(Split.model_fields)},
        "train": dict.fromkeys(f.name for f in fields(TrainSettings)),
    }
    for origin, layer in layers:
        check(layer, known, origin=origin)
    recipe = found.recipe(**wanted)
    data = merge(DATA, whole.get("data") or {})
    if faults := _wrong(data):
        raise UsageError("These data settings cannot be meant:\n  " + "\n  ".join(faults))
    settings = train_settings(whole.get("train") or {})
    labels = {k: wanted[k] for k in ("preset", "scale") if wanted.get(k) is not None}
    config = {"method": {"name": name, **labels, **recipe}, "data": data, "train": settings.to_dict()}
    return Plan(name=name, recipe=recipe, data=data, train=settings, config=config)


def start(
    plan: Plan,
    *,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    init: Path | None = None,
) -> Result:
    """List the samples, look at them, build the method, say what will run, and train.

    ``out`` None is ``runs/DATA-METHOD``. Raises what the rooms raise.
    """
    import torch

    from medmae import checkpoint
    from medmae.cli.pretrain_probe import probe_of
    from medmae.cli.qc_samples import make_on_picture
    from medmae.cli.report import run_report
    from medmae.core.errors import Requeue
    from medmae.core.random import mix
    from medmae.data.kinds import kind_of
    from medmae.data.kinds.listing import list_samples
    from medmae.data.kinds.source import SampleSource
    from medmae.engine.allocator import keep_freed_memory
    from medmae.engine.distributed import Processes, leave
    from medmae.engine.listeners import check_listeners
    from medmae.engine.run_folder import check_free
    from medmae.engine.trainer import pretrain
    from medmae.find import find
    from medmae.report.html import write_report

    data, settings, recipe = plan.data, plan.train, dict(plan.recipe)
    if main_process():
        check_listeners(settings.loggers)
    found = find(plan.name)
    listing = list_samples(data["path"], kind=found.card.kind, split=data["split"], on_error=data["on_error"])
    kind = kind_of(found.card.kind, recipe, data["reading"])
    if resume and out is not None and not (out / "config.yaml").exists():
        say(f"There is no run in {out} to resume: a new one starts.")
    out = out or Path("runs") / folder_name(f"{listing.name}-{plan.name}")
    if main_process():
        check_free(out, resume=resume, overwrite=overwrite)
    team = Processes(device=settings.device, parallel=settings.parallel)
    try:
        if team.device.type == "cpu":
            detail(keep_freed_memory())
        torch.manual_seed(mix(settings.seed, INIT))
        method = found.build(**recipe)
        method.check_training(batch=settings.batch, world=team.world)
        source = SampleSource(
            listing,
            kind,
            workers=settings.workers,
            quiet=flags().quiet or not main_process(),
            repeat=data["repeat"],
            check=data["check"],
        )
        for note in source.notes:
            say(note)
        if init is not None:
            say(f"Starting from {init}: {initialize(method, init)}")
        for line in summary(plan, listing, source, method, world=team.world):
            say(line)
        say(f"  into      {out} ({team.device}, {settings.precision})")

        def save_model(path: Path, trained: Any, about: dict[str, Any]) -> None:
            # The recipe and these options make the kind again, and with it new data can be read.
            read = {**about.pop("data"), "options": dict(data["reading"])}
            told = {"data": read, "training": about, "license": listing.license}
            checkpoint.save_model(path, trained, name=plan.name, recipe=recipe, about=told)

        split = {part: [sample.key for sample in source.usable(part)] for part in source.counts}
        result = pretrain(
            method,
            source,
            settings,
            folder=out,
            recipe={"method": {**plan.config["method"], **recipe}, "data": data},
            save_model=save_model,
            resume=resume,
            overwrite=overwrite,
            on_picture=make_on_picture(source, method, out, seed=settings.seed),
            on_probe=probe_of(source, method, settings),
            on_end=lambda: write_report(out / "report.html", run_report(out)),
            manifest={"split": split},
            say=say,
            quiet=flags().quiet,
            processes=team,
        )
        leave()
        model, words = shlex.quote(str(out / "model")), shlex.quote(str(data["path"]))
        ask = f"probe --checkpoint {model} --data {words} --out {shlex.quote(str(out / 'probe'))}"
        say(f"The model is in {out / 'model'}. Next: medmae {ask if listing.classes else f'info {model}'}")
        return result
    except (Requeue, KeyboardInterrupt):
        leave()
        raise


def summary(plan: Plan, listing: Listing, source: SampleSource, method: Method, *, world: int) -> list[str]:
    """Lines that say what will run: samples, how they are parted, what is read, sizes, length."""
    counts = source.counts
    total = sum(counts.values())
    gone = len(listing.samples) - total
    size = sum(p.numel() for p in method.parameters() if p.requires_grad)
    lines = [
        f"Pre-training {plan.name} on {listing.name}",
        f"  samples   {total}: {counts['train']} to train, {counts['val']} to validate, {counts['test']} held out"
        + (f" ({gone} left out)" if gone else ""),
        f"  method    {size / 1e6:.1f} million trained parameters, reads {', '.join(source.sequences)}"
        + (f" of {' x '.join(map(str, plan.recipe['size']))}" if plan.recipe.get("size") else ""),
        f"  length    {length(plan.train, cases=counts['train'], repeat=plan.data['repeat'], world=world)}",
    ]
    return lines


def _wrong(data: Mapping[str, Any]) -> list[str]:
    """What is of the wrong kind in the "data" section."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    rules: dict[str, tuple[bool, str]] = {
        "path": (isinstance(data["path"], str), "a path"),
        "split": (data["split"] is None or isinstance(data["split"], Mapping), "a section"),
        "on_error": (data["on_error"] in (None, "fail", "skip"), "fail or skip"),
        "check": (isinstance(data["check"], bool), "true or false"),
        "repeat": (whole(data["repeat"]), "a whole number of at least 1"),
        "reading": (isinstance(data["reading"], Mapping), "a section"),
    }
    return [f"data.{key} = {data[key]!r} is not {kind}." for key, (good, kind) in rules.items() if not good]
