"""Plans for a transformer: the user's own, with another network in them, in a file of their own.

nnU-Net builds whatever network the plans name, so a pre-trained ViT needs nothing but a plan that names its segmenter.
Spacing, patch, batch and normalization stay the user's, and the user's file is never written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_text

from .plans import channels, read_dataset, read_plans
from .target import find_orientation
from .weights import read_source

ENTRY = "medmae"
"""Key of what medmae adds to plans and checkpoints."""


def plans_for(
    checkpoint: str | Path,
    *,
    home: Path,
    raw: Path,
    name: str,
    configuration: str = "3d_fullres",
    names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """The name of the plans to train some weights with: ``name`` itself, or for a ViT a copy that names its network.

    A copy of the same content is used again; another one gets another name, so nothing is ever overwritten.

    Args:
        checkpoint: the weights.
        home: preprocessed folder of the dataset, where the plans lie.
        raw: raw folder of the dataset, for the orientation of its images; without them RAS is assumed.
        name: of the user's plans.
        configuration: whose network is replaced.
        names: of the channels, where dataset.json calls them something else.
        say: told what was written.

    Raises:
        UsageError: the transformer does not fit the plans' patch.
        CheckpointError: weights that cannot be read.
    """
    source, user = read_source(checkpoint), read_plans(home / f"{name}.json")
    if source.kind != "vit" or is_vit(user):
        return name
    from .vit import vit_plans

    method = str(source.about["method"])
    orientation, notes = find_orientation(user, [raw])
    made = vit_plans(
        user,
        dict(source.about),
        name=name,
        configuration=configuration,
        channels=names or channels(read_dataset(home)),
        orientation=orientation or None,
    )
    mark = hashlib.sha256(json.dumps(made["configurations"], sort_keys=True).encode()).hexdigest()[:8]
    ours = f"{name}_{method}_{mark}"
    path = home / f"{ours}.json"
    if not path.is_file():
        content = {**made, "plans_name": ours, ENTRY: {"kind": "vit", "from": name, "method": method}}
        write_text(path, json.dumps(content, indent=4) + "\n")
        for note in notes:
            say(f"Note: {note}")
        say(f"Wrote {path}: {name} with the network of {method}; {name} stays as it is")
    return ours


def is_vit(plans: Mapping[str, Any]) -> bool:
    """Whether plans were made for a transformer by :func:`plans_for`."""
    return (plans.get(ENTRY) or {}).get("kind") == "vit"
