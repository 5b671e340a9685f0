"""An encoder and the data it is to be asked about, whatever the kind: volumes of a cohort, or samples.

What a checkpoint remembers decides how data are opened and read, so that it meets what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, DataError, UsageError

from .console import say
from .pretrain_kinds import KINDS, stack, stacks

if TYPE_CHECKING:
    import torch

    from medmae.transfer.backbone import Backbone
    from medmae.transfer.pooling import Features

FOREGROUND, RANDOM, VOLUME = "foreground", "random", "volume"
_SPECS = (".yaml", ".yml")
_NAMED = 20  # broken files named in one message


@dataclass(frozen=True)
class Encoder:
    """A checkpoint made ready to give features.

    Attributes:
        name: what tables call it.
        backbone: on its device, in evaluation mode.
        config: of its model folder.
        weights: SHA-256 of its weights, or "untrained".
        kind: of the data it reads: volume, image, video, points or audio.
        channels: sequences that it reads as the channels of one entry, in their order; empty where it knows them by
            name, or where there are none.
    """

    name: str
    backbone: Backbone
    config: Mapping[str, Any]
    weights: str
    kind: str
    channels: tuple[str, ...] = ()

    @property
    def sequences(self) -> tuple[str, ...]:
        """What it reads of a case, by name."""
        return self.channels or self.backbone.sequences

    def can_read(self, case: Any) -> bool:
        """Whether a case of a cohort has enough for it: every channel, or any of its sequences."""
        return set(self.channels) <= set(case.images) if self.channels else bool(set(self.sequences) & set(case.images))

    def check_subset(self, subset: Sequence[str] | None) -> None:
        """UsageError where it cannot be shown some sequences alone."""
        if self.channels and subset is not None and set(subset) != set(self.channels):
            raise UsageError(
                f"{self.name} reads {', '.join(self.channels)} as the channels of one image, so it cannot be shown "
                f"{'+'.join(subset)} alone: leave the subset out, or use a method that knows sequences by name"
            )

    def features(self, batch: Mapping[str, torch.Tensor]) -> Features:
        """Features of a batch that has every one of :attr:`sequences`, or whatever its kind of data has."""
        found: Features = self.backbone(
            stack(batch, self.channels, entry=self.backbone.sequences[0]) if self.channels else batch
        )
        return found

    @property
    def data(self) -> Mapping[str, Any]:
        """What it remembers of its training data; an untrained one has none."""
        return {} if self.weights == "untrained" else self.config.get("data") or {}

    @property
    def reading(self) -> Mapping[str, Any]:
        """How what it reads is prepared, trained or not."""
        data = self.config.get("data") or {}
        return data.get("preprocess" if self.kind == VOLUME else "options") or {}


@dataclass(frozen=True)
class Items:
    """What ``--data`` names.

    Attributes:
        cases: of a cohort, or samples of a listing; each has ``key`` and ``subject``.
        parts: part of the split, by key.
        source: the cohort or listing.
        kind: as that of the encoder.
    """

    cases: tuple[Any, ...]
    parts: Mapping[str, str]
    source: Any
    kind: str

    def of(self, split: str) -> Items:
        """The cases of one part, or all of them."""
        kept = tuple(case for case in self.cases if split in ("all", self.parts[case.key]))
        return replace(self, cases=kept)


def open_encoder(checkpoint: str | Path, *, device: str = "auto", layer: int | None = None) -> Encoder:
    """Load the encoder of a model folder; its name is that of its method and folder.

    Raises:
        CheckpointError: it has none.
        UsageError: no such layer or device.
    """
    from medmae.checkpoint import WEIGHTS, file_hash, load_model, model_folder

    folder = model_folder(checkpoint)
    loaded = load_model(checkpoint)
    absolute = folder.resolve()
    leaf = absolute.parent.name if absolute.name in ("model", "model-last") else absolute.name
    name = f"{loaded.config['method']} ({leaf})"
    return _encoder(loaded.method, loaded.config, name, f"sha256:{file_hash(folder / WEIGHTS)}", device, layer)


def untrained(encoder: Encoder, *, seed: int, device: str = "auto") -> Encoder:
    """The same network with fresh weights, a function of ``seed``."""
    import torch

    from medmae.find import find

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = find(encoder.config["method"]).build(**encoder.config["recipe"])
    return _encoder(fresh, encoder.config, RANDOM, "untrained", device, encoder.backbone.layer)


def _encoder(
    method: Any, config: Mapping[str, Any], name: str, weights: str, device: str, layer: int | None
) -> Encoder:
    from medmae.find import find
    from medmae.transfer.backbone import Backbone

    from .completion import pick_device

    data, found = config.get("data") or {}, find(config["method"])
    kind = str(data.get("kind") or found.card.kind)
    backbone = Backbone(method, layer=layer, frozen=True).to(pick_device(device)).eval()
    grid = getattr(backbone.tokenizer, "grid", None)
    axes, values = (0, 0) if grid is None else (len(grid.size), grid.channels)
    if axes == 3 and kind in KINDS and "kind" not in data and (kind == "image" or data.get("sequences")):
        kind = VOLUME  # a method for images or clips that was pre-trained on a cohort
    if kind != VOLUME:
        return Encoder(name, backbone, config, weights, kind)
    channels = tuple(data.get("sequences") or ()) if stacks(found, config["recipe"]) else ()
    if stacks(found, config["recipe"]) and (axes != 3 or values != len(channels)):
        raise CheckpointError(
            f"{name} reads the sequences of a patient as channels of one image, and its model folder does not say "
            f"which they are: {', '.join(channels) or 'none'} under data.sequences, for {values} "
            "channel(s). Pre-train it with `medmae pretrain`, which notes them, or use a method that knows sequences "
            "by name"
        )
    if axes != 3 or (values != 1 and not channels):
        raise CheckpointError(f"{name} has no encoder of volumes with one value per voxel and sequence")
    return Encoder(name, backbone, config, weights, kind, channels)


def open_data(text: str, encoder: Encoder) -> Items:
    """What ``--data`` means for an encoder: a cohort for volumes, else samples of its kind.

    Raises:
        UsageError: data that cannot be meant.
        DataError: faults of the data, names that are not unique, or nothing that the encoder knows.
    """
    if encoder.kind == VOLUME:
        from medmae.data.cohort import open_cohort

        source: Any = open_cohort(text)
        known = [case for case in source.cases if encoder.can_read(case)]
        share = "all" if encoder.channels else "any"
        if not known:
            raise DataError(f"{text}: no case has {share} of the model's sequences ({', '.join(encoder.sequences)})")
        if lacking := len(source.cases) - len(known):
            why = f"not all of {', '.join(encoder.channels)}, which {encoder.name} reads as channels"
            why = why if encoder.channels else "without any sequence of the model"
            say(f"{lacking} case(s) left aside: {why}", style="yellow")
        if not encoder.reading:
            say(f"{encoder.name} states no preprocessing: images are only oriented and normalized", style="yellow")
    else:
        from medmae.data.kinds.listing import list_samples, names_samples

        if Path(text).is_file() and Path(text).suffix.lower() in _SPECS and not names_samples(text, kind=encoder.kind):
            raise UsageError(
                f"{text} has no 'kind: {encoder.kind}', so it describes a 3-D cohort, and {encoder.name} reads "
                f"{encoder.kind} data"
            )
        source = list_samples(text, kind=encoder.kind)
        known = list(source.samples)
    keys = [case.key for case in known]
    if twice := sorted({key for key in keys if keys.count(key) > 1})[:3] if len(set(keys)) < len(keys) else []:
        raise DataError(f"{text}: the name {', '.join(twice)} occurs more than once; names must tell cases apart")
    parts = {case.key: part for part, cases in source.split().items() for case in cases}
    return Items(tuple(known), parts, source, encoder.kind)


def readable(items: Items, encoders: Sequence[Encoder]) -> Items:
    """The samples that every encoder can read, where the data say that broken ones are skipped; what is left aside is
    said. Nothing may depend on a sample that one of the encoders to be compared has not seen.

    Raises DataError where nothing is left.
    """
    if items.kind == VOLUME or items.source.on_error != "skip":
        return items
    from medmae.data.kinds import kind_of
    from medmae.data.kinds.source import survey

    broken: dict[str, str] = {}
    for encoder in encoders:
        broken |= survey(items.cases, kind_of(encoder.kind, encoder.config["recipe"], encoder.reading)).problems
    if not broken:
        return items
    shown = [*list(broken.values())[:_NAMED], *([f"and {len(broken) - _NAMED} more"] if len(broken) > _NAMED else [])]
    told = f"{len(broken)} of {len(items.cases)} sample(s) left aside, they cannot be used:\n  - " + "\n  - ".join(
        shown
    )
    kept = tuple(sample for sample in items.cases if sample.key not in broken)
    if not kept:
        raise DataError(told)
    say(told, style="yellow")
    there = tuple(sample for sample in items.source.samples if sample.key not in broken)
    return replace(items, cases=kept, source=replace(items.source, samples=there, on_error="fail"))


def region_values(items: Items, region: str | None) -> tuple[int, ...] | None:
    """The label values that the region ``region`` unites; None for the foreground.

    Raises:
        UsageError: the data has no labels, or no such region.
    """
    if region in (None, FOREGROUND):
        return None
    label = getattr(getattr(items.source, "spec", None), "label", None)
    if label is None:
        raise UsageError(f"--region {region}: the data has no 'label' that says where it is; only foreground is known")
    known = regions_of(items)
    if region not in known:
        raise UsageError(f"--region {region}: the spec has {', '.join(known)}, and foreground")
    return known[region]


def regions_of(items: Items) -> dict[str, tuple[int, ...]]:
    """Regions of the label, and its classes above 0 that are no region by name: name -> values."""
    label = getattr(getattr(items.source, "spec", None), "label", None)
    if label is None:
        return {}
    return {
        **{name: tuple(values) for name, values in label.regions.items()},
        **{name: (value,) for name, value in label.classes.items() if value > 0 and name not in label.regions},
    }


def codes_of(items: Items, encoder: Encoder) -> list[tuple[str, bool, bool]]:
    """A short hash of the content of every case, whether the encoder was trained on it, and whether its weights were
    chosen on it."""
    chosen_on = {"subjects": encoder.data.get("validation_subjects") or ()}
    if encoder.kind == VOLUME:
        from .leakage import leaks, prints_of

        prints = prints_of(items.cases, encoder.sequences)
        return [(found.code, leaks(found, encoder.data), leaks(found, chosen_on)) for found in prints]
    from medmae.data.cache import default_folder
    from medmae.data.fingerprint import Fingerprints
    from medmae.data.kinds.listing import sample_hash

    known, trained = Fingerprints(default_folder()), set(encoder.data.get("subjects") or ())
    codes = [sample_hash(sample, known) for sample in items.cases]
    known.save()
    return [(code, code in trained, code in set(chosen_on["subjects"])) for code in codes]
