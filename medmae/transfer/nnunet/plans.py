"""What nnU-Net's two JSON files say: the plans (network, patch, axes) and dataset.json (channels, labels).

They are read here without nnU-Net, because what is needed of them is little and stable, and because importing it takes
seconds and wants environment variables. Arrays in nnU-Net are (z, y, x) of the file, transposed as the plans say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medmae.core.errors import CheckpointError, UsageError
from medmae.core.sequences import canonical, squash
from medmae.data.layout_lists import channel_names
from medmae.nets.build import Architecture, resenc

BLOCK = 16
"""Edge in voxels of the cubes that masked pre-training hides, where the patch allows."""

PLANNED = "medmae_planned.json"
"""What ``medmae finetune`` keeps beside the plans: of which data they were made."""

NO_PLANS = ("dataset", "dataset_fingerprint", "splits_final", "plans_fingerprint", Path(PLANNED).stem)
"""Names of other files that lie beside plans."""


def read_plans(path: str | Path) -> dict[str, Any]:
    """The plans in a file.

    Raises:
        UsageError: there is none, or it is not a plans file.
    """
    plans = _read(Path(path), what="plans file")
    if not isinstance(plans.get("configurations"), dict):
        raise UsageError(f"{path}: not a plans file of nnU-Net, it has no 'configurations'")
    return plans


def read_dataset(path: str | Path) -> dict[str, Any]:
    """The dataset.json at ``path``, or in the folder ``path``.

    Raises:
        UsageError: there is none, or it names no channels or labels.
    """
    path = Path(path)
    path = path / "dataset.json" if path.is_dir() else path
    dataset = _read(path, what="dataset.json")
    if not channel_names(dataset) or not isinstance(dataset.get("labels"), dict):
        raise UsageError(f"{path}: not a dataset.json of nnU-Net version 2, which has 'channel_names' and 'labels'")
    return dataset


def plan_names(*folders: Path) -> list[str]:
    """Names of the plans in some folders."""
    return sorted({f.stem for folder in folders if folder.is_dir() for f in folder.glob("*.json")} - set(NO_PLANS))


def configuration(plans: Mapping[str, Any], name: str = "3d_fullres") -> dict[str, Any]:
    """One configuration, with what it inherits from others filled in.

    Raises:
        UsageError: there is no such configuration (all are listed), or it inherits from itself.
    """
    known = plans["configurations"]
    chain: list[Mapping[str, Any]] = []
    at: str | None = name
    while at is not None:
        if at not in known:
            raise UsageError(f"the plans have no configuration {at!r}; there are: {', '.join(known)}")
        if any(known[at] is seen for seen in chain):
            raise UsageError(f"the configuration {name!r} of the plans inherits from itself")
        chain.append(known[at])
        at = known[at].get("inherits_from")
    return {key: value for entry in reversed(chain) for key, value in entry.items()}


def architecture(plans: Mapping[str, Any], name: str = "3d_fullres") -> Architecture:
    """The network of a configuration; plans from before nnU-Net 2.4, which have none by name, are understood too.

    Raises:
        UsageError: no such configuration, or one that describes no network.
    """
    values = configuration(plans, name)
    named = values.get("architecture")
    if named is None:
        return _old_architecture(values, name)
    try:
        return Architecture(named["network_class_name"], named["arch_kwargs"], tuple(named["_kw_requires_import"]))
    except (KeyError, TypeError) as error:
        raise UsageError(f"configuration {name!r} describes its network in a way that is not known: {error}") from error


def recipe(plans: Mapping[str, Any], name: str = "3d_fullres") -> dict[str, Any]:
    """Arguments of ``resenc_mae`` that build the network of a configuration, with its patch as window.

    Raises:
        UsageError: the network is none that the method can build; the message names what differs.
    """
    values, network = configuration(plans, name), architecture(plans, name)
    kind, given = network.class_name.rpartition(".")[2], dict(network.kwargs)
    if kind not in ("ResidualEncoderUNet", "PlainConvUNet"):
        raise UsageError(
            f"configuration {name!r} uses {network.class_name}; resenc_mae pre-trains ResidualEncoderUNet and "
            "PlainConvUNet only"
        )
    plain = kind == "PlainConvUNet"
    size = tuple(int(n) for n in values["patch_size"])
    stages, axes = int(given["n_stages"]), len(size)
    if axes != 3:
        raise UsageError(
            f"configuration {name!r} has {axes} axes; resenc_mae works on volumes: choose a 3-D configuration"
        )
    found: dict[str, Any] = {
        "features": _each(given["features_per_stage"], stages),
        "blocks": _each(given["n_conv_per_stage" if plain else "n_blocks_per_stage"], stages),
        "kernels": [_each(kernel, axes) for kernel in _each(given["kernel_sizes"], stages)],
        "strides": [_each(stride, axes) for stride in _each(given["strides"], stages)],
        "decoder_convs": _each(given["n_conv_per_stage_decoder"], stages - 1),
        "plain": plain,
    }
    ours = dict(resenc(**found).kwargs)
    shaped = {"features_per_stage", "n_conv_per_stage", "n_blocks_per_stage", "kernel_sizes", "strides"}
    shaped.add("n_conv_per_stage_decoder")
    if odd := [f"{key}={given[key]!r}" for key in given if key not in shaped and not _alike(given[key], ours.get(key))]:
        raise UsageError(f"configuration {name!r} has a network that resenc_mae cannot build: {', '.join(odd)}")
    return {**found, "size": list(size), "block": [math.gcd(n, BLOCK) for n in size]}


def channels(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the images of a case, in channel order, as dataset.json spells them."""
    return tuple(channel_names(dataset))


