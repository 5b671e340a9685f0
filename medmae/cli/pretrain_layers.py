"""Layers of settings on their way to a run of ``medmae pretrain``: what every kind of data has in common.

A layer is what one place says: the run that is resumed, a file, the command line, ``--set``. The last one wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import UsageError

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.engine.settings import TrainSettings

Layers = Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Plan:
    """What will run: ``config`` is the whole of it as plain values, ``notes`` are to be said before it starts, the rest
    are its parts made usable."""

    name: str
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    train: TrainSettings
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def normal(layer: Mapping[str, Any]) -> dict[str, Any]:
    """``method: bm_mae`` and ``data: spec.yaml`` are short for their sections; UsageError for other short forms."""
    made = dict(layer)
    for section, key in (("method", "name"), ("data", "path"), ("train", "")):
        if key and isinstance(made.get(section), str):
            made[section] = {key: made[section]}
        elif not isinstance(made.get(section) or {}, Mapping):
            raise UsageError(f"The section {section} holds settings by name, not {made[section]!r}.")
    return {section: value for section, value in made.items() if value is not None}


def merged(layers: Layers) -> dict[str, Any]:
    """All of :func:`normal` layers in one; a later ``steps`` replaces an earlier ``epochs``, and vice versa."""
    from medmae.config import merge

    whole: dict[str, Any] = {}
    for _, layer in layers:
        train = layer.get("train") or {}
        if train.get("steps") is not None and "epochs" not in train:
            train = {**train, "epochs": None}  # the later word on the length of the run replaces the earlier one
        elif train.get("epochs") is not None and "steps" not in train:
            train = {**train, "steps": None}
        whole = merge(whole, {**layer, "train": train})
    return whole


def wanted_method(whole: Mapping[str, Any], *, init: Path | None = None) -> tuple[str, dict[str, Any]]:
    """Name of the method, and what is said of it: by the layers and, where they are silent, by the model ``init``."""
    wanted = dict(whole.get("method") or {})
    if init is not None:
        from medmae.checkpoint import read_config

        origin = read_config(init)
        if wanted.get("name", origin["method"]) != origin["method"]:
            raise UsageError(f"--init {init} holds {origin['method']}, not {wanted['name']}.")
        kept = {k: v for k, v in origin["recipe"].items() if k != "sequences"}
        wanted = {"name": origin["method"], **kept, **wanted}
    for word in ("name", "preset", "scale"):
        if not isinstance(wanted.get(word) or "", str):
            raise UsageError(f"method.{word} = {wanted[word]!r} is not a name.")
    return wanted.pop("name", None) or "bm_mae", wanted


def length(train: TrainSettings, *, cases: int, repeat: int, world: int) -> str:
    """How long the run is, for its summary."""
    steps = train.total_steps(size=max(cases * repeat, 1), world=world)
    per_step = train.batch * train.accumulate * world
    made = f"batch {train.batch}" + (f" x {train.accumulate} parts" if train.accumulate > 1 else "")
    made += f" x {world} processes" if world > 1 else ""
    return f"{steps} steps of {made} ({steps * per_step / max(cases, 1):.1f} epochs), seed {train.seed}"


def initialize(method: Method, folder: Path) -> Any:
    """Copy the weights of a model folder into the new method; sequences it does not know start fresh."""
    from medmae.checkpoint import load_model, load_state

    loaded = load_model(folder)
    state = loaded.method.state_dict()
    return load_state(method, state, before=loaded.method.sequences, after=method.sequences)


def folder_name(text: str) -> str:
    """Letters, digits, dots and dashes only: a data set's name never becomes a path."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip(".-")
    return kept[:80] or "run"
