"""``medmae pretrain`` on images, clips, clouds and sound: the same run, from a list of samples in place of a cohort.

Which of the two is meant follows from the method and the data together: a method for images given a folder of images
reads images, given a cohort of volumes it reads volumes (``pretrain_kinds.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.cli.console import flags, main_process, say
from medmae.cli.pretrain_layers import Layers, Plan, length, merged, normal, wanted_method
from medmae.cli.pretrain_run import Ready, features_command, train
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
    from medmae.cli import qc_clouds, qc_samples
    from medmae.cli.pretrain_probe import probe_of
    from medmae.data.kinds import kind_of
    from medmae.data.kinds.listing import list_samples
    from medmae.data.kinds.source import SampleSource
    from medmae.find import find

    data, settings, recipe = plan.data, plan.train, dict(plan.recipe)
    found = find(plan.name)
    listing = list_samples(data["path"], kind=found.card.kind, split=data["split"], on_error=data["on_error"])
    kind = kind_of(found.card.kind, recipe, data["reading"])

    def prepare(method: Method, folder: Path, world: int) -> Ready:
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
        return Ready(
            source=source,
            lines=summary(plan, listing, source, method, world=world),
            split={part: [sample.key for sample in source.usable(part)] for part in source.counts},
            license=listing.license,
            options={"options": dict(data["reading"])},  # with the recipe they make the kind again, to read new data
            picture=qc_samples.make_on_picture(source, method, folder, seed=settings.seed)
            or qc_clouds.make_on_picture(source, method, folder, seed=settings.seed),
            probe=probe_of(source, method, settings),
            after=lambda model: features_command(model, data["path"], labeled=bool(listing.classes)),
        )

    return train(plan, recipe, prepare, name=listing.name, out=out, resume=resume, overwrite=overwrite, init=init)


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
