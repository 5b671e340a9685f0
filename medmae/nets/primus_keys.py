"""Names of the same weights here and in the networks of nnssl, nnU-Net and dynamic-network-architectures.

Two networks are met: ``Primus`` (an encoder with a segmentation head) and ``EvaMAE`` (nnssl's masked autoencoder: the
same encoder, a second transformer called ``decoder``, a learned mask token). Differences that are more than a name:

- one convolution over stacked channels there, columns of one linear map per named sequence here;
- learned positions there have a row per register in front, which is added to the register itself here;
- a flat list of positions there, a grid here;
- ``EvaMAE`` flattens its cubes with the first two axes exchanged, ``Primus`` does not: see ``axes`` of the encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BLOCK = (
    ("attn.q_proj", "attn.q"),
    ("attn.k_proj", "attn.k"),
    ("attn.v_proj", "attn.v"),
    ("gamma_1", "scale1.gamma"),
    ("gamma_2", "scale2.gamma"),
    ("mlp.fc1_g", "mlp.gate"),
    ("mlp.fc1_x", "mlp.value"),
    ("mlp.fc2", "mlp.out"),
)
"""Parts of a block whose names differ: theirs, ours. The others (norms, ``attn.proj``) agree."""

STACKS = (("eva", "encoder"), ("decoder", "decoder"))
"""The transformers: theirs, ours."""


def from_primus(
    state: Mapping[str, Tensor], *, names: Sequence[str], patch: Sequence[int], table: Sequence[int] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict of ``Primus`` or ``EvaMAE`` under the names of ``eva_mae``.

    Args:
        state: their tensors by name.
        names: sequences their input channels stand for, in their order.
        patch: voxels per axis of a cube.
        table: cubes per axis their learned positions were made for; empty: a cube of the length they have.

    Returns:
        Our tensors, and the names of theirs that have no place here (a segmentation head, an unused mask token).

    Raises:
        ValueError: the channels are not as many as the names, the patch is another, or the positions fit no grid.
    """
    ours: dict[str, Tensor] = {}
    used: set[str] = set()

    def move(theirs: str, mine: str) -> None:
        if theirs in state:
            ours[mine] = state[theirs]
            used.add(theirs)

    stem = "down_projection.proj.weight"
    if stem in state:
        weight = state[stem]
        if weight.shape[1] != len(names) or tuple(weight.shape[2:]) != tuple(patch):
            raise ValueError(
                f"{stem} has {weight.shape[1]} channels and patch {tuple(weight.shape[2:])}, "
                f"expected {len(names)} ({', '.join(names)}) and {tuple(patch)}"
            )
        for i, name in enumerate(names):
            ours[f"encoder.embed.linear.{name}.weight"] = weight[:, i].flatten(1)
        used.add(stem)
    move("down_projection.proj.bias", "encoder.embed.bias")
    registers = state.get("register_tokens")
    if registers is not None:
        ours["encoder.prefix_tokens"] = registers
        used.add("register_tokens")
    autoencoder = "decoder.norm.weight" in state
    for theirs, mine in STACKS:
        positions = f"{theirs}.pos_embed"
        if positions in state:
            rows = state[positions][0]
            front = 0 if registers is None else registers.shape[1]
            if front and mine == "encoder" and registers is not None:
                ours["encoder.prefix_tokens"] = registers + rows[None, :front]
            ours[f"{mine}.table.weight"] = _on_a_grid(rows[front:], table, positions)
            used.add(positions)
        for key in state:
            part = re.fullmatch(rf"{theirs}\.(blocks\.\d+\.)(.+)", key)
            if part:
                move(key, f"{mine}.{part[1]}{_renamed(part[2], 0, 1)}")
        for kind in ("weight", "bias"):
            move(f"{theirs}.norm.{kind}", f"{mine}.norm.{kind}")
    if autoencoder:
        if "mask_token" in state:
            ours["decoder.mask_token"] = state["mask_token"].flatten()
            used.add("mask_token")
        _up_from(state, names, ours, used)
    return ours, tuple(key for key in state if key not in used)


