"""Settings from four places, merged in one order: defaults < ``--config`` file < command-line flags < ``--set a.b=c``.

A configuration is plain nested dictionaries of plain values with three sections, ``method``, ``data`` and
``train``: numbers only, no class paths. This module knows how to read, merge, check and write them; what the
keys are it is told by the caller. It must stay quick to import: no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.core.errors import UsageError

Config = dict[str, Any]


def load_config(path: str | Path) -> Config:
    """Read a YAML file of settings; :class:`UsageError` with file and line when it cannot be read."""
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        raise UsageError(f"--config {path}: no such file." + (f" Did you mean {near[0]}?" if near else "")) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    try:
        found = yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: {error.problem or 'not YAML'}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        raise UsageError(f"{path}: a configuration is a mapping with sections method, data, train.")
    return found


def assignments(texts: Sequence[str]) -> Config:
    """Parse ``--set`` values ("train.lr=1e-4"); the right side is YAML. Later ones win."""
    import yaml

    config: Config = {}
    for text in texts:
        key, equals, value = text.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise UsageError(f"--set {text}: write section.key=value, for example --set train.lr=1e-4.")
        try:
            parsed = yaml.load(value, Loader=_loader())
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: the value is not YAML.") from error
        place = config
        for name in names[:-1]:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[names[-1]] = parsed
    return config


def merge(*layers: Mapping[str, Any]) -> Config:
    """Deep merge, the last layer wins; mappings merge, everything else is replaced."""
    merged: Config = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = merge(value) if isinstance(value, Mapping) else value
    return merged


def check(config: Mapping[str, Any], known: Mapping[str, Any], *, origin: str) -> None:
    """Refuse keys of ``config`` that ``known`` does not have, all in one :class:`UsageError` with suggestions.

    ``known`` has the same nesting; where its value is not a mapping, or an empty one, anything may stand.
    ``origin`` says where the configuration comes from ("--set", a file name).
    """
    faults = _unknown(config, known, known, prefix="")
    if faults:
        raise UsageError("\n".join(f"{origin}: {fault}" for fault in faults))


def flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Dotted names to values: {"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{name}."))
        else:
            flat[name] = value
    return flat


def plain(value: Any) -> Any:
    """The value as YAML and JSON give it back: tuples become lists, paths become text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key whose value differs, ``name: old -> new``."""
    before, after = flatten(plain(old)), flatten(plain(new))
    absent = object()
    lines = []
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name, absent), after.get(name, absent)
        if a != b:
            lines.append(f"{name}: {_show(a, absent)} -> {_show(b, absent)}")
    return lines


def save_config(config: Mapping[str, Any], path: Path) -> None:
    """Write YAML atomically."""
    import yaml

    write_text(
        path, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    )


def _unknown(
    config: Mapping[str, Any], known: Mapping[str, Any], everything: Mapping[str, Any], *, prefix: str
) -> list[str]:
    faults: list[str] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if key not in known:
            here = [*flatten(known, prefix=prefix), *(f"{prefix}{k}" for k in known)]
            elsewhere = [n for n in flatten(everything) if n.split(".")[-1] == key]  # right name, wrong section
            near = elsewhere or difflib.get_close_matches(name, here, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}."
            faults.append(f"{name} is not a setting. {hint}")
        elif isinstance(known[key], Mapping) and known[key]:
            if isinstance(value, Mapping):
                faults += _unknown(value, known[key], everything, prefix=f"{name}.")
            elif value is not None:
                faults.append(f"{name} is a section ({', '.join(known[key])}), not a value.")
    return faults


def _show(value: Any, absent: object) -> str:
    if value is absent:
        return "(absent)"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []


def _loader() -> Any:
    """A safe YAML loader that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses duplicate keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    number = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader
