"""YAML read so that every later complaint can name the file and the line.

PyYAML's usual loader forgets positions and lets a repeated key silently win; the node tree does neither.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from medmae.core.errors import UsageError

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its plain ``value`` and the line (counted from 1) of every place in it."""

    path: Path
    value: Any
    lines: dict[Place, int]

    def at(self, place: Place) -> str:
        """``file:line`` of the innermost known part of ``place``."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.path}:{self.lines.get(place, 1)}"


def read_document(path: Path) -> Document:
    """Read the YAML file at ``path``; UsageError with file and line on anything that is not one YAML document."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}). Give the path of a YAML data spec.") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}:1: not valid YAML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:1: not a usable YAML document: {error}") from error
    lines: dict[Place, int] = {}
    if root is not None:
        _walk(root, (), lines, path, set())
    return Document(path, value, lines)


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path, open_nodes: set[int]) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if id(node) in open_nodes:
        raise UsageError(f"{path}:{node.start_mark.line + 1}: a YAML anchor that contains itself.")
    open_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key_node, value_node in node.value:
            key = _plain_key(key_node)
            line = key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise UsageError(
                    f"{path}:{line}: {key!r} is given twice (first on line {seen[key]}); keep one of them."
                )
            seen[key] = line
            lines[(*place, key)] = line
            _walk(value_node, (*place, key), lines, path, open_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(child, (*place, index), lines, path, open_nodes)
    open_nodes.discard(id(node))


def _plain_key(node: yaml.Node) -> str | int:
    """The key as pydantic will name it: integers stay integers, everything else is its text."""
    text = str(node.value)
    if node.tag == "tag:yaml.org,2002:int":
        try:
            return int(text, 0)
        except ValueError:
            return text
    return text


def complaint(item: Any, document: Document, model: type[BaseModel]) -> str:
    """One of pydantic's errors as ``file:line: what is wrong, and the nearest legal word``."""
    place: Place = tuple(item["loc"])
    where = document.at(place)
    name = ".".join(str(part) for part in place) or "the spec"
    if item["type"] == "extra_forbidden":
        legal = _legal_keys(model, place[:-1])
        close = difflib.get_close_matches(str(place[-1]), legal, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else f"Legal here: {', '.join(legal)}."
        return f"{where}: unknown key {name!r}. {hint}"
    if item["type"] == "missing":
        return f"{where}: {name!r} is missing. {_EXAMPLES.get(name, '')}".rstrip()
    if item["type"] == "literal_error":
        legal = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", ""))) or [str(item["ctx"]["expected"])]
        close = difflib.get_close_matches(str(item["input"]), legal, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{where}: {name} cannot be {item['input']!r}; it is one of {', '.join(legal)}.{hint}"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = f" (given: {item['input']!r})" if isinstance(item["input"], str | int | float | bool | None) else ""
    return f"{where}: {name}: {message}{given}."


_EXAMPLES = {
    "medmae": "Write 'medmae: 1' as the first line.",
    "name": "Give the data set a short name.",
    "sequences": "Write for example 'sequences: [t1n, t1c, t2w, t2f]'.",
    "label.classes": "Write for example 'classes: {background: 0, tumor: 1}'.",
}


def _legal_keys(root: type[BaseModel], place: Place) -> list[str]:
    model: Any = root
    for part in place:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        options = [field.annotation]
        if typing.get_origin(field.annotation) in (typing.Union, types.UnionType):
            options = list(typing.get_args(field.annotation))
        model = next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return list(model.model_fields) if model is not None else []
