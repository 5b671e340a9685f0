"""An encoder and the data it is to be asked about, whatever the kind: volumes of a cohort, or samples.

What a checkpoint remembers decides how data are opened and read, so that it meets what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, DataError, UsageError

from .console import say

if TYPE_CHECKING:
    from medmae.transfer.backbone import Backbone

FOREGROUND, RANDOM, VOLUME = "foreground", "random", "volume"


@dataclass(frozen=True)
class Encoder:
    """A checkpoint made ready to give features.

    Attributes:
        name: what tables call it.
        backbone: on its device, in evaluation mode.
        config: of its model folder.
        weights: SHA-256 of its weights, or "untrained".
        kind: of the data it reads: volume, image, video, points or audio.
    """

    name: str
    backbone: Backbone
    config: Mapping[str, Any]
    weights: str
    kind: str

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

    kind = str((config.get("data") or {}).get("kind") or find(config["method"]).card.kind)
    backbone = Backbone(method, layer=layer, frozen=True).to(pick_device(device)).eval()
    grid = getattr(backbone.tokenizer, "grid", None)
    if grid is not None and len(grid.size) == 3 and kind in ("image", "video") and "kind" not in config.get("data", {}):
        kind = VOLUME  # a method for images that was pre-trained on a cohort
    if kind == VOLUME and (grid is None or len(grid.size) != 3 or grid.channels != 1):
        raise CheckpointError(
            f"{name} reads the sequences of a patient as channels of one image, which whole volumes with missing "
            "sequences cannot be given to: use a method that knows sequences by name"
        )
    return Encoder(name, backbone, config, weights, kind)


def open_data(text: str, encoder: Encoder) -> Items:
    """What ``--data`` means for an encoder: a cohort for volumes, else samples of its kind.

    Raises:
        UsageError: data that cannot be meant.
        DataError: faults of the data, names that are not unique, or nothing that the encoder knows.
    """
    if encoder.kind == VOLUME:
        from medmae.data.cohort import open_cohort

        source: Any = open_cohort(text)
        known = [case for case in source.cases if set(case.images) & set(encoder.backbone.sequences)]
        if not known:
            raise DataError(
                f"{text}: no case has any of the model's sequences ({', '.join(encoder.backbone.sequences)})"
            )
        if lacking := len(source.cases) - len(known):
            say(f"{lacking} case(s) left aside: without any sequence of the model", style="yellow")
        if not encoder.reading:
            say(f"{encoder.name} states no preprocessing: images are only oriented and normalized", style="yellow")
    else:
        from medmae.data.kinds.listing import list_samples

        source = list_samples(text, kind=encoder.kind)
        known = list(source.samples)
    keys = [case.key for case in known]
    if twice := sorted({key for key in keys if keys.count(key) > 1})[:3] if len(set(keys)) < len(keys) else []:
        raise DataError(f"{text}: the name {', '.join(twice)} occurs more than once; names must tell cases apart")
    parts = {case.key: part for part, cases in source.split().items() for case in cases}
    return Items(tuple(known), parts, source, encoder.kind)


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

        prints = prints_of(items.cases, encoder.backbone.sequences)
        return [(found.code, leaks(found, encoder.data), leaks(found, chosen_on)) for found in prints]
    from medmae.data.cache import default_folder
    from medmae.data.fingerprint import Fingerprints
    from medmae.data.kinds.listing import sample_hash

    known, trained = Fingerprints(default_folder()), set(encoder.data.get("subjects") or ())
    codes = [sample_hash(sample, known) for sample in items.cases]
    known.save()
    return [(code, code in trained, code in set(chosen_on["subjects"])) for code in codes]
