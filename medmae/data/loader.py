"""From a cohort to batches: what the training loop asks for samples.

Workers read int16 crops and nothing else; a batch is written once, straight into the memory shared with the main
process. Arithmetic happens on the training device (``data/augment.py``). With the ``device`` tier the cohort itself
lives there and the host only counts ordinals.

Which case, which crop and every draw are functions of the sample's ordinal (``data/stream.py``), so the number of
workers cannot change what is trained, and no two workers can deliver the same sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from medmae.core.errors import DataError, OutOfMemory, UsageError
from medmae.core.random import uniform
from medmae.data import stream
from medmae.data.artifacts import Artifacts, apply_artifacts
from medmae.data.augment import Augmentation, draw_augmentation, finish_batch
from medmae.data.cache import TIERS, Entry, default_folder, ensure
from medmae.data.crops import CropReader, make_memory_twins, resident
from medmae.data.delivery import deliver
from medmae.data.oddities import remarks
from medmae.data.preprocess import PreprocessSettings
from medmae.data.stream import Draw
from medmae.data.workers import progress

_CROP, _LABELED = 0x63726F70, 0x6C6162


class VolumeSource:
    """The training and validation samples of a cohort, as the engine's ``Source``.

    ``size`` is the crop in voxels, ``sequences`` the entries of every batch (default: the cohort's), ``cache`` the
    folder of prepared cases (default: the user's), ``tier`` where they are read from: "disk" (compressed), "memory"
    (mapped), "device" (resident on the training device). ``workers`` prepare and read. ``repeat`` samples share each
    crop with different keys (several mask plans per crop). ``foreground_share`` is the probability that a crop is
    centered on a foreground voxel. ``label_share``, with ``labels``, is the probability that it is centered on a
    labeled one, where there is any: lesions are small, and a window without one teaches little.

    A case without any of ``sequences`` is left out, and with ``labels`` one without a label; ``notes`` says so, and
    what is odd about the voxels. ``present``: the sequences of every training and validation case that is left.
    DataError where nothing is left or cases cannot be prepared.
    """

    def __init__(
        self,
        cohort: Any,
        *,
        size: tuple[int, int, int],
        cache: str | Path | None = None,
        sequences: tuple[str, ...] | None = None,
        tier: str = "disk",
        workers: int = 0,
        augmentation: Augmentation | None = None,
        artifacts: Artifacts | None = None,
        labels: bool = False,
        repeat: int = 1,
        foreground_share: float = 1.0,
        label_share: float = 0.0,
        quiet: bool = False,
    ) -> None:
        if tier not in TIERS:
            raise UsageError(f"cache tier {tier!r} is not known; it is one of {', '.join(TIERS)}")
        if len(size) != 3 or min(size) < 1 or repeat < 1 or workers < 0:
            raise UsageError(
                f"size {tuple(size)}, repeat {repeat}, workers {workers}: sizes and counts must be positive"
            )
        if artifacts is not None and tier == "device":
            raise UsageError(
                "artifacts are made by the workers; with the device tier there are none. Use disk or memory"
            )
        self.sequences: tuple[str, ...] = tuple(sequences or cohort.sequences)
        self.notes: list[str] = []
        self._settings = PreprocessSettings.of(cohort.spec)
        self._augmentation = Augmentation() if augmentation is None else augmentation
        self._tier, self._workers, self._repeat, self._quiet = tier, workers, repeat, quiet
        parts = cohort.split()
        chosen = [*parts["train"], *parts["val"]]
        entries = ensure(
            chosen,
            cohort.spec,
            folder=default_folder() if cache is None else cache,
            workers=max(1, workers),
            quiet=quiet,
            on_problem=self.notes.append,
        )
        self.notes += remarks(chosen, entries, cohort.spec)
        usable = [entry if entry is not None and self._usable(entry, labels) else None for entry in entries]
        unusable = sum(entry is not None for entry in entries) - sum(entry is not None for entry in usable)
        what = f"any of {', '.join(self.sequences)}{' and a label' if labels else ''}"
        if unusable:
            self.notes.append(f"{unusable} case(s) left out: without {what}")
        self._entries = tuple(entry for entry in usable if entry is not None)
        self.present = {
            case.key: frozenset(entry.sequences)
            for case, entry in zip(chosen, usable, strict=True)
            if entry is not None
        }
        self._train = sum(entry is not None for entry in usable[: len(parts["train"])])
        if self._train == 0:
            raise DataError(f"no training case has {what}")
        self.size: int = self._train * repeat
        if tier == "memory":
            for entry in self._entries:
                make_memory_twins(entry)
        self._crops = Crops(
            self._entries,
            size=(int(size[0]), int(size[1]), int(size[2])),
            sequences=self.sequences,
            tier=tier,
            labels=labels,
            artifacts=artifacts,
            foreground_share=foreground_share,
            label_share=label_share if labels else 0.0,
            first_validation=self._train,
        )
        self._resident: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def _usable(self, entry: Entry, labels: bool) -> bool:
        return bool(set(entry.sequences) & set(self.sequences)) and (not labels or entry.label is not None)

    def _used(self, entry: Entry) -> set[str]:
        return set(entry.sequences) & set(self.sequences)

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches from global micro-step ``start`` on, for ever, as workers deliver them (give them to ``finish``)."""
        plan = stream.training(
            self._train, start=start, batch=batch, rank=rank, world=world, seed=seed, repeat=self._repeat
        )
        return self._deliver(plan)

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """Every validation case once over all ranks: central crops, fixed order, fixed keys."""
        plan = stream.validation(len(self._entries) - self._train, batch=batch, rank=rank, world=world, seed=seed)
        return self._deliver([d._replace(case=d.case + self._train) for d in draws] for draws in plan)

    @property
    def validation_size(self) -> int:
        """Number of validation cases."""
        return len(self._entries) - self._train

    def _deliver(self, plan: Iterable[list[Draw]]) -> Iterator[Mapping[str, Tensor]]:
        if self._tier == "device":
            yield from (self._crops.place(draws) for draws in plan)
            return
        yield from deliver(self._crops, plan, workers=self._workers)

    def finish(self, batch: Mapping[str, Tensor], *, device: Any, training: bool) -> dict[str, Tensor]:
        """Move to the device, cast, normalize, and where ``training`` flip and vary: the method's input."""
        draws = None
        if training:
            draws = draw_augmentation(batch["key"], self._augmentation, sequences=len(self.sequences))
        if "start" in batch:
            batch = self._gather(batch, torch.device(device))
        return finish_batch(batch, sequences=self.sequences, device=device, draws=draws)

    def _gather(self, batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Cut crops out of the volumes that live on the device."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        stored = self._resident.get(str(device))
        if stored is None:
            stored = self._resident[str(device)] = self._load(device)
        size = self._crops.size
        starts = batch["start"].tolist()
        volumes = torch.zeros(len(starts), len(self.sequences), *size, dtype=torch.int16, device=device)
        foreground = torch.zeros(len(starts), 1, *size, dtype=torch.uint8, device=device)
        for place, (index, start) in enumerate(zip(batch["crop"].tolist(), starts, strict=True)):
            images, mask = stored[index]
            entry = self._entries[index]
            source = tuple(slice(max(s, 0), min(s + c, n)) for s, c, n in zip(start, size, entry.shape, strict=True))
            target = tuple(slice(a.start - s, a.stop - s) for a, s in zip(source, start, strict=True))
            rows = [row for row, name in enumerate(self.sequences) if name in entry.sequences]
            if len(rows) == len(self.sequences):
                volumes[place][(slice(None), *target)] = images[(slice(None), *source)]
                rows = []
            for k, row in enumerate(rows):
                volumes[place, row][target] = images[k][source]
            foreground[place, 0][target] = mask[source]
        kept = {name: value for name, value in batch.items() if name not in ("start", "crop")}
        return {**kept, "volumes": volumes, "foreground": foreground}

    def _load(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        wanted = set(self.sequences)
        voxels = sum(
            int(np.prod(entry.shape)) * (2 * len(wanted & set(entry.sequences)) + 1) for entry in self._entries
        )
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else voxels
        if voxels > free:
            raise OutOfMemory(
                f"the cohort takes {voxels / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB are free; "
                "use the memory or disk tier, fewer sequences, or a coarser spacing"
            )
        loaded = []
        with progress(f"loading onto {device}", len(self._entries), quiet=self._quiet) as advance:
            for entry in self._entries:
                images, mask = resident(entry, self.sequences)
                loaded.append((torch.from_numpy(images).to(device), torch.from_numpy(mask).to(device)))
                advance()
        return loaded

    def describe(self) -> dict[str, Any]:
        """What a model must remember of its data, as JSON values; cases and files are short hashes of their content."""
        train = self._entries[: self._train]
        known = {name: [e.statistics[name] for e in train if name in e.sequences] for name in self.sequences}
        return {
            "sequences": list(self.sequences),
            "preprocess": self._settings.describe(),
            "statistics": {
                name: {"mean": sum(s.mean for s in each) / len(each), "std": sum(s.std for s in each) / len(each)}
                for name, each in known.items()
                if each
            },
            "crop": list(self._crops.size),
            "augmentation": self._augmentation.describe(),
            "artifacts": None if self._crops.artifacts is None else self._crops.artifacts.describe(),
            "repeat": self._repeat,
            "cases": {"train": self._train, "validation": self.validation_size},
            "subjects": [entry.case for entry in train],
            "validation_subjects": [entry.case for entry in self._entries[self._train :]],
            "files": sorted({digest[:16] for e in train for name, digest in e.files.items() if name in self._used(e)}),
            "voxels": sorted({digest for e in train for name, digest in e.voxels.items() if name in self._used(e)}),
        }


class Crops(Dataset[Any]):
    """What a worker does: a list of draws to one batch of int16 crops."""

    def __init__(
        self,
        entries: tuple[Entry, ...],
        *,
        size: tuple[int, int, int],
        sequences: tuple[str, ...],
        tier: str,
        labels: bool,
        artifacts: Artifacts | None,
        foreground_share: float,
        label_share: float,
        first_validation: int,
    ) -> None:
        self.size, self.artifacts = size, artifacts
        self._entries, self._sequences, self._labels = entries, sequences, labels
        self._share, self._label_share, self._first_validation = foreground_share, label_share, first_validation
        self._reader = CropReader(tier="disk" if tier == "device" else tier)
        self._rows = [_row_of(entry, sequences) for entry in entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])

    def __getitems__(self, draws: list[Draw]) -> dict[str, Tensor]:
        """Read one batch; samples that share a crop read it once and say so in ``row``."""
        crops: dict[tuple[int, int], int] = {}
        row = [crops.setdefault((d.case, d.crop), len(crops)) for d in draws]
        unique = len(crops)
        volumes = _shared((unique, len(self._sequences), *self.size), torch.int16)
        foreground = _shared((unique, 1, *self.size), torch.uint8)
        label = _shared((unique, 1, *self.size), torch.int16) if self._labels else None
        calibration = np.stack([self._rows[index] for index, _ in crops])
        for place, (index, crop) in enumerate(crops):
            entry = self._entries[index]
            start = self.start(index, crop)
            self._reader.images(entry, self._sequences, start, volumes[place].numpy())
            self._reader.foreground(entry, start, foreground[place, 0].numpy())
            if label is not None:
                self._reader.label(entry, start, label[place, 0].numpy())
            if self.artifacts is not None and index < self._first_validation:
                apply_artifacts(volumes[place].numpy(), calibration[place], key=crop, settings=self.artifacts)
        batch = {**self._facts(draws, torch.from_numpy(calibration)[row]), "volumes": volumes, "foreground": foreground}
        if label is not None:
            batch["label"] = label
        if unique < len(draws):
            batch["row"] = torch.tensor(row)
        return batch

    def place(self, draws: list[Draw]) -> dict[str, Tensor]:
        """The batch without voxels: where to cut, for volumes that live on the device."""
        facts = self._facts(draws, torch.from_numpy(np.stack([self._rows[d.case] for d in draws])))
        start = torch.tensor([self.start(d.case, d.crop) for d in draws])
        return {**facts, "start": start, "crop": facts["index"]}

    def _facts(self, draws: list[Draw], calibration: Tensor) -> dict[str, Tensor]:
        return {
            "calibration": calibration,
            "present": calibration[..., 3] != 0,
            "spacing": torch.tensor([self._entries[d.case].spacing for d in draws], dtype=torch.float32),
            "key": torch.tensor([d.key for d in draws]),
            "index": torch.tensor([d.case for d in draws]),
        }

    def start(self, index: int, crop: int) -> tuple[int, int, int]:
        """First voxel of a crop: central for validation, else drawn by its key, inside the volume wherever it fits."""
        entry = self._entries[index]
        points, drawn = self._reader.points(entry), torch.tensor([crop])
        if index >= self._first_validation:
            center = (points.min(0) + points.max(0) + 1) // 2
            first = center - np.asarray(self.size) // 2
        else:
            u = uniform(drawn, 5, stream=_CROP)[0].tolist()
            if self._label_share and float(uniform(drawn, 1, stream=_LABELED)) < self._label_share:
                labeled = self._reader.labeled(entry)
                points, u[0] = (labeled, -1.0) if len(labeled) else (points, u[0])
            if u[0] < self._share:
                first = points[int(u[1] * len(points))] - np.asarray(self.size) // 2
            else:
                room = np.asarray(entry.shape) - np.asarray(self.size) + 1
                first = np.floor(np.asarray(u[2:]) * np.maximum(room, 1)).astype(int)
        x, y, z = (
            min(max(int(s), 0), n - c) if n >= c else -((c - n) // 2)
            for s, c, n in zip(first, self.size, entry.shape, strict=True)
        )
        return x, y, z


def _row_of(entry: Entry, sequences: tuple[str, ...]) -> np.ndarray:
    """Slope, inter, mean, std per sequence; zeros where the case lacks it."""
    rows = np.zeros((len(sequences), 4), np.float32)
    for row, name in enumerate(sequences):
        if name in entry.sequences:
            known = entry.statistics[name]
            rows[row] = (entry.slope[name], entry.inter[name], known.mean, known.std)
    return rows


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor; in a worker it lies in shared memory, so that handing it over copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    length = int(np.prod(shape))
    storage = torch.UntypedStorage._new_shared(length * dtype.itemsize)  # type: ignore[no-untyped-call]
    result: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
    return result
