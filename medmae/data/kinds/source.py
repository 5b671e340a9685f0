"""From a list of samples to batches: what the training loop asks for samples that are no volumes.

The kind reads one sample in a worker and finishes a batch on the device; this file decides which sample comes when.
As with volumes, everything about a sample is a function of its ordinal (``data/stream.py``), so neither the number of
workers nor of processes nor a resume changes what is trained.

All files are looked at once before the first step, unless told not to: a broken one named now costs a minute, one met
in the night costs the night. What is left out is left out before ordinals are counted, so it moves no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medmae.core.errors import DataError, MedmaeError, UsageError
from medmae.data import stream
from medmae.data.cache import default_folder
from medmae.data.delivery import deliver
from medmae.data.fingerprint import Fingerprints
from medmae.data.kinds.listing import Listing, Sample, sample_hash
from medmae.data.stream import Draw
from medmae.data.workers import progress

FACTS = ("key", "index", "target_class")
_NAMED = 20  # broken files named in one message; more only hide the sentence that says what to do
_AT_ONCE = 4096  # samples handed to the threads at a time; a million waiting would fill the memory
_ERROR = "error"


@runtime_checkable
class Kind(Protocol):
    """One family of data: how a sample is read, and how a batch becomes the method's input.

    A class attribute ``folder_suffixes`` may name endings of files that make the folder they lie in one sample, as the
    frames of a clip do.

    Attributes:
        name: of the kind, such as ``image``.
        suffixes: endings of the files it reads, in lower case, with the dot.
        entries: names of a batch's entries that the method reads.
    """

    name: str
    suffixes: tuple[str, ...]
    entries: tuple[str, ...]

    def read(self, sample: Sample, *, key: int, training: bool) -> dict[str, np.ndarray]:
        """Arrays of one sample, of the same shapes and types for every sample.

        It runs in a worker. All draws are functions of ``key``; without ``training`` there are none. Raises DataError
        that names the file.
        """
        ...

    def finish(self, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        """The method's entries from a batch of what ``read`` gave, on the device it lies on.

        The batch also holds ``key`` Int64[b], of which all draws are functions.
        """
        ...

    def facts(self, sample: Sample) -> dict[str, Any]:
        """What ``data check`` tells of a sample (size, channels, duration, ...), as JSON values.

        Raises DataError that names the file where it is broken or unfit.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """How samples are read, as JSON values: what a model must remember to read new data the same way."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """A kind whose samples must agree in something that no single one of them can be wrong about."""

    def disagreements(self, facts: Sequence[tuple[Sample, Mapping[str, Any]]]) -> dict[str, str]:
        """What is wrong between the samples, by the key of the sample to blame."""
        ...


@dataclass(frozen=True)
class Survey:
    """What looking at every file has found: facts of the readable ones, what is wrong with the others, by key."""

    facts: Mapping[str, Mapping[str, Any]]
    problems: Mapping[str, str]


def survey(samples: Sequence[Sample], kind: Kind, *, workers: int = 4, quiet: bool = True) -> Survey:
    """Look at every sample, in ``workers`` threads: decoders let go of the interpreter while they work."""
    facts: dict[str, Mapping[str, Any]] = {}
    problems: dict[str, str] = {}

    def look(sample: Sample) -> Mapping[str, Any] | DataError:
        try:
            return kind.facts(sample)
        except DataError as error:
            return error

    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        progress(f"looking at {kind.name} files", len(samples), quiet=quiet) as advance,
    ):
        for first in range(0, len(samples), _AT_ONCE):
            part = samples[first : first + _AT_ONCE]
            for sample, found in zip(part, pool.map(look, part), strict=True):
                if isinstance(found, DataError):
                    problems[sample.key] = str(found)
                else:
                    facts[sample.key] = found
                advance()
    if isinstance(kind, Comparing):
        compared = kind.disagreements([(s, facts[s.key]) for s in samples if s.key in facts])
        problems |= compared
        facts = {key: fact for key, fact in facts.items() if key not in compared}
    return Survey(facts, {s.key: problems[s.key] for s in samples if s.key in problems})


class SampleSource:
    """The training and validation samples of a listing, as the engine's ``Source``.

    ``workers`` processes read. ``repeat`` samples share each reading with different keys (several mask plans per
    sample). ``check`` looks at every file first; what is broken is an error, or, where the listing's ``on_error`` is
    "skip", left out and named in ``notes``. A batch holds the kind's entries, ``key`` Int64[b], ``index`` Int64[b]
    (row in the listing) and ``target_class`` Int64[b] (place in the listing's ``classes``, -1 where unknown).

    DataError where nothing is left to train on.
    """

    def __init__(
        self,
        listing: Listing,
        kind: Kind,
        *,
        workers: int = 0,
        quiet: bool = False,
        repeat: int = 1,
        check: bool = True,
    ) -> None:
        if repeat < 1 or workers < 0:
            raise UsageError(f"repeat {repeat}, workers {workers}: counts must be positive")
        self.listing, self.kind = listing, kind
        self.sequences: tuple[str, ...] = kind.entries
        self.notes: list[str] = list(listing.notes)
        self._workers, self._repeat = workers, repeat
        broken = self._survey(quiet=quiet) if check else {}
        row = {sample.key: i for i, sample in enumerate(listing.samples)}
        parts = listing.split()
        self._rows = {
            part: [row[s.key] for s in samples if s.key not in broken] for part, samples in parts.items()
        }  # fmt: skip
        if not self._rows["train"]:
            raise DataError(f"{listing.name}: no {kind.name} to train on")
        self.size: int = len(self._rows["train"]) * repeat
        self._hashes: dict[str, list[str]] = {}

    def _survey(self, *, quiet: bool) -> Mapping[str, str]:
        found = survey(self.listing.samples, self.kind, workers=max(4, self._workers), quiet=quiet).problems
        if not found:
            return {}
        most = _NAMED if len(found) < len(self.listing.samples) else 3  # where all are broken, all are broken alike
        shown = [*list(found.values())[:most], *([f"and {len(found) - most} more"] if len(found) > most else [])]
        if self.listing.on_error != "skip":
            raise DataError(
                f"{self.listing.name}: {len(found)} of {len(self.listing.samples)} sample(s) cannot be used:\n  - "
                + "\n  - ".join(shown)
                + ("\nCorrect or remove them, or leave them out with --set data.on_error=skip" if most > 3 else "")
            )
        self.notes.append(f"{len(found)} sample(s) left out, they cannot be used:\n  - " + "\n  - ".join(shown))
        return found

    @property
    def validation_size(self) -> int:
        """Number of validation samples."""
        return len(self._rows["val"])

    @property
    def counts(self) -> dict[str, int]:
        """Number of usable samples by part of the split."""
        return {part: len(rows) for part, rows in self._rows.items()}

    def usable(self, part: str) -> tuple[Sample, ...]:
        """The samples of ``train``, ``val`` or ``test`` that are left."""
        return tuple(self.listing.samples[row] for row in self._rows[part])

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches from global micro-step ``start`` on, for ever, as workers deliver them (give them to ``finish``)."""
        rows = self._rows["train"]
        plan = stream.training(
            len(rows), start=start, batch=batch, rank=rank, world=world, seed=seed, repeat=self._repeat
        )
        return self._deliver(([d._replace(case=rows[d.case]) for d in draws] for draws in plan), training=True)

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """Every validation sample once over all ranks: read without draws, fixed order, fixed keys."""
        return self._fixed(self._rows["val"], batch=batch, rank=rank, world=world, seed=seed)

    def in_order(self, samples: Sequence[Sample], *, batch: int, seed: int = 0) -> Iterator[Mapping[str, Tensor]]:
        """Some samples of the listing once, in the order given, read as for validation."""
        row = {sample.key: i for i, sample in enumerate(self.listing.samples)}
        return self._fixed([row[s.key] for s in samples], batch=batch, rank=0, world=1, seed=seed)

    def _fixed(
        self, rows: Sequence[int], *, batch: int, rank: int, world: int, seed: int
    ) -> Iterator[Mapping[str, Tensor]]:
        plan = stream.validation(len(rows), batch=batch, rank=rank, world=world, seed=seed)
        return self._deliver(([d._replace(case=rows[d.case]) for d in draws] for draws in plan), training=False)

    def _deliver(self, plan: Iterable[list[Draw]], *, training: bool) -> Iterator[Mapping[str, Tensor]]:
        for batch in deliver(_Reading(self.listing, self.kind, training=training), plan, workers=self._workers):
            if _ERROR in batch:
                raise batch[_ERROR]
            yield batch

    def finish(self, batch: Mapping[str, Tensor], *, device: Any, training: bool) -> dict[str, Tensor]:
        """Move to the device, and let the kind cast, normalize and, where ``training``, vary: the method's input."""
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        facts = {name: moved[name] for name in FACTS}
        return {**self.kind.finish(moved, training=training), **facts}

    def describe(self) -> dict[str, Any]:
        """What a model must remember of its data, as JSON values; samples are short hashes of their content."""
        return {
            "kind": self.kind.name,
            "name": self.listing.name,
            "sequences": list(self.sequences),
            "classes": list(self.listing.classes),
            "reading": self.kind.describe(),
            "repeat": self._repeat,
            "cases": {"train": len(self._rows["train"]), "validation": self.validation_size},
            "subjects": self._hashed("train"),
            "validation_subjects": self._hashed("val"),
        }

    def _hashed(self, part: str) -> list[str]:
        if part not in self._hashes:
            prints = Fingerprints(default_folder())  # what is not new is not read again
            self._hashes[part] = [sample_hash(sample, prints) for sample in self.usable(part)]
            prints.save()
        return self._hashes[part]


class _Reading(Dataset[Any]):
    """What a worker does: a list of draws to one batch of arrays; what cannot be read is handed over as an error."""

    def __init__(self, listing: Listing, kind: Kind, *, training: bool) -> None:
        self._samples, self._kind, self._training = listing.samples, kind, training
        place = {name: i for i, name in enumerate(listing.classes)}
        self._classes = [-1 if s.label is None else place.get(s.label, -1) for s in listing.samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return self.__getitems__([draw])

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """Read one batch; samples that share a reading are read once."""
        read: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        try:
            for d in draws:
                if (d.case, d.crop) not in read:
                    sample = self._samples[d.case]
                    read[d.case, d.crop] = self._kind.read(sample, key=d.crop, training=self._training)
        except MedmaeError as error:  # raised in a worker, it would arrive as a page of traceback
            return {_ERROR: error}
        arrays = [read[d.case, d.crop] for d in draws]
        batch = {name: torch.from_numpy(np.stack([a[name] for a in arrays])) for name in arrays[0]}
        return {
            **batch,
            "key": torch.tensor([d.key for d in draws]),
            "index": torch.tensor([d.case for d in draws]),
            "target_class": torch.tensor([self._classes[d.case] for d in draws]),
        }
