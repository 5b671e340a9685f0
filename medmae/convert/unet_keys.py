"""The tensors of nnU-Net's U-Nets: what they are called, and what network they are of.

A stock network registers most tensors under several names: a convolution is also the first entry of its block's
sequence, and the encoder is also a child of the decoder. Here every tensor has one name, the plain one. Which copy is
meant where copies differ is decided here too, once: training code that rebuilt modules left files in which the plain
name holds a copy that was never trained, while the forward pass went through the sequence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medmae.core.errors import CheckpointError

_SEQUENCE = re.compile(r"\.all_modules\.(\d+)\.")


def canonical_key(key: str) -> str:
    """The plain name of a tensor: not that of the encoder inside the decoder, nor that of a block's sequence."""
    key = key.replace("decoder.encoder.", "encoder.", 1) if key.startswith("decoder.encoder.") else key
    return _SEQUENCE.sub(lambda match: ".conv." if match[1] == "0" else ".norm.", key)


def _rank(key: str) -> tuple[bool, bool]:
    """Order of trust among the names of one tensor: the encoder itself, and in it the sequence that is run."""
    return (key.startswith("decoder.encoder."), _SEQUENCE.search(key) is None)


def once(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor under its plain name, and the plain names whose copies differed."""
    groups: dict[str, list[str]] = {}
    for key in weights:
        groups.setdefault(canonical_key(key), []).append(key)
    found, differing = {}, []
    for name, keys in groups.items():
        best = weights[min(keys, key=_rank)]
        found[name] = best
        if any(_differ(weights[key], best) for key in keys):
            differing.append(name)
    return found, tuple(differing)


def _differ(one: Tensor, other: Tensor) -> bool:
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return False
    return one.shape != other.shape or not torch.equal(one, other)


def is_unet(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors (plain names) of a U-Net's encoder at least."""
    return any(key.startswith("encoder.stages.0.") for key in weights)


def has_decoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether a U-Net's decoder is there too."""
    return any(key.startswith("decoder.transpconvs.") for key in weights)


def stage_count(weights: Mapping[str, Any]) -> int:
    """Number of resolutions of the encoder."""
    return 1 + max((int(key.split(".")[2]) for key in weights if key.startswith("encoder.stages.")), default=-1)


def first_convolution(weights: Mapping[str, Any]) -> str | None:
    """Name of the convolution that sees the image, or None where there is none (one stem per sequence, no U-Net)."""
    candidates = ("encoder.stem.convs.0.conv.weight", "encoder.stages.0.0.convs.0.conv.weight")
    return next((name for name in candidates if name in weights), None)


def unet_recipe(weights: Mapping[str, Tensor], *, strides: Sequence[Sequence[int]] | None = None) -> dict[str, Any]:
    """What :func:`medmae.nets.build.resenc` needs to build the network of these tensors, read off their shapes.

    Args:
        weights: tensors under plain names.
        strides: of the stages. None reads them off the decoder's transposed convolutions, whose kernels they are;
            without a decoder every stage but the first halves every axis.

    Raises:
        CheckpointError: these are not the tensors of such a network.
    """
    stages = stage_count(weights)
    plain = not any(key.startswith("encoder.stages.0.blocks.") for key in weights)
    names = [_first(weights, s, plain) for s in range(stages)]
    if stages < 2 or any(name is None for name in names):
        raise CheckpointError("these are not the weights of a U-Net of nnU-Net: stages of its encoder are missing")
    firsts = [weights[str(name)] for name in names]
    axes = firsts[0].ndim - 2
    if strides is None:
        strides = [[1] * axes] + [[2] * axes for _ in range(stages - 1)]
        if has_decoder(weights):
            ups = [weights.get(f"decoder.transpconvs.{stages - 1 - s}.weight") for s in range(1, stages)]
            if any(up is None for up in ups):
                raise CheckpointError("the decoder of this U-Net has not one transposed convolution per stage")
            strides = [[1] * axes] + [list(up.shape[2:]) for up in ups if up is not None]
    convs = [_count(weights, f"decoder.stages.{d}.convs.") for d in range(stages - 1)] if has_decoder(weights) else []
    return {
        "features": [len(first) for first in firsts],
        "blocks": [_count(weights, f"encoder.stages.{s}.{'0.convs.' if plain else 'blocks.'}") for s in range(stages)],
        "kernels": [list(first.shape[2:]) for first in firsts],
        "strides": [list(stride) for stride in strides],
        "decoder_convs": convs or [1] * (stages - 1),
        "plain": plain,
    }


def _first(weights: Mapping[str, Tensor], stage: int, plain: bool) -> str | None:
    block = "0.convs.0" if plain else "blocks.0.conv1"
    name = f"encoder.stages.{stage}.{block}.conv.weight"
    return name if name in weights and weights[name].ndim in (4, 5) else None


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {int(key[len(prefix) :].split(".")[0]) for key in weights if key.startswith(prefix)}
    return 1 + max(numbers, default=-1)
