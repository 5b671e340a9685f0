"""Walks over the modules of nnU-Net's networks with an execution of one's own.

The modules stay what they are: parameters, names, initialization and the stock ``forward`` are untouched, no class is
swapped and no hook is set. A walk calls an execution for every convolution, normalization and pooling that it meets.
Whatever it does not know it refuses by name, so a network is computed exactly or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmae.core.errors import UsageError

from .cells import Scale
from .execution import Execution, over, stride_of, times

ELEMENTWISE = (nn.LeakyReLU, nn.ReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Mish, nn.Tanh, nn.Identity)
"""Activations that keep zero at zero, so that hidden voxels stay zero."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
CHAINS = {"ConvDropoutNormReLU": "all_modules", "StackedConvBlocks": "convs", "StackedResidualBlocks": "blocks"}
RESIDUALS = {"BasicBlockD": ("conv1", "conv2"), "BottleneckD": ("conv1", "conv2", "conv3")}


def walk(execution: Execution, module: Any, x: Tensor, scale: Scale) -> tuple[Tensor, Scale]:
    """The output of a module of a stock network, and the scale it is at.

    Raises:
        UsageError: a layer that has no sparse form.
    """
    name = type(module).__name__
    if isinstance(module, nn.Sequential | nn.ModuleList):
        for child in module:
            x, scale = walk(execution, child, x, scale)
    elif name in CHAINS:
        x, scale = walk(execution, getattr(module, CHAINS[name]), x, scale)
    elif name in RESIDUALS:
        x, scale = _residual(execution, module, x, scale)
    elif isinstance(module, CONVOLUTIONS):
        x, scale = execution.conv(x, module, scale), times(scale, module.stride)
    elif isinstance(module, NORMS):
        x = execution.norm(x, module, scale)
    elif isinstance(module, POOLS):
        x, scale = execution.pool(x, module, scale), times(scale, stride_of(module, len(scale)))
    elif isinstance(module, ELEMENTWISE):
        x = module(x)
    elif not isinstance(module, DROPOUTS):
        raise UsageError(refusal(module) or f"{name} has no sparse form")
    return x, scale


def _residual(execution: Execution, block: Any, x: Tensor, scale: Scale) -> tuple[Tensor, Scale]:
    y, after = x, scale
    for name in RESIDUALS[type(block).__name__]:
        y, after = walk(execution, getattr(block, name), y, after)
    skip = block.skip
    short = walk(execution, skip, x, scale)[0] if isinstance(skip, nn.Module) else x
    y = y + short
    last = getattr(block, "nonlin3", None) or block.nonlin2
    return (last(y) if isinstance(last, nn.Module) else y), after


def encode(execution: Execution, stages: Any, x: Tensor, *, recompute: bool = False) -> list[tuple[Tensor, Scale]]:
    """Features after every stage of a stock encoder, fine to coarse, and their scales.

    Args:
        execution: how to compute.
        stages: the stages, the stem in front of the first where there is one: a sequence of sequences of modules.
        x: the input at full resolution in the form of the execution.
        recompute: keep the input of every stage only, and compute it again in the backward pass.
    """
    scale: Scale = (1,) * len(execution.cells.block)
    levels = []
    for stage in stages:
        if recompute and torch.is_grad_enabled():
            before = scale
            x = checkpoint(lambda x, stage, scale: walk(execution, stage, x, scale)[0], x, stage, before,
                           use_reentrant=False)  # fmt: skip
            scale = times(before, total_stride(stage, len(before)))
        else:
            x, scale = walk(execution, stage, x, scale)
        levels.append((x, scale))
    return levels


