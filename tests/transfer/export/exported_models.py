"""Model folders for the tests of the exports."""

from __future__ import annotations

from pathlib import Path

import torch

from medmae.checkpoint import save_model
from medmae.find import find

PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground", "normalize": "zscore_foreground"}
DATA = {"sequences": ["t1n", "t1c", "t2w", "t2f"], "preprocess": PREPROCESS, "subjects": ["abc"]}


def save(folder: Path, name: str = "bm_mae", *, about: dict | None = None, **options: object) -> Path:
    torch.manual_seed(0)
    found = find(name)
    recipe = found.recipe(scale="test", **options)
    about = {"data": DATA, "license": "CC BY 4.0"} if about is None else about
    return save_model(folder, found.build(**recipe), name=name, recipe=recipe, about=about)