def to_primus(state: Mapping[str, Tensor], *, names: Sequence[str], patch: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of an ``eva_mae`` under the names of ``Primus`` (the decoder's: of ``EvaMAE``).

    Args:
        state: our tensors by name.
        names: sequences in the order of the channels to write.
        patch: voxels per axis of a cube.
    """
    theirs: dict[str, Tensor] = {}
    parts = [state[f"encoder.embed.linear.{name}.weight"].reshape(-1, *patch) for name in names]
    theirs["down_projection.proj.weight"] = torch.stack(parts, 1)
    theirs["down_projection.proj.bias"] = state["encoder.embed.bias"]
    registers = state.get("encoder.prefix_tokens")
    if registers is not None:
        theirs["register_tokens"] = registers
    for there, mine in STACKS:
        table = state.get(f"{mine}.table.weight")
        if table is not None:
            rows = table.flatten(0, -2)
            front = 0 if registers is None else registers.shape[1]
            theirs[f"{there}.pos_embed"] = torch.cat([rows.new_zeros(front, rows.shape[1]), rows])[None]
        for key, value in state.items():
            part = re.fullmatch(rf"{mine}\.(blocks\.\d+\.)(.+)", key)
            if part:
                theirs[f"{there}.{part[1]}{_renamed(part[2], 1, 0)}"] = value
        for kind in ("weight", "bias"):
            if f"{mine}.norm.{kind}" in state:
                theirs[f"{there}.norm.{kind}"] = state[f"{mine}.norm.{kind}"]
    if "decoder.mask_token" in state:
        theirs["mask_token"] = state["decoder.mask_token"][None, None]
    _up_to(state, names, theirs)
    return theirs


def _renamed(part: str, source: int, goal: int) -> str:
    """A parameter of a block under the other name."""
    for pair in BLOCK:
        if part == pair[source] or part.startswith(f"{pair[source]}."):
            return pair[goal] + part[len(pair[source]) :]
    return part


def _on_a_grid(rows: Tensor, table: Sequence[int], name: str) -> Tensor:
    edge = round(len(rows) ** (1 / 3))
    shape = tuple(table) or (edge,) * 3
    if math.prod(shape) != len(rows):
        raise ValueError(f"{name} has {len(rows)} positions, which are not a grid of {shape}: say of which (table)")
    return rows.reshape(*shape, rows.shape[1])


def _up_from(state: Mapping[str, Tensor], names: Sequence[str], ours: dict[str, Tensor], used: set[str]) -> None:
    """``up_projection.decode``: stage i is (transposed convolution, norm, activation), the last one bare."""
    stages = sorted({int(key.split(".")[2]) for key in state if key.startswith("up_projection.decode.")})
    for i in stages:
        prefix, last = f"up_projection.decode.{i}", i == stages[-1]
        for kind in ("weight", "bias"):
            key = f"{prefix}.{kind}" if last else f"{prefix}.0.{kind}"
            value = state[key]
            if last and value.shape[1 if kind == "weight" else 0] != len(names):
                raise ValueError(f"{key} has the shape {tuple(value.shape)}, which are not {len(names)} sequences")
            for j, name in enumerate(names if last else ()):
                ours[f"decoder.head.{name}.{kind}"] = value[:, j : j + 1] if kind == "weight" else value[j : j + 1]
            if not last:
                ours[f"decoder.up.{i}.{kind}"] = value
                ours[f"decoder.up_norm.{i}.{kind}"] = state[f"{prefix}.1.{kind}"]
                used.add(f"{prefix}.1.{kind}")
            used.add(key)


def _up_to(state: Mapping[str, Tensor], names: Sequence[str], theirs: dict[str, Tensor]) -> None:
    count = len({key.split(".")[2] for key in state if key.startswith("decoder.up.")})
    for kind in ("weight", "bias"):
        for i in range(count):
            theirs[f"up_projection.decode.{i}.0.{kind}"] = state[f"decoder.up.{i}.{kind}"]
            theirs[f"up_projection.decode.{i}.1.{kind}"] = state[f"decoder.up_norm.{i}.{kind}"]
        heads = [state.get(f"decoder.head.{name}.{kind}") for name in names]
        if all(head is not None for head in heads):
            axis = 1 if kind == "weight" else 0
            theirs[f"up_projection.decode.{count}.{kind}"] = torch.cat([h for h in heads if h is not None], axis)
