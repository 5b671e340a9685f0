"""Networks by name, as nnU-Net's plans name them: the one door to dynamic-network-architectures.

nnU-Net describes a network as a dotted class name, its arguments as JSON, and which of these arguments are dotted names
themselves. Speaking the same language means that weights fit nnU-Net by construction: the modules are its own, so their
parameters have its names and its initialization.
"""

from __future__ import annotations

import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from medmae.core.errors import MissingDependency, UsageError

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


@dataclass(frozen=True)
class Architecture:
    """A network that can be built.

    Attributes:
        class_name: dotted path of the class.
        kwargs: its arguments as JSON values (``arch_kwargs`` of a plan).
        requires_import: arguments whose values are dotted names.
    """

    class_name: str
    kwargs: Mapping[str, Any]
    requires_import: tuple[str, ...] = ()

    def build(self, *, input_channels: int, num_classes: int, deep_supervision: bool = False) -> nn.Module:
        """The network with fresh weights.

        Raises:
            MissingDependency: the package of the class is not installed.
            UsageError: the class or the name of an argument is not known, or the arguments do not fit.
        """
        values = dict(self.kwargs)
        for key in self.requires_import:
            if values.get(key) is not None:
                values[key] = _locate(values[key])
        values["deep_supervision"] = deep_supervision
        kind = _locate(self.class_name)
        try:
            network: nn.Module = kind(input_channels=input_channels, num_classes=num_classes, **values)
        except (TypeError, AssertionError, ValueError) as error:
            raise UsageError(f"{self.class_name} cannot be built from its arguments: {error}") from error
        initialize = getattr(network, "initialize", None)
        if initialize is not None:
            network.apply(initialize)
        return network


def resenc(
    *,
    features: Sequence[int],
    blocks: Sequence[int],
    kernels: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    decoder_convs: Sequence[int],
    plain: bool = False,
) -> Architecture:
    """A U-Net of nnU-Net, one entry per stage and axis, fine to coarse.

    Args:
        features: channels.
        blocks: residual blocks (convolutions where ``plain``).
        kernels: edges of the convolution kernels.
        strides: factors between the stages; those of the first stage are 1.
        decoder_convs: convolutions of every decoder stage, coarse to fine, one entry fewer than stages.
        plain: stacked convolutions (``PlainConvUNet``) in place of residual blocks (``ResidualEncoderUNet``).

    Raises:
        UsageError: the numbers of entries do not fit together, a number below 1, a kernel of an even edge, or an axis
            count that is not 2 or 3.
    """
    for name, edges in (("kernels", kernels), ("strides", strides)):
        if not all(isinstance(entry, Sequence) for entry in edges):
            raise UsageError(f"{name} has one list per stage with one entry per axis, not {list(edges)}")
    flat = [("features", features), ("blocks", blocks), ("decoder_convs", decoder_convs)]
    flat += [("kernels", [k for entry in kernels for k in entry]), ("strides", [s for entry in strides for s in entry])]
    for name, values in flat:
        if not all(isinstance(n, int) and n > 0 for n in values):
            raise UsageError(f"{name} has whole numbers from 1 on, not {list(values)}")
    if any(k % 2 == 0 for entry in kernels for k in entry):
        raise UsageError(f"kernels need odd edges, or a convolution moves its voxels: not {list(kernels)}")
    stages = len(features)
    counts = {"blocks": len(blocks), "kernels": len(kernels), "strides": len(strides)}
    if wrong := {name: n for name, n in counts.items() if n != stages}:
        raise UsageError(f"features has {stages} stages, and others differ: {wrong}")
    if stages < 2:
        raise UsageError(f"features has {stages} stages, at least 2 are needed")
    if len(decoder_convs) != stages - 1:
        raise UsageError(f"decoder_convs has {len(decoder_convs)} entries, expected {stages - 1} for {stages} stages")
    axes = {len(entry) for entry in (*kernels, *strides)}
    if axes not in ({2}, {3}):
        raise UsageError(f"kernels and strides need 2 or 3 axes everywhere, not {sorted(axes)}")
    if any(s != 1 for s in strides[0]):
        raise UsageError(f"the first stage works at full resolution: strides[0] must be all 1, not {tuple(strides[0])}")
    n = axes.pop()
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{n}d",
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": list(blocks),
        "n_conv_per_stage_decoder": list(decoder_convs),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return Architecture(PLAIN if plain else RESIDUAL, kwargs, ("conv_op", "norm_op", "dropout_op", "nonlin"))


def _locate(path: str) -> Any:
    package = path.partition(".")[0]
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise MissingDependency(f"{path} cannot be imported: {error.value}") from error
    if found is None:
        if pydoc.locate(package) is None:
            raise MissingDependency(
                f"networks of nnU-Net need the package {package}, which is not installed: pip install 'medmae[nnunet]'"
            )
        raise UsageError(f"{path} is not known: check the class and argument names of the architecture")
    return found
