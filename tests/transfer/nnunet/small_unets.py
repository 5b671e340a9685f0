"""Small U-Nets as nnU-Net plans them, with weights that are all different, and the folders around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmae.nets.build import Architecture, resenc
from medmae.transfer.nnunet.weights import Source


def architecture(stages: int = 3, **changes: Any) -> Architecture:
    """Three stages of 4, 6, 8 features unless told otherwise."""
    sizes: dict[str, Any] = {
        "features": [4 + 2 * i for i in range(stages)],
        "blocks": [1, *[2] * (stages - 1)],
        "kernels": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "decoder_convs": [1] * (stages - 1),
    }
    return resenc(**{**sizes, **changes})


def network(described: Architecture | None = None, *, channels: int = 2, classes: int = 2, seed: int = 0) -> Any:
    """A network whose biases and norms differ from their start too, so that a tensor in the wrong place shows."""
    torch.manual_seed(seed)
    built = (described or architecture()).build(input_channels=channels, num_classes=classes, deep_supervision=True)
    with torch.no_grad():
        for value in built.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return built


def source_of(net: nn.Module, channels: Sequence[str] = ("t1n", "t2w"), orientation: str = "RAS") -> Source:
    """The weights of a network as they would come from a model folder."""
    from medmae.convert.unet_keys import once

    weights, _ = once({key: value.clone() for key, value in net.state_dict().items()})
    return Source(weights, tuple(channels), orientation, "cnn", "somewhere/model", "0" * 64)


def plans_of(
    described: Architecture, *, name: str = "Dataset901_Tiny", channels: int = 2, **changes: Any
) -> dict[str, Any]:
    """Plans of nnU-Net around an architecture."""
    axes = len(described.kwargs["strides"][0])
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "batch_size": 2,
        "patch_size": [16] * axes,
        "spacing": [1.0] * axes,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "architecture": {
            "network_class_name": described.class_name,
            "arch_kwargs": dict(described.kwargs),
            "_kw_requires_import": list(described.requires_import),
        },
    }
    plans = {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "configurations": {"3d_fullres": full, "bigger_batch": {"inherits_from": "3d_fullres", "batch_size": 4}},
    }
    return {**plans, **changes}


def dataset_of(channels: Sequence[str] = ("T1", "T2"), labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """A dataset.json."""
    return {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels or {"background": 0, "edema": 1, "core": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }


def write_dataset(
    root: Path,
    described: Architecture,
    *,
    name: str = "Dataset901_Tiny",
    dataset: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """``nnUNet_preprocessed/<name>`` with plans and dataset.json under ``root``."""
    dataset = dataset or dataset_of()
    folder = root / "nnUNet_preprocessed" / name
    folder.mkdir(parents=True)
    plans = plans_of(described, channels=len(dataset["channel_names"]), **{"name": name, **changes})
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder
