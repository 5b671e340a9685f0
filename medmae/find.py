"""The file system is the registry of methods.

A method is a file in one of the method folders that defines ``CARD`` and a builder of the file's own name. Finding one
imports that file only, so a broken or heavy neighbor cannot stand in the way.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import UsageError
from medmae.core.glossary import meanings

if TYPE_CHECKING:
    from medmae.core.card import Card
    from medmae.core.method import Method

ROOMS = ("volume", "image", "video", "points", "audio")


@dataclass(frozen=True)
class Found:
    """A method by its name.

    Attributes:
        name: of the method, its file and its builder.
        card: what it says of itself.
        builder: the function that builds it; its keyword arguments are the only defaults there are.
        module: dotted path of the file.
        presets: named sets of arguments.
        scales: named sizes.
    """

    name: str
    card: Card
    builder: Callable[..., Method]
    module: str
    presets: Mapping[str, Mapping[str, Any]]
    scales: Mapping[str, Mapping[str, Any]]

    def recipe(self, *, preset: str | None = None, scale: str | None = None, **overrides: Any) -> dict[str, Any]:
        """Every argument of the builder, resolved: its defaults, then the scale, the preset and the overrides.

        The result is made of JSON values, so that it can be saved and built again.

        Raises:
            UsageError: a preset, scale or argument that does not exist.
        """
        signature = inspect.signature(self.builder).parameters
        recipe = {key: p.default for key, p in signature.items() if p.default is not inspect.Parameter.empty}
        recipe |= _choose(self.name, "scale", scale, self.scales)
        recipe |= _choose(self.name, "preset", preset, self.presets)
        if scale is not None:  # a size asked for by name is meant, whatever the preset is made for
            recipe |= self.scales[scale]
        for key in overrides:
            if key not in signature:
                raise UsageError(f"{self.name} has no argument {key!r}{_suggest(key, list(signature))}")
            default = signature[key].default  # the letters of a word would pass for a list
            if isinstance(default, tuple) and not isinstance(overrides[key], tuple | list):
                raise UsageError(f"{key} must be a list, such as {list(default)}, not {overrides[key]!r}")
        return _plain(recipe | overrides)

    def meanings(self) -> dict[str, str]:
        """What every argument means: in the words of the builder's docstring, else of :mod:`medmae.core.glossary`."""
        return meanings(self.builder, self.card.kind)

    def build(self, *, preset: str | None = None, scale: str | None = None, **overrides: Any) -> Method:
        """Build the method from its resolved recipe.

        Raises:
            UsageError: an argument that does not exist, or values that do not fit together.
        """
        recipe = self.recipe(preset=preset, scale=scale, **overrides)
        try:
            return self.builder(**{key: _frozen(value) for key, value in recipe.items()})
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.name} cannot be built: {error}") from error


def _choose(method: str, kind: str, name: str | None, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in known:
        raise UsageError(f"{method} has no {kind} {name!r}{_suggest(name, list(known))}")
    return known[name]


def _plain(value: Any) -> Any:
    """Tuples to lists, recursively: the values that JSON and YAML give back."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def _frozen(value: Any) -> Any:
    """Lists to tuples, recursively: the values that builders take."""
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are: {', '.join(sorted(known)) or 'none'}"


@lru_cache(maxsize=1)
def _places() -> dict[str, str]:
    """Name of every method and the dotted path of its file, without importing any."""
    root = Path(__file__).parent
    files = (path for room in ROOMS for path in sorted((root / room).glob("*.py")))
    return {p.stem: f"medmae.{p.parent.name}.{p.stem}" for p in files if "\nCARD = " in p.read_text("utf-8")}


def names() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(_places())


def find(name: str) -> Found:
    """The method called ``name``.

    Raises:
        UsageError: there is none; the nearest names are suggested.
    """
    if name not in _places():
        raise UsageError(f"there is no method {name!r}{_suggest(name, list(_places()))}")
    module = importlib.import_module(_places()[name])
    return Found(
        name=name,
        card=module.CARD,
        builder=getattr(module, name),
        module=module.__name__,
        presets=getattr(module, "PRESETS", {}),
        scales=getattr(module, "SCALES", {}),
    )


def all() -> tuple[Found, ...]:  # noqa: A001 - reads as find.all()
    """All methods."""
    return tuple(find(name) for name in names())
