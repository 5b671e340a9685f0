"""Vectors from a checkpoint: the one path that ``probe`` and ``embed`` share, for every kind of data.

Whole volumes are covered by windows and read as the model's training cases were; images, clips, clouds and sound are
read as for validation. Everything is visible, nothing is drawn, so the same files give the same vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, DataError, UsageError

from .console import flags, say
from .feature_encoder import FOREGROUND, VOLUME, Encoder, Items, region_values, regions_of

if TYPE_CHECKING:
    import numpy as np
    import torch

PARTS = ("train", "val", "test", "all")
PER = ("case", "modality", "region")


@dataclass(frozen=True)
class FeatureSet:
    """Features of cases, one row each; or several, one per sequence or region.

    Attributes:
        values: [n d] float32.
        keys: names of the cases.
        rows: sequence or region of each row, "" where a row is a case.
        labels: class of each case as far as the data says one (folders of classes, toys), else None.
        subjects: whose case it is.
        splits: part of the split.
        cases: of the cohort or listing.
        about: method, weights, pooling, layer, region, subset.
    """

    values: np.ndarray
    keys: tuple[str, ...]
    rows: tuple[str, ...]
    labels: tuple[str | None, ...]
    subjects: tuple[str, ...]
    splits: tuple[str, ...]
    cases: tuple[Any, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


def feature_set(
    encoder: Encoder,
    items: Items,
    *,
    pool: str = "mean",
    region: str | None = None,
    subset: Sequence[str] | None = None,
    per: str = "case",
    batch: int = 1,
    precision: str = "fp32",
    workers: int = 0,
) -> FeatureSet:
    """Features of all cases.

    Args:
        encoder: what gives them.
        items: of the kind that it reads.
        pool: mean, cls, modality or mean_max.
        region: of the label, or ``foreground``: what of a volume counts. Cases without it are left aside.
        subset: sequences that are shown; cases that lack one of them are left aside. None: all that a case has.
        per: one row per ``case``, per ``modality`` or per ``region`` (of those that a case has).
        batch: windows or samples per forward pass.
        precision: fp32 or bf16.
        workers: processes that read samples.

    Raises:
        UsageError: options that cannot be meant of these data.
        DataError: faults of all cases that cannot be read, or nothing left.
        CheckpointError: the encoder has no such features.
    """
    import numpy as np

    from medmae.transfer.pooling import POOLS

    if pool not in POOLS:
        raise UsageError(f"--pool must be one of {', '.join(POOLS)}, not {pool!r}")
    if per not in PER:
        raise UsageError(f"--per must be one of {', '.join(PER)}, not {per!r}")
    if encoder.kind != VOLUME and (per == "region" or subset is not None or region not in (None, FOREGROUND)):
        raise UsageError(f"regions and subsets of sequences are for volumes, and {encoder.name} reads {encoder.kind}")
    if batch < 1 or precision not in ("fp32", "bf16"):
        raise UsageError(f"--batch {batch} must be at least 1, --precision {precision} is fp32 or bf16")
    encoder.check_subset(subset)
    if encoder.channels and "modality" in (per, pool):
        raise CheckpointError(
            f"{encoder.name} reads the sequences as channels: it has no features per sequence, choose --pool mean and "
            "--per case or region"
        )
    found: list[tuple[Any, str, np.ndarray]] = []
    if encoder.kind == VOLUME:
        found = _of_volumes(
            encoder, items, pool=pool, region=region, subset=subset, per=per, batch=batch, precision=precision
        )
    else:
        found = list(_of_samples(encoder, items, pool=pool, per=per, batch=batch, precision=precision, workers=workers))
    if not found:
        what = f"a region {region}" if region else "a label region" if per == "region" else "what was asked for"
        raise DataError(f"none of {len(items.cases)} case(s) has {'+'.join(subset) if subset else what}")
    values = np.stack([vector for _, _, vector in found]).astype(np.float32)
    if bad := int((~np.isfinite(values)).any(1).sum()):
        raise DataError(f"the features that {encoder.name} gives are not finite for {bad} of {len(values)} row(s)")
    cases = tuple(case for case, _, _ in found)
    return FeatureSet(
        values=values,
        keys=tuple(case.key for case in cases),
        rows=tuple(row for _, row, _ in found),
        labels=tuple(getattr(case, "label", None) if encoder.kind != VOLUME else None for case in cases),
        subjects=tuple(case.subject for case in cases),
        splits=tuple(items.parts[case.key] for case in cases),
        cases=cases,
        about={
            "method": encoder.config["method"],
            "weights": encoder.weights,
            "pool": pool,
            "layer": encoder.backbone.layer,
            "region": region or FOREGROUND,
            "subset": list(subset) if subset is not None else None,
            "per": per,
            "features": int(values.shape[1]),
            "precision": precision,
        },
    )


def _of_volumes(
    encoder: Encoder, items: Items, *, pool: str, region: str | None, subset: Any, per: str, batch: int, precision: str
) -> list[tuple[Any, str, np.ndarray]]:
    """Every case with its rows; all faults at once."""
    import torch

    from medmae.data.workers import progress

    wanted = regions_of(items) if per == "region" else {}
    if per == "region" and not wanted:
        raise UsageError("--per region: the data has no 'label' that says where regions are")
    own = region_values(items, region)
    found: list[tuple[Any, str, np.ndarray]] = []
    faults: list[str] = []
    lacking = 0
    device = next(encoder.backbone.parameters()).device
    with progress("computing features", len(items.cases), quiet=flags().quiet) as advance:
        for case in items.cases:
            if subset is None or set(subset) <= set(case.images):
                try:
                    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        rows = _rows(
                            encoder, items, case, subset, pool=pool, per=per, own=own, wanted=wanted, batch=batch
                        )
                    found += [(case, name, vector) for name, vector in rows.items()]
                    lacking += not rows
                except DataError as error:
                    faults.append(str(error))
            advance()
    if faults:
        raise DataError(f"{len(faults)} of {len(items.cases)} case(s) cannot be read:\n  - " + "\n  - ".join(faults))
    if lacking and found:
        say(f"{lacking} case(s) left aside: they have no {region or 'label region'}", style="yellow")
    return found


def _rows(
    encoder: Encoder, items: Items, case: Any, subset: Any, *, pool: str, per: str, own: Any, wanted: Any, batch: int
) -> dict[str, np.ndarray]:
    """The rows of one case by name; none where it has none of the regions."""
    import numpy as np
    import torch

    from medmae.data.inference import load_case
    from medmae.data.preprocess import label_remap

    sequences = encoder.sequences
    images = {n: p for n, p in case.images.items() if n in sequences and (subset is None or n in subset)}
    asked = own is not None or per == "region"
    if asked and case.label is None:
        return {}
    label = case.label if asked else None
    ready = load_case(images, encoder.reading, mask=case.mask, label=label, remap=label_remap(items.source.spec))
    if not ready.images:
        raise DataError(f"case {case.key}: none of its images can be used ({'; '.join(ready.odd.values())})")

    def over(inside: Any, run: Any) -> Any:
        from medmae.transfer.windows import over_windows

        return over_windows(
            run,
            {name: torch.from_numpy(image) for name, image in ready.images.items()},
            torch.from_numpy(inside),
            names=sequences,
            size=encoder.backbone.tokenizer.grid.size,
            spacing=ready.spacing,
            device=next(encoder.backbone.parameters()).device,
            batch_size=batch,
        ).numpy()

    def pooled(one: Any) -> torch.Tensor:
        return encoder.features(one).pooled(pool)

    classes: Any = ready.label
    if per == "region":
        masks = {name: np.isin(classes, values) for name, values in wanted.items()}
        return {name: over(mask, pooled) for name, mask in masks.items() if mask.any()}
    inside = ready.foreground if own is None else np.isin(classes, own)
    if not inside.any():
        return {}
    if per == "modality":
        each = over(inside, lambda one: encoder.features(one).by_modality())
        return {name: each[i] for i, name in enumerate(sequences) if name in ready.images}
    return {"": over(inside, pooled)}


def _of_samples(
    encoder: Encoder, items: Items, *, pool: str, per: str, batch: int, precision: str, workers: int
) -> Iterator[tuple[Any, str, np.ndarray]]:
    """Every sample with its rows, read as for validation."""
    import torch

    from medmae.data.kinds import kind_of
    from medmae.data.kinds.source import SampleSource
    from medmae.data.workers import progress

    kind = kind_of(encoder.kind, encoder.config["recipe"], encoder.reading)
    # A source wants something to train on; which part a sample belongs to does not matter here.
    whole = replace(items.source, samples=tuple(replace(s, split="train") for s in items.source.samples))
    source = SampleSource(whole, kind, workers=workers, quiet=True, check=whole.on_error == "skip")
    usable = {sample.key for sample in source.usable("train")}
    if any(sample.key not in usable for sample in items.cases):
        say(source.notes[-1], style="yellow")
    device = next(encoder.backbone.parameters()).device
    with progress("computing features", len(items.cases), quiet=flags().quiet) as advance:
        place = {sample.key: sample for sample in items.cases}
        asked = [sample for sample in whole.samples if sample.key in place and sample.key in usable]
        for one in source.in_order(asked, batch=batch):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                features = encoder.features(source.finish(one, device=device, training=False))
                vectors = features.by_modality() if per == "modality" else features.pooled(pool)[:, None]
            names = encoder.backbone.sequences if per == "modality" else ("",)
            for row, index in enumerate(one["index"].tolist()):
                sample = place[whole.samples[index].key]
                for column, name in enumerate(names):
                    yield sample, name, vectors[row, column].float().cpu().numpy()
                advance()
