"""The network of a trained nnU-Net model as an ONNX file.

Only the network: nnU-Net's resampling, normalization and sliding window stay nnU-Net's, and whoever runs the file has
to do them. What they are is kept in the file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from medmae.core.errors import CheckpointError, UsageError
from medmae.transfer.nnunet.checkpoints import read_checkpoint
from medmae.transfer.nnunet.plans import architecture, configuration, inputs, read_dataset, read_plans

from .onnx_file import OnnxReport, write_onnx
from .staging import check_free

WEIGHTS = ("checkpoint_final.pth", "checkpoint_best.pth")


class _Named(nn.Module):
    """A network whose answer is a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The logits."""
        return (self.network(image),)


def is_nnunet_folder(folder: str | Path) -> bool:
    """Whether ``folder`` is what nnU-Net's training writes: ``plans.json``, ``dataset.json``, ``fold_*``."""
    folder = Path(folder)
    return (folder / "plans.json").is_file() and (folder / "dataset.json").is_file()


def export_segmenter(folder: str | Path, out: str | Path, *, fold: str = "0", overwrite: bool = False) -> OnnxReport:
    """Write the network of one fold: input ``image`` Float[b c *patch], output ``logits`` Float[b k *patch].

    Args:
        folder: trained model, ``nnUNet_results/DatasetXXX/TRAINER__PLANS__CONFIGURATION``.
        out: file to write.
        fold: which fold, a number or ``all``.
        overwrite: replace an existing file.

    Raises:
        UsageError: no such fold, or ``out`` exists.
        CheckpointError: the weights cannot be read, or do not fit the network of the plans.
        MissingDependency: onnx, onnxscript, onnxruntime or nnU-Net's networks are not installed.
    """
    folder, out = Path(folder), check_free(out, overwrite=overwrite)
    plans, dataset = read_plans(folder / "plans.json"), read_dataset(folder / "dataset.json")
    home = folder / f"fold_{fold}"
    path = next((home / name for name in WEIGHTS if (home / name).is_file()), None)
    if path is None:
        known = sorted(p.name.removeprefix("fold_") for p in folder.glob("fold_*"))
        raise UsageError(f"{home} holds no {' or '.join(WEIGHTS)}; folds here: {', '.join(known) or 'none'}")
    stored = read_checkpoint(path)
    name = (stored.get("init_args") or {}).get("configuration") or folder.name.rpartition("__")[2]
    state = {key.removeprefix("module."): value for key, value in stored["network_weights"].items()}
    channels, outputs = inputs(plans, dataset, name), heads(dataset)
    network = architecture(plans, name).build(input_channels=len(channels), num_classes=len(outputs))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the network of {folder / 'plans.json'}: {error}") from error
    values = configuration(plans, name)
    size = tuple(int(n) for n in values["patch_size"])

    def example(samples: int) -> tuple[Tensor, ...]:
        draw = torch.Generator().manual_seed(0)
        return (torch.randn(samples, len(channels), *size, generator=draw),)

    about = {
        "channels": list(channels),
        "outputs": list(outputs),
        "activation": "sigmoid" if _regions(dataset) else "softmax",
        "configuration": name,
        "patch_size": list(size),
        "spacing": values.get("spacing", []),
        "normalization_schemes": values.get("normalization_schemes", []),
        "transpose_forward": plans.get("transpose_forward", []),
        "intensities": plans.get("foreground_intensity_properties_per_channel", {}),
    }
    return write_onnx(_Named(network).eval(), out, example=example, inputs=("image",), outputs=("logits",), about=about)


def heads(dataset: dict) -> tuple[str, ...]:
    """What the channels of the output stand for: classes with the background, or regions without it."""
    labels = [name for name in dataset["labels"] if name != "ignore"]
    return tuple(name for name in labels if name != "background") if _regions(dataset) else tuple(labels)


def _regions(dataset: dict) -> bool:
    return any(isinstance(value, list | tuple) and len(value) > 1 for value in dataset["labels"].values())
