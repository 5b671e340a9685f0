"""Data that are no volumes: images, clips, clouds of points, sound.

One kind is one file that knows one family of formats: how a sample is read, cut and scaled. Finding samples
(``listing.py``) and delivering them (``source.py``) is the same for all of them, and knows no format. Kinds are named
here by dotted path and loaded when asked for, so that images do not wait for the packages of sound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medmae.core.errors import UsageError

if TYPE_CHECKING:
    from medmae.data.kinds.source import Kind

KINDS: Mapping[str, str] = {
    "image": "medmae.data.kinds.image:ImageKind",
    "video": "medmae.data.kinds.video:VideoKind",
    "points": "medmae.data.kinds.points:PointsKind",
    "audio": "medmae.data.kinds.audio:AudioKind",
}


def kind_class(name: str) -> Any:
    """The class behind the kind called ``name``; UsageError where there is none."""
    if name not in KINDS:
        raise UsageError(f"{name!r} is no kind of data; there are {', '.join(KINDS)}")
    module, _, attribute = KINDS[name].partition(":")
    return getattr(import_module(module), attribute)


def count_readable(names: Sequence[str]) -> dict[str, int]:
    """How many of these names of files each kind reads, by their endings."""
    return {kind: sum(name.lower().endswith(tuple(kind_class(kind).suffixes)) for name in names) for kind in KINDS}


def kind_of(name: str, recipe: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Kind:
    """The kind called ``name``, told what it must know by the recipe of a method and by ``options`` of the user.

    Raises UsageError for an unknown kind, an unknown option, or a recipe that data of this kind cannot fill.
    """
    made: Kind = kind_class(name).of(recipe, options or {})
    return made
