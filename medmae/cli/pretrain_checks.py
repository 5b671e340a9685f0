"""What ``medmae pretrain`` refuses before it trains: data settings of the wrong kind, odd sequences, weights to start
from that know other data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.cli.console import say
from medmae.core.errors import UsageError


def wrong_data(data: Mapping[str, Any], augmentation: Mapping[str, Any]) -> list[str]:
    """What is of the wrong kind in the "data" section; ``augmentation`` has the defaults of its own section."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def three(value: Any, good: Callable[[Any], bool]) -> bool:
        return isinstance(value, list | tuple) and len(value) == 3 and all(good(v) for v in value)

    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "path": (lambda v: v is None or isinstance(v, str), "a path"),
        "plans": (lambda v: v is None or isinstance(v, str), "a path"),
        "configuration": (lambda v: v is None or isinstance(v, str), "a name"),
        "preprocess": (lambda v: v is None or isinstance(v, Mapping), "a section"),
        "split": (lambda v: v is None or isinstance(v, Mapping), "a section"),
        "unlabeled": (lambda v: v is None or isinstance(v, bool), "true or false"),
        "require": (lambda v: v is None or whole(v), "a whole number"),
        "tier": (lambda v: isinstance(v, str), "disk, memory or device"),
        "cache": (lambda v: v is None or isinstance(v, str), "a path"),
        "crop": (lambda v: v is None or three(v, whole), "three whole numbers, such as [96, 96, 96]"),
        "repeat": (lambda v: whole(v) and v >= 1, "a whole number of at least 1"),
        "foreground_share": (lambda v: number(v) and 0 <= v <= 1, "a probability"),
        "probe_target": (lambda v: v is None or isinstance(v, str), "a column"),
        "augmentation": (lambda v: isinstance(v, Mapping), "a section; flip: [0, 0, 0], scale: 0, shift: 0 is none"),
    }
    values: dict[str, Any] = dict(data)
    if isinstance(data["augmentation"], Mapping):
        for key, value in data["augmentation"].items():
            values[f"augmentation.{key}"] = value
            if isinstance(augmentation[key], tuple):
                rules[f"augmentation.{key}"] = (lambda v: three(v, number), "three numbers, such as [0.5, 0.5, 0.5]")
            elif isinstance(augmentation[key], bool):
                rules[f"augmentation.{key}"] = (lambda v: isinstance(v, bool), "true or false")
            else:
                rules[f"augmentation.{key}"] = (number, "a number")
    for key, value in (data["artifacts"] or {}).items():
        values[f"artifacts.{key}"] = value
        rules[f"artifacts.{key}"] = (
            (lambda v: isinstance(v, list | tuple), "a list of names") if key == "kinds" else (number, "a number")
        )
    return [
        f"data.{key} = {values[key]!r} is not {kind}." for key, (good, kind) in rules.items() if not good(values[key])
    ]


def check_sequences(wanted: Any, known: Sequence[str]) -> None:
    """Refuse no sequence or one twice; say which ones the cohort does not have, as a misspelled one would."""
    if wanted is None:
        return
    if not wanted or len(set(wanted)) < len(wanted):
        raise UsageError(f"method.sequences = {list(wanted)}: at least one name, and none twice.")
    if strange := [str(name) for name in wanted if name not in known]:
        say(f"Warning: the cohort ({', '.join(known)}) has no {', '.join(strange)}; the model will not learn it.")


def check_window_of(init: Path) -> None:
    """UsageError where the weights of a model folder are those of flat images, of which no volume can make use."""
    from medmae.checkpoint import read_config

    size = read_config(init)["recipe"].get("size")
    if isinstance(size, list) and len(size) == 2:
        raise UsageError(
            f"--init {init} was trained on images of {' x '.join(map(str, size))}, and --data names a 3-D cohort: its "
            "weights do not fit patches of volumes. Leave --init out"
        )


def check_channels_of(init: Path, sequences: Sequence[str]) -> None:
    """UsageError where a model folder has other sequences as its channels, or in another order.

    Weights know a channel by its place alone: they would load, and take one sequence for another.
    """
    from medmae.checkpoint import read_config

    data = read_config(init).get("data") or {}
    known = data.get("sequences")
    if known and "kind" not in data and list(known) != list(sequences):
        raise UsageError(
            f"--init {init} reads {', '.join(known)} as channels, and the cohort has {', '.join(sequences)}. Give the "
            "data spec the same 'sequences' in the same order, or leave --init out"
        )
