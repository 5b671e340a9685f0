"""What the engine asks of whoever delivers the samples.

The engine and the data room do not import one another: they agree on this protocol. Its one idea is that the
training stream is an infinite sequence of samples numbered by a global ordinal, and that the sample of an
ordinal (which case, which crop, which random draws) is a pure function of the seed and that number. A resumed
run only has to say at which micro-step it starts, and one process with batch 2 sees the same samples as two
processes with batch 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]


@runtime_checkable
class Source(Protocol):
    """Training and validation batches.

    ``size`` is the number of training samples in one epoch; ``sequences`` are the names of the entries of a
    batch.
    """

    size: int
    sequences: tuple[str, ...]

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[Batch]:
        """Infinite stream of this process's batches, beginning at global micro-step ``start``.

        Sample ``i`` of micro-step ``s`` has the ordinal ``s * world * batch + rank * batch + i``.
        """
        ...

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[Batch]:
        """This process's share of the validation samples: finite, in a fixed order, with keys that never
        change.
        """
        ...

    def finish(self, batch: Batch, *, device: torch.device, training: bool) -> Batch:
        """Move one delivered batch to ``device`` and make it the method's input (cast, normalize, augment)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the samples are, as JSON: sequences, preprocessing, crop, hashes of the subjects."""
        ...


def samples_in(batch: Batch) -> int:
    """Number of samples in a batch: the first axis of any of its entries."""
    return int(next(iter(batch.values())).shape[0])
