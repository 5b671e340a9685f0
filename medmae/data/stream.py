"""Which sample comes when: arithmetic on ordinals, no state.

Training is one infinite sequence of samples. The ordinal of a sample says everything about it: its epoch, its case,
its key. Ranks, batch sizes and workers only decide who computes which ordinals, so a run is the same on one process
or two, with none or eight workers, and a resumed run needs to know nothing but the step it stopped at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from medmae.core.random import mix

_ORDER = 0x6F72646572
_VALIDATION = 0x76616C6964


class Draw(NamedTuple):
    """One sample to deliver: row in the cohort, key of its randomness, key of its crop."""

    case: int
    key: int
    crop: int


@lru_cache(maxsize=4)
def order(n: int, *, seed: int, epoch: int) -> tuple[int, ...]:
    """The permutation of ``n`` cases in one epoch."""
    return tuple(sorted(range(n), key=lambda i: (mix(seed, _ORDER, epoch, i), i)))


def ordinals(step: int, *, batch: int, rank: int, world: int) -> range:
    """Ordinals of one rank's batch at a global micro-step; all ranks' together are consecutive."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} processes does not exist")
    first = (step * world + rank) * batch
    return range(first, first + batch)


def draw(ordinal: int, *, n: int, seed: int, repeat: int = 1) -> Draw:
    """Case and keys of one ordinal. ``repeat`` consecutive ordinals share one crop, each with a key of its own."""
    crop = ordinal // repeat
    epoch, place = divmod(crop, n)
    return Draw(order(n, seed=seed, epoch=epoch)[place], mix(seed, ordinal), mix(seed, crop))


def training(
    n: int, *, start: int, batch: int, rank: int, world: int, seed: int, repeat: int = 1
) -> Iterator[list[Draw]]:
    """Batches of one rank from global micro-step ``start`` on, for ever."""
    if n < 1:
        raise ValueError("there is no case to train on")
    step = start
    while True:
        yield [draw(o, n=n, seed=seed, repeat=repeat) for o in ordinals(step, batch=batch, rank=rank, world=world)]
        step += 1


def validation(n: int, *, batch: int, rank: int, world: int, seed: int) -> Iterator[list[Draw]]:
    """Every case once over all ranks, in a fixed order with fixed keys; a rank's last batch may be smaller."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} processes does not exist")
    mine = range(rank, n, world)
    for first in range(0, len(mine), batch):
        keys = [(i, mix(seed, _VALIDATION, i)) for i in mine[first : first + batch]]
        yield [Draw(i, key, key) for i, key in keys]