def meant(name: str) -> str:
    """The sequence that a channel is called after; a name of signs alone, which nnU-Net allows, is none."""
    return canonical(name) if squash(name) else name


def inputs(plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str = "3d_fullres") -> tuple[str, ...]:
    """Names of the network's input channels; "" for those that are no image (labels of the cascade's first stage)."""
    names = channels(dataset)
    if configuration(plans, name).get("previous_stage"):
        names += ("",) * (len(_labels(dataset)) - 1)
    return names


def heads(dataset: Mapping[str, Any]) -> int:
    """Number of output channels of a network for this data set: one per label, or per region where it has regions."""
    labels = {key: value for key, value in dataset["labels"].items() if key != "ignore"}
    if any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values()):
        return sum(not _only_zero(value) for value in labels.values())
    return len(_labels(dataset))


def array_orientation(plans: Mapping[str, Any], storage: str = "RAS") -> str:
    """Axis codes of nnU-Net's arrays for files whose voxels are stored in the order ``storage``.

    nnU-Net reads (x, y, z) files as (z, y, x) arrays and then takes their axes in the order of ``transpose_forward``.
    A reader that reorients makes every file RAS first.
    """
    stored = "RAS" if "Reorient" in str(plans.get("image_reader_writer")) else storage
    read = stored[::-1]
    return "".join(read[axis] for axis in plans.get("transpose_forward", range(len(read))))


def axis_codes(affine: Float[np.ndarray, "4 4"]) -> str:
    """Where the voxel axes point, such as ``RAS``; the nearest for oblique volumes."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    part = affine[:3, :3] / np.where(steps > 0, steps, 1)
    order = max(permutations(range(3)), key=lambda p: float(sum(abs(part[p[i], i]) for i in range(3))))
    return "".join(("LR", "PA", "IS")[row][int(part[row, i] > 0)] for i, row in enumerate(order))


def axis_order(source: str, target: str) -> tuple[int, ...]:
    """For every axis of ``target`` the axis of ``source`` along the same anatomical line, whichever way it points.

    Raises:
        CheckpointError: codes that name no three different axes.
    """
    lines = {code: i for i, pair in enumerate(("LR", "PA", "IS")) for code in pair}
    ours, theirs = ([lines.get(code.upper()) for code in codes] for codes in (source, target))
    if sorted(map(str, ours)) != ["0", "1", "2"] or sorted(map(str, theirs)) != ["0", "1", "2"]:
        raise CheckpointError(f"{source!r} and {target!r} must be orientations of three axes each, such as RAS")
    return tuple(ours.index(line) for line in theirs)


def _old_architecture(values: Mapping[str, Any], name: str) -> Architecture:
    try:
        kernels = values["conv_kernel_sizes"]
        base, most = values["UNet_base_num_features"], values["unet_max_num_features"]
        return resenc(
            features=[min(base * 2**i, most) for i in range(len(kernels))],
            blocks=values["n_conv_per_stage_encoder"],
            kernels=kernels,
            strides=values["pool_op_kernel_sizes"],
            decoder_convs=values["n_conv_per_stage_decoder"],
            plain={"PlainConvUNet": True, "ResidualEncoderUNet": False}[values["UNet_class_name"]],
        )
    except KeyError as error:
        raise UsageError(f"configuration {name!r} describes no network known here ({error} is missing)") from error


def _read(path: Path, *, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: no {what} there ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: this {what} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: this {what} holds a {type(found).__name__}, expected an object")
    return found


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value] * count


def _alike(one: Any, other: Any) -> bool:
    """Whether two arguments mean the same: a class may be named by its module or by the package that shows it."""
    if isinstance(one, str) and isinstance(other, str):
        return one.rpartition(".")[2] == other.rpartition(".")[2]
    return (one or None) == (other or None)


def _labels(dataset: Mapping[str, Any]) -> set[int]:
    labels: set[int] = set()
    for key, value in dataset["labels"].items():
        if key != "ignore":
            labels |= {int(v) for v in (value if isinstance(value, list | tuple) else [value])}
    return labels


def _only_zero(value: Any) -> bool:
    return set(value if isinstance(value, list | tuple) else [value]) == {0}
