"""Write the one file that stock nnU-Net takes: ``nnUNetv2_train ... -pretrained_weights FILE``.

Its loader wants every tensor of the network under every name it has, of the same shape, heads aside. So the network of
the plans is built, the weights are fitted into it (``adapt.py``), and its complete state is saved. The same file also
says what nnssl's adaptation plans say, so that the bridge of that ecosystem reads it; all of it is plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmae import __version__
from medmae.atomic import replacing
from medmae.convert.to_nnssl import RESENC_L
from medmae.core.errors import CheckpointError, UsageError
from medmae.nets.build import PLAIN, RESIDUAL, Architecture

from .adapt import AdaptReport, adapt
from .plans import architecture, configuration
from .target import Target, find_target
from .weights import Source, read_source


@dataclass(frozen=True)
class Exported:
    """What was written: where, what became of every tensor, and for which network."""

    path: Path
    report: AdaptReport
    source: Source
    target: Target


def export(
    checkpoint: str | Path,
    *,
    dataset: str | Path,
    plans: str,
    out: str | Path,
    configuration: str = "3d_fullres",
    min_loaded: float = 0.8,
    overwrite: bool = False,
    root: str | Path | None = None,
    channels: Sequence[str] | None = None,
    seed: int = 0,
) -> Exported:
    """Fit weights into the network of a plan and write them for nnU-Net.

    Args:
        checkpoint: model or run folder, or a file of nnssl, nnU-Net or this function.
        dataset: folder, number or name of the data set.
        plans: name or file of its plans.
        out: file to write, such as ``weights.pth``.
        configuration: of the plans.
        min_loaded: share of the network that must come from the checkpoint (of its encoder, where the checkpoint has
            no decoder of this kind).
        overwrite: replace an existing file.
        root: folder that holds nnU-Net's three.
        channels: what the channels are, where dataset.json calls them something else.
        seed: of what stays random.

    Raises:
        UsageError: data set, plans or configuration are not there or do not belong together, or ``out`` exists.
        CheckpointError: the checkpoint is of another kind, or less than ``min_loaded`` fits; nothing is written.
        MissingDependency: the package of the network is not installed.
    """
    path = Path(out).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a file, for example {path / 'weights.pth'}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give another --out, or --overwrite to replace it")
    if not 0 <= min_loaded <= 1:
        raise UsageError(f"--min-loaded is a share between 0 and 1, not {min_loaded}")
    target = find_target(dataset, plans=plans, name=configuration, root=root, rename=channels)
    source = read_source(checkpoint)
    described = architecture(target.plans, configuration)
    network = build(described, target, seed=seed)
    _check_kind(source, network, described)
    report = adapt(source, network, channels=target.channels, orientation=target.orientation or None)
    if report.share < min_loaded:
        raise CheckpointError(
            f"{checkpoint} fits {report.share:.1%} of the {report.scope} that {target.file.name} ({configuration}) "
            f"describes, less than --min-loaded {min_loaded:.0%}; nothing was written.\n{report}\n"
            "Pre-train with these plans (medmae pretrain --method resenc_mae --plans ...), or lower --min-loaded"
        )
    content = {
        "network_weights": {key: value.detach().cpu() for key, value in network.state_dict().items()},
        "nnssl_adaptation_plan": adaptation_plan(network, described, target),
        "citations": [dict(entry) for entry in source.citations],
        "medmae": _record(source, target, report),
    }
    with replacing(path) as temporary:
        torch.save(plain(content), temporary)
    return Exported(path, report, source, target)


def build(described: Architecture, target: Target, *, seed: int = 0) -> nn.Module:
    """The network of a target with fresh weights, the same for every call with one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return described.build(input_channels=len(target.channels), num_classes=target.heads, deep_supervision=True)


def adaptation_plan(network: nn.Module, described: Architecture, target: Target) -> dict[str, Any]:
    """What nnssl writes beside its weights: the network, what it was trained on, and where its encoder is."""
    values = configuration(target.plans, target.name)
    patch, channels = [int(n) for n in values["patch_size"]], len(target.channels)
    kind, kwargs = described.class_name.rpartition(".")[2], dict(described.kwargs)
    named = described.class_name == RESIDUAL and all(kwargs.get(key) == value for key, value in RESENC_L.items())
    stock = described.class_name in (RESIDUAL, PLAIN)
    stem = str(getattr(network, "key_to_stem", "encoder"))
    return {
        "architecture_plans": {
            "arch_class_name": "ResEncL" if named else kind if stock else described.class_name,
            "arch_kwargs": None if named else kwargs,
            "arch_kwargs_requiring_import": None if named else list(described.requires_import),
        },
        "pretrain_plan": {
            "plans_name": str(target.plans.get("plans_name", "")),
            "dataset_name": str(target.plans.get("dataset_name", "")),
            "configurations": {
                target.name: {
                    "spacing": [float(step) for step in values.get("spacing") or ()] or None,
                    "patch_size": patch,
                    "normalization_schemes": list(values.get("normalization_schemes") or ()),
                    "use_mask_for_norm": list(values.get("use_mask_for_norm") or ()),
                }
            },
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": str(getattr(network, "key_to_encoder", "encoder")),
        "key_to_stem": stem,
        "keys_to_in_proj": [str(key) for key in getattr(network, "keys_to_in_proj", ())],
        "key_to_lpe": getattr(network, "key_to_lpe", None),
    }


def plain(value: Any) -> Any:
    """Only what torch reads with ``weights_only=True``: tensors, text, numbers, None, lists and dictionaries."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Tensor) or value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float | int) and not isinstance(value, bool):
        return int(value) if isinstance(value, int) else float(value) if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    return str(value)


def _check_kind(source: Source, network: nn.Module, described: Architecture) -> None:
    """A transformer's weights fit the network that carries that transformer, and no U-Net's; and the reverse."""
    is_cnn = any(key.startswith("encoder.stages.") for key in network.state_dict())
    if source.kind == "vit" and is_cnn:
        raise CheckpointError(
            f"{source.origin} is a vision transformer, and the plans describe a U-Net ({described.class_name}). "
            "Make plans for it first: medmae nnunet plan --checkpoint CHECKPOINT"
        )
    if source.kind == "cnn" and not is_cnn:
        raise CheckpointError(
            f"{source.origin} is a U-Net, and the plans describe {described.class_name}: give plans of a U-Net, for "
            "example nnUNetResEncUNetLPlans"
        )
    sizes = {value.ndim for key, value in network.state_dict().items() if key.endswith("conv.weight")}
    if is_cnn and sizes == {4}:
        raise CheckpointError(f"{source.origin} works on volumes, and this configuration on slices: choose 3d_fullres")


def _record(source: Source, target: Target, report: AdaptReport) -> dict[str, Any]:
    """Where the weights come from, by content and not by place: paths do not travel."""
    return {
        "version": __version__,
        "source": Path(source.origin).name,
        "sha256": source.sha256,
        "method": source.about.get("method"),
        "channels": list(target.channels),
        "orientation": target.orientation,
        "plans": str(target.plans.get("plans_name", target.file.stem)),
        "dataset": str(target.plans.get("dataset_name", "")),
        "configuration": target.name,
        "report": report.to_dict(),
    }
