"""Tiny segmentation models and the calls that the tests of the built-in segmenter share."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from labeled import REGIONS, make

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.data.spec import Label
from medmae.find import find
from medmae.transfer.building import build
from medmae.transfer.label_map import LabelMap
from medmae.transfer.task_folder import save_task

SEQUENCES = ("t1n", "t2w")
PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "none", "foreground": "all"}
SMALL = {"depth": 1, "width": 24, "size": [16, 16, 16]}


def regions(folder: Path) -> Path:
    """Six patients, two of them with one sequence; regions with values 1, 2, 4."""
    return make(folder, missing={1: ("t2w",), 3: ("t1n",)}, label=REGIONS, values=(2, 1, 4), test=0.34)


def pretrained(folder: Path, *, method: str = "bm_mae", sequences: tuple[str, ...] = SEQUENCES) -> Path:
    found = find(method)
    recipe = found.recipe(scale="test", sequences=sequences, **(SMALL if method == "bm_mae" else {}))
    torch.manual_seed(0)
    about = {"data": {"sequences": list(sequences), "preprocess": PREPROCESS}}
    return save_model(folder, found.build(**recipe), name=method, recipe=recipe, about=about)


def untrained(folder: Path, *, kind: str = "regions", sequences=SEQUENCES, head=None, **data) -> Path:
    """A segmentation model that was trained on nobody."""
    label = Label(
        classes={"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4},
        regions={"core": (1, 4), "whole": (1, 2, 4), "enhancing": (4,)},
    )
    meaning = LabelMap.of(label, kind=kind)
    recipe = {
        "backbone": {"method": "bm_mae", "recipe": find("bm_mae").recipe(scale="test", sequences=sequences, **SMALL)},
        "head": head or {"kind": "decoder", "features": 4},
        "objective": {
            "kind": "segments", "names": list(meaning.names), "values": [list(v) for v in meaning.values],
            "exclusive": meaning.exclusive,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    task = {
        "kind": "segment", "columns": {}, "classes": list(meaning.names), "label": meaning.describe(), "recipe": recipe,
    }  # fmt: skip
    made = build(recipe)
    for layer in made.head.decoder.seg_layers:
        torch.nn.init.normal_(layer.weight, std=1.0)
    return save_task(folder, made, task=task, about={"data": {"preprocess": PREPROCESS, **data}})


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def segment(data: Path, out: Path, *more: object, cache: Path | None = None) -> int:
    line = ["--backend", "medmae", "--data", data, "--out", out, "--device", "cpu", "--workers", 0, "--features", 4]
    return run("finetune", "segment", *line, *(("--cache", cache) if cache else ()), *more)


def predict(model: Path, out: Path, *more: object) -> int:
    return run("predict", "--checkpoint", model, "--out", out, "--device", "cpu", *more)


def evaluate(model: Path, data: Path, out: Path, *more: object) -> int:
    return run("evaluate", "segment", "--checkpoint", model, "--data", data, "--out", out, "--device", "cpu", *more)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "measurements.csv").open() as file:
        return list(csv.DictReader(file))
