"""Data that is made while it is read: ``toy-image``, ``toy-video``, ``toy-points``, ``toy-audio``.

A toy needs no download, so tests, the demo and the documentation can train on it, and its classes are known, so a
probe can be scored. A sample is a pure function of its index and the seed; nothing is stored on disk, and each process
remembers the last thousand, because a small method trains faster than its toys are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from medmae.core.errors import UsageError

TOYS: Mapping[str, str] = {
    "toy-image": "medmae.data.kinds.toy_image",
    "toy-video": "medmae.data.kinds.toy_video",
    "toy-points": "medmae.data.kinds.toy_points",
    "toy-audio": "medmae.data.kinds.toy_audio",
}
"""Name of a toy -> the module with its ``CLASSES`` and its ``generate``."""

COUNT = 600
SEED = 0
_REMEMBERED = 1024  # samples; of the largest, clips, 200 MB


def is_toy(text: str | Path) -> bool:
    """Whether ``--data`` names a toy: ``toy-image``, or ``toy-image:1200`` for another number of samples."""
    return str(text).partition(":")[0] in TOYS


def parse(text: str | Path) -> tuple[str, int]:
    """Name and number of samples of ``toy-image`` or ``toy-image:1200``; UsageError where it is neither."""
    name, colon, count = str(text).partition(":")
    if name not in TOYS:
        raise UsageError(f"there is no toy called {name!r}; they are {', '.join(TOYS)}")
    if not colon:
        return name, COUNT
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise UsageError(f"{text}: the number of samples must be a positive integer, as in {name}:{COUNT}")
    return name, int(count)


def kind_of(name: str) -> str:
    """The kind of a toy's data: ``image`` of ``toy-image``."""
    return name.removeprefix("toy-")


def classes(name: str) -> tuple[str, ...]:
    """The classes of a toy."""
    return tuple(import_module(TOYS[name]).CLASSES)


def label_of(name: str, index: int) -> str:
    """The class of one sample, without making it: consecutive indices go through the classes in turn."""
    known = classes(name)
    return known[index % len(known)]


def pseudo_path(name: str, index: int) -> Path:
    """What stands for the path of a sample in messages and tables; no such file exists."""
    return Path(name) / f"{index:06d}"


def generate(name: str, index: int, *, seed: int = SEED) -> tuple[Any, str]:
    """Sample ``index`` of a toy, a numpy array, and its class."""
    array, label = _made(name, index, seed)
    return array.copy(), label


@lru_cache(maxsize=_REMEMBERED)
def _made(name: str, index: int, seed: int) -> tuple[Any, str]:
    made: tuple[Any, str] = import_module(TOYS[name]).generate(index, seed=seed)
    return made
