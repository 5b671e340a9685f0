"""A model folder of ours in the layout of nnssl: ``medmae convert to_nnssl MODEL --out FILE``.

For tools that fine-tune nnssl's checkpoints by their own plans. For a data set with plans of its own,
``medmae nnunet export`` writes a file that fits them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medmae.atomic import replacing
from medmae.checkpoint import load_model
from medmae.core.errors import CheckpointError, UsageError
from medmae.find import find
from medmae.nets.build import resenc
from medmae.nets.primus_keys import to_primus

LICENSE = "that of the model folder"
NOTICE = "Its config.json says it, and what the weights were trained from."

PRIMUS = {(396, 12): "PrimusS", (792, 12): "PrimusB", (864, 16): "PrimusM", (1056, 24): "PrimusL"}
"""Width and depth of the sizes that nnssl knows by name, with cubes of 8 voxels."""

RESENC_L: dict[str, Any] = {
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "n_conv_per_stage_decoder": [1] * 5,
}
"""The one residual U-Net that nnssl knows by name."""


@dataclass(frozen=True)
class Report:
    """Names that were written (``used``), and those of ours that have no place there (``unused``)."""

    used: tuple[str, ...]
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = f", left out: {', '.join(self.unused)}" if self.unused else ""
        return "; ".join([f"{len(self.used)} names written{left}", *self.notes])


@dataclass(frozen=True)
class Converted:
    """What the file will hold, and what became of every tensor."""

    content: dict[str, Any]
    report: Report


def convert(path: str | Path, *, strict: bool = True) -> Converted:
    """Read a model folder of ``resenc_mae`` or ``eva_mae`` and rename it.

    Args:
        path: model or run folder.
        strict: refuse a folder whose weights do not fit its recipe.

    Raises:
        CheckpointError: it is no such folder, of another method, or has one stem per sequence, which nnssl has not.
    """
    loaded = load_model(path, strict=strict)
    name, recipe = loaded.config["method"], loaded.config["recipe"]
    state, notes = loaded.method.state_dict(), []
    if name == "resenc_mae" and recipe.get("stem", "stacked") == "stacked":
        weights, plan = dict(state), _unet_plan(recipe)
        unused: tuple[str, ...] = ()
    elif name == "eva_mae":
        names, patch = recipe["sequences"], recipe["patch"]
        weights, plan = to_primus(state, names=names, patch=patch), _primus_plan(recipe)
        unused = ()
        if list(recipe["axes"]) != [1, 0, 2]:
            notes.append(
                "positions follow the order of the axes, as in Primus; nnssl's autoencoder exchanges the first two"
            )
    else:
        what = f"{name} with one stem per sequence" if name == "resenc_mae" else name
        raise CheckpointError(
            f"{path} holds {what}; nnssl has networks for resenc_mae with a stacked stem, and for eva_mae. Any "
            "convolutional model goes into nnU-Net with `medmae nnunet export`"
        )
    preprocess = (loaded.config.get("data") or {}).get("preprocess") or {}
    size = [int(n) for n in recipe["size"]]
    spacing = preprocess.get("spacing")
    values = {"spacing": None if spacing is None else [float(step) for step in spacing], "patch_size": size}
    content = {
        "network_weights": {key: value.detach().cpu() for key, value in weights.items()},
        "nnssl_adaptation_plan": {
            **plan,
            "pretrain_plan": {"configurations": {"medmae": values}},
            "pretrain_num_input_channels": len(recipe["sequences"]),
            "recommended_downstream_patchsize": size,
        },
        "citations": [
            {
                "type": "Method",
                "name": find(name).card.title,
                "apa_citations": [str(line) for line in loaded.config["citation"]],
            }
        ],
        "medmae": {
            "method": name,
            "channels": [str(sequence) for sequence in recipe["sequences"]],
            "orientation": str(preprocess.get("orientation") or "RAS"),
            "license": str(loaded.config.get("license") or ""),
        },
    }
    return Converted(content, Report(tuple(weights), unused, notes=tuple(notes)))


def save(converted: Converted, file: str | Path, *, overwrite: bool = False) -> Path:
    """Write the file; tensors that share memory are written once.

    Raises:
        UsageError: it exists and ``overwrite`` is not set, or it is a folder.
    """
    file = Path(file)
    if file.is_dir():
        raise UsageError(f"{file} is a folder; give a file, for example {file / 'checkpoint_final.pth'}")
    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists; give another --out, or --overwrite to replace it")
    with replacing(file) as temporary:
        torch.save(converted.content, temporary)
    return file


def _unet_plan(recipe: dict[str, Any]) -> dict[str, Any]:
    keys = ("features", "blocks", "kernels", "strides", "decoder_convs", "plain")
    network = resenc(**{key: recipe[key] for key in keys})
    kwargs, kind = dict(network.kwargs), network.class_name.rpartition(".")[2]
    named = not recipe["plain"] and all(kwargs[key] == value for key, value in RESENC_L.items())
    stem = "encoder.stages.0" if recipe["plain"] else "encoder.stem"
    first = f"{stem}.0.convs.0" if recipe["plain"] else f"{stem}.convs.0"
    return {
        "architecture_plans": {
            "arch_class_name": "ResEncL" if named else kind,
            "arch_kwargs": None if named else kwargs,
            "arch_kwargs_requiring_import": None if named else list(network.requires_import),
        },
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{first}.conv", f"{first}.all_modules.0"],
        "key_to_lpe": None,
    }


def _primus_plan(recipe: dict[str, Any]) -> dict[str, Any]:
    size = PRIMUS.get((recipe["width"], recipe["depth"])) if recipe["patch"] == [8, 8, 8] else None
    kwargs = {
        "embed_dim": recipe["width"],
        "patch_embed_size": recipe["patch"],
        "input_shape": recipe["size"],
        "eva_depth": recipe["depth"],
        "eva_numheads": recipe["heads"],
    }
    return {
        "architecture_plans": {
            "arch_class_name": size or "Primus",
            "arch_kwargs": None if size else kwargs,
            "arch_kwargs_requiring_import": None if size else [],
        },
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed" if recipe["table"] else None,
    }
