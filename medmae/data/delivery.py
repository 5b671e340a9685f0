"""Batches from worker processes: the one loader of all kinds of samples, and what it means when a worker dies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from medmae.core.errors import OutOfMemory


def deliver(dataset: Dataset[Any], plan: Iterable[Any], *, workers: int) -> Iterator[Any]:
    """What ``dataset`` makes of every batch of ``plan``, in order; it puts whole batches together itself.

    Raises OutOfMemory where one of the ``workers`` processes was killed.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=plan,  # type: ignore[arg-type]  # any iterable of batches will do
        num_workers=workers,
        collate_fn=_whole,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # so that starting an iteration does not advance the global generator
    )
    try:
        yield from loader
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        # A worker that dies shows as any of these, depending on what it was handing over.
        if workers == 0 or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise OutOfMemory(
            f"a loader worker was killed, most often for want of memory or of shared memory ({error!r}). "
            "Use fewer workers or a smaller batch; in a container allow more shared memory (--shm-size)"
        ) from error


def _whole(batch: Any) -> Any:
    return batch
