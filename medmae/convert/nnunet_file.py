"""Checkpoint files in nnU-Net's layout, which nnssl, OpenMind and nnFoundation share.

The tensors lie under ``network_weights``. nnssl adds an adaptation plan, which says where in its network the encoder
is; nnU-Net adds the plans and dataset.json it was trained with, which say what the channels are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medmae.core.errors import CheckpointError
from medmae.data.layout_lists import channel_names

from .reading import checked_tensors, read_contents
from .unet_keys import once

ADAPTATION = "nnssl_adaptation_plan"


@dataclass(frozen=True)
class NnUnetFile:
    """What such a file says.

    Attributes:
        weights: tensors under plain names (see ``unet_keys``), the encoder at ``encoder`` wherever the file has it.
        adaptation: nnssl's adaptation plan, empty where there is none.
        plans: nnU-Net's plans, empty where there are none.
        configuration: which of the plans it was trained with.
        channels: names of the input channels; empty where unknown, as in everything nnssl trains.
        citations: what to cite.
        notes: what a reader should know.
        extra: everything else but the state of training.
    """

    weights: dict[str, Tensor]
    adaptation: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    configuration: str = ""
    channels: tuple[str, ...] = ()
    citations: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_primus(self) -> bool:
        """Whether it holds a Primus transformer."""
        return any(key.startswith("eva.blocks.") for key in self.weights)

    @property
    def has_classes(self) -> bool:
        """Whether its heads are for the classes of a segmentation, not for voxels."""
        return bool(self.plans) or "report" in mapping(self.extra.get("medmae"))

    @property
    def patch(self) -> tuple[int, ...] | None:
        """Voxels per axis of what it was trained on, where the file says so."""
        found = self._trained_on().get("patch_size")
        return tuple(int(n) for n in found) if found else None

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimeters per voxel it was trained at; None where it was every volume's own, or is not said."""
        found = self._trained_on().get("spacing")
        return tuple(float(n) for n in found) if found else None

    @property
    def orientation(self) -> str:
        """Axis codes of the arrays: (z, y, x) of files taken to be stored as RAS, in the order of the plans."""
        told = mapping(self.extra.get("medmae")).get("orientation")
        order = (self.plans or mapping(self.adaptation.get("pretrain_plan"))).get("transpose_forward")
        if not isinstance(order, list | tuple) or sorted(map(str, order)) != ["0", "1", "2"]:
            order = (0, 1, 2)
        return str(told or "".join("SAR"[int(axis)] for axis in order))

    def _trained_on(self) -> Mapping[str, Any]:
        """The configuration of its training: the first that nnssl lists, or the one that nnU-Net names."""
        listed = mapping(mapping(self.adaptation.get("pretrain_plan")).get("configurations"))
        first = next((values for values in listed.values() if isinstance(values, Mapping)), None)
        if first is not None:
            return first
        known, at, chain = mapping(self.plans.get("configurations")), self.configuration, []
        while at in known and known[at] not in chain:
            chain.append(known[at])
            at = known[at].get("inherits_from", "")
        return {key: value for entry in reversed(chain) for key, value in entry.items()}


def read_nnunet_file(path: str | Path) -> NnUnetFile:
    """Read a checkpoint of nnU-Net, nnssl, or this project's export; a bare state dict is taken too.

    Where one tensor has several copies that differ, the one that the forward pass uses is taken, and a note says so.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is damaged, would have to run code to be read, or holds no finite tensors.
    """
    path = Path(path)
    try:
        found = read_contents(path)
    except CheckpointError as error:
        if "nnssl." in str(error) or "nnunetv2." in str(error):
            raise CheckpointError(
                f"{error}. It is the state of a training run, with objects of its own in it. Where the file is yours, "
                "keep only what is needed, with the environment that wrote it: "
                "c = torch.load(FILE, weights_only=False); "
                f"torch.save({{k: c[k] for k in ('network_weights', '{ADAPTATION}') if k in c}}, NEW)"
            ) from error
        raise
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, expected a checkpoint of nnU-Net or nnssl")
    inner = found.get("network_weights") or found.get("state_dict") or found
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{path}: its 'network_weights' is a {type(inner).__name__}, expected named tensors")
    raw = checked_tensors(inner, path)
    adaptation = _adaptation(found, path)
    weights, differing = once(_placed(raw, adaptation))
    arguments, own = mapping(found.get("init_args")), mapping(found.get("medmae"))
    dataset = arguments.get("dataset_json")
    names = tuple(own.get("channels") or ()) or _names(dataset)
    notes: tuple[str, ...] = ()
    if differing:
        notes = (
            f"{len(differing)} tensors have copies that differ ({', '.join(differing[:2])}, ...): the ones that the "
            "forward pass uses were taken",
        )
    leave = {
        "network_weights",
        "state_dict",
        ADAPTATION,
        "init_args",
        "optimizer_state",
        "grad_scaler_state",
        "logging",
    }
    return NnUnetFile(
        weights=weights,
        adaptation=adaptation,
        plans=dict(arguments["plans"]) if isinstance(arguments.get("plans"), Mapping) else {},
        configuration=str(arguments.get("configuration") or ""),
        channels=names,
        citations=tuple(dict(entry) for entry in found.get("citations") or () if isinstance(entry, Mapping)),
        notes=notes,
        extra={} if inner is found else {str(k): v for k, v in found.items() if k not in leave},
    )


def mapping(value: Any) -> Mapping[Any, Any]:
    """``value`` where it is a mapping, else an empty one: what a file says of itself is not to be relied on."""
    return value if isinstance(value, Mapping) else {}


def _names(dataset: Any) -> tuple[str, ...]:
    """Channels of a dataset.json; none where there is none."""
    return tuple(channel_names(dataset)) if isinstance(dataset, Mapping) else ()


def _adaptation(found: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """From the file, or from ``adaptation_plan.json`` beside it, as it is published."""
    plan: Any = found.get(ADAPTATION)
    beside = path.with_name("adaptation_plan.json")
    if plan is None and beside.is_file():
        try:
            plan = json.loads(beside.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{beside}: cannot be read ({error}); download it again or take it away") from error
    return dict(plan) if isinstance(plan, Mapping) else {}


def _placed(weights: Mapping[str, Tensor], adaptation: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder under the stock names, wherever the network of the file had it."""
    moves = {}
    for entry, name in (("key_to_encoder", "encoder.stages"), ("key_to_stem", "encoder.stem")):
        there = adaptation.get(entry)
        if isinstance(there, str) and there.endswith(name.rpartition(".")[2]) and there != name:
            moves[f"{there}."] = f"{name}."
    placed = {}
    for key, value in weights.items():
        old = next((old for old in moves if key.startswith(old)), "")
        placed[moves[old] + key[len(old) :] if old else key] = value
    return placed