def decode(
    execution: Execution,
    stages: Sequence[nn.Module],
    ups: Sequence[Any],
    skips: Sequence[tuple[Tensor, Scale]],
    *,
    recompute: bool = False,
) -> Tensor:
    """Features at full resolution before the last layer of a stock U-Net decoder.

    Args:
        execution: how to compute, over the cubes that are decoded.
        stages: convolutions of every decoder stage, coarse to fine.
        ups: the transposed convolution in front of each.
        skips: features of every encoder stage, fine to coarse, in the form of the execution.
        recompute: as in :func:`encode`.
    """

    def step(x: Tensor, skip: Tensor, up: Any, stage: nn.Module, scale: Scale) -> Tensor:
        y = execution.transposed(x, up, scale)
        return walk(execution, stage, torch.cat([y, skip.to(y.dtype)], 1), over(scale, up.stride))[0]

    x, scale = skips[-1]
    for i, (up, stage) in enumerate(zip(ups, stages, strict=True)):
        skip = skips[-(i + 2)][0]
        if recompute and torch.is_grad_enabled():
            x = checkpoint(step, x, skip, up, stage, scale, use_reentrant=False)
        else:
            x = step(x, skip, up, stage, scale)
        scale = over(scale, up.stride)
    return x


def total_stride(module: nn.Module, axes: int) -> Scale:
    """The product of the strides along the main path of a stage."""
    name = type(module).__name__
    if name in CHAINS:
        return total_stride(getattr(module, CHAINS[name]), axes)
    if isinstance(module, nn.Sequential | nn.ModuleList):
        scale: Scale = tuple([1] * axes)
        for child in module:
            scale = times(scale, total_stride(child, axes))
        return scale
    if name in RESIDUALS:
        return total_stride(nn.ModuleList([getattr(module, part) for part in RESIDUALS[name]]), axes)
    if isinstance(module, CONVOLUTIONS):
        return tuple(module.stride)
    if isinstance(module, POOLS):
        return stride_of(module, axes)
    return tuple([1] * axes)


def refusal(module: Any) -> str | None:
    """Why a layer cannot be walked over, or None."""
    name = type(module).__name__
    if isinstance(module, CONVOLUTIONS):
        if module.groups != 1 or any(d != 1 for d in module.dilation) or module.padding_mode != "zeros":
            return f"{name} with groups, dilation or padding other than zeros has no sparse form"
        padding: Any = module.padding
        if any(k != 2 * p + 1 for k, p in zip(module.kernel_size, padding, strict=True)):
            return f"{name} with kernel {module.kernel_size} and padding {module.padding} does not keep voxels in place"
    elif isinstance(module, TRANSPOSED):
        if tuple(module.kernel_size) != tuple(module.stride) or any(module.padding) or any(module.output_padding):
            return f"{name} with kernel {module.kernel_size} and stride {module.stride}: windows must not overlap"
    elif isinstance(module, NORMS):
        if module.track_running_stats:
            return f"{name} with running statistics: they would be those of whole maps"
    elif isinstance(module, POOLS):
        window: Any = module.kernel_size
        stride: Any = module.stride
        axes = int(name[-2])
        if _each(window, axes) != _each(stride, axes) or any(_each(module.padding, axes)):
            return f"{name} with window {window} and stride {stride}: windows must not overlap"
    elif isinstance(module, DROPOUTS):
        if module.p > 0:
            return f"{name} draws at random, differently in each execution: use a network without dropout"
    elif name in RESIDUALS:
        if module.apply_stochastic_depth:
            return f"{name} with stochastic depth draws at random: use a network without it"
        if module.apply_se:
            return f"{name} with squeeze and excitation averages over hidden voxels: use a network without it"
    elif name not in CHAINS and not isinstance(module, (nn.Sequential, nn.ModuleList, *ELEMENTWISE)):
        return f"{name} has no sparse form: the network needs instance norm and activations that keep zero at zero"
    return None


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One entry per axis."""
    return tuple(value) if isinstance(value, tuple | list) else tuple([value] * axes)


def check(*modules: nn.Module) -> None:
    """Refuse networks that cannot be computed sparsely.

    Raises:
        UsageError: naming every layer that stands in the way, and why.
    """
    found: dict[str, None] = {}
    for module in modules:
        for child in module.modules():
            holder = type(child).__name__ not in RESIDUALS and any(True for _ in child.children())
            reason = None if holder else refusal(child)  # a holder is known by what it holds
            if reason is not None:
                found[reason] = None
    if found:
        raise UsageError(f"this network has no sparse form: {'; '.join(found)}; or use the method resenc_mae")
