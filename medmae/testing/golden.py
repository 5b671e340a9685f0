"""What must not change silently: the defaults of a method, and the names and shapes of its encoder's weights.

Shared checkpoints depend on both. A golden file is written next to the tests; with ``MEDMAE_UPDATE_GOLDEN=1`` in the
environment it is written anew instead of compared, and the change shows in the diff of the commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.find import Found

from .building import SCALE, build

UPDATE = "MEDMAE_UPDATE_GOLDEN"


def golden(found: Found) -> dict[str, Any]:
    """Recipes (default, and of every preset), the recipe at scale ``test``, and its encoder's names and shapes."""
    method = build(found)
    encoder = getattr(method, "encoder", None)
    assert encoder is not None, f"{found.name} has no encoder to transfer"
    return {
        "recipe": found.recipe(),
        "presets": {name: found.recipe(preset=name) for name in found.presets},
        "test": found.recipe(scale=SCALE),
        "encoder": {name: list(value.shape) for name, value in encoder.state_dict().items()},
    }


def compare_golden(found: Found, folder: Path) -> None:
    """Compare a method with ``folder/<name>.json``, or write that file where ``MEDMAE_UPDATE_GOLDEN=1`` asks for it.

    Raises:
        AssertionError: they differ, or there is no file.
    """
    path, now = folder / f"{found.name}.json", golden(found)
    if os.environ.get(UPDATE) == "1":
        write_text(path, json.dumps(now, indent=1) + "\n")
    advice = f"If this is meant, run the tests once with {UPDATE}=1 and commit the change of {path.name}."
    assert path.exists(), f"there is no golden file {path.name}. {advice}"
    before = json.loads(path.read_text("utf-8"))
    for part in now:
        old, new = before.get(part, {}), now[part]
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        lines = "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed[:8])
        assert not changed, f"{found.name}: {part} changed ({lines}). {advice}"
