"""The parts of a two-dimensional vision transformer, whoever named them.

MAE and timm, transformers and MultiMAE store the same network under other names. One table brings them to one
vocabulary, in which queries, keys and values stand apart; whatever it does not know is named, not skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_END = r"\.(weight|bias)"
_FRONT = r"(?:vit\.|encoder\.(?=embeddings|layer))?"
NAMES: tuple[tuple[str, str], ...] = (
    (rf"patch_embed\.proj{_END}", r"patch.\1"),
    (rf"{_FRONT}embeddings\.patch_embeddings\.projection{_END}", r"patch.\1"),
    (rf"{_FRONT}(?:embeddings\.)?cls_token|global_tokens", "cls"),
    (rf"{_FRONT}(?:pos_embed|embeddings\.position_embeddings)", "positions"),
    (rf"{_FRONT}(?:norm|fc_norm|layernorm){_END}", r"norm.\1"),
)
"""Names outside the blocks, and what they are called here."""

BLOCK = re.compile(r"(?:vit\.)?(?:blocks|layers|encoder\.layer|encoder)\.(\d+)\.(.+)")
PARTS: tuple[tuple[str, str], ...] = (
    (rf"(?:norm1|layernorm_before){_END}", r"norm1.\1"),
    (rf"(?:norm2|layernorm_after){_END}", r"norm2.\1"),
    (rf"attn\.qkv{_END}", r"qkv.\1"),
    (rf"(?:attn|attention)\.([qkv])_proj{_END}", r"\1.\2"),
    (r"attn\.([qv])_bias", r"\1.bias"),
    (rf"attention\.attention\.(q)uery{_END}|attention\.attention\.(k)ey{_END}|attention\.attention\.(v)alue{_END}", ""),
    (rf"(?:attn\.proj|attention\.o_proj|attention\.output\.dense){_END}", r"proj.\1"),
    (rf"attn\.norm{_END}", r"attn_norm.\1"),
    (rf"(?:mlp\.fc1|intermediate\.dense){_END}", r"fc1.\1"),
    (rf"mlp\.fc1_g{_END}", r"gate.\1"),
    (rf"mlp\.fc1_x{_END}", r"value.\1"),
    (rf"mlp\.norm{_END}", r"mlp_norm.\1"),
    (rf"(?:mlp\.fc2|output\.dense){_END}", r"fc2.\1"),
    (r"gamma_([12])", r"scale\1"),
    (r"ls([12])\.gamma", r"scale\1"),
)
"""Names inside a block."""

LEFT = re.compile(
    r"(decoder|mask_token|head|pooler|output_adapters|classifier|encoder_pred).*|.*\.(pos_emb|class_emb.*)|rope\..*"
)
"""What has no counterpart in an encoder of volumes: decoders, heads, tables of two-dimensional positions."""


@dataclass(frozen=True)
class Part:
    """One tensor in the common vocabulary, and the names it had in the file."""

    value: Tensor
    theirs: tuple[str, ...]


@dataclass(frozen=True)
class Transformer:
    """A file in the common vocabulary.

    Attributes:
        parts: ``patch.weight``, ``cls``, ``blocks.0.q.weight`` and so on.
        left: names that are known and not needed.
        strange: names that are not known.
    """

    parts: Mapping[str, Part]
    left: tuple[str, ...]
    strange: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max((int(name.split(".")[1]) for name in self.parts if name.startswith("blocks.")), default=-1)


def read_transformer(stored: Mapping[str, Tensor], *, adapter: str = "rgb") -> Transformer:
    """The tensors of a file in the common vocabulary.

    Args:
        stored: tensors by the file's names.
        adapter: of several inputs (MultiMAE), the one whose patch embedding is meant; the first if there is none so
            called.
    """
    parts: dict[str, Part] = {}
    left: list[str] = []
    strange: list[str] = []
    inputs = [m.group(1) for name in stored if (m := re.fullmatch(r"input_adapters\.(\w+)\.proj\.weight", name))]
    chosen = adapter if adapter in inputs else next(iter(inputs), "")
    for name, value in stored.items():
        ours = _ours(name, chosen)
        if ours is None or ours in parts:
            other = name.startswith("input_adapters.")
            (left if LEFT.fullmatch(name) or other or ours is not None else strange).append(name)
        elif ours.endswith(("qkv.weight", "qkv.bias")):
            stem, _, end = ours.rpartition("qkv.")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                parts[f"{stem}{letter}.{end}"] = Part(third, (name,))
        else:
            parts[ours] = Part(value, (name,))
    return Transformer(parts, tuple(left), tuple(strange))


def _ours(name: str, adapter: str) -> str | None:
    """The common name, or None."""
    if adapter and (found := re.fullmatch(rf"input_adapters\.{re.escape(adapter)}\.proj{_END}", name)):
        return f"patch.{found.group(1)}"
    for pattern, ours in NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    if inside := BLOCK.fullmatch(name):
        for pattern, ours in PARTS:
            if found := re.fullmatch(pattern, inside.group(2)):
                part = found.expand(ours) if ours else ".".join(group for group in found.groups() if group)
                return f"blocks.{inside.group(1)}.{part}"
    return None


def inflate(kernel: Tensor, depth: int, *, how: str = "average") -> Tensor:
    """A kernel [d c h w] of images as a kernel [d w h depth] of volumes with one channel.

    Channels are added up, as for a gray image that is shown in all of them. Rows of an image are the second axis of a
    volume and columns the first, as an axial slice is shown. Over the third axis the kernel is spread so that a volume
    that does not change along it gives what its slice gave.

    Args:
        kernel: of a patch embedding.
        depth: voxels along the third axis.
        how: ``average`` (an equal share for every slice) or ``center`` (all for the middle one, or the middle two).
    """
    share = torch.zeros(depth, dtype=kernel.dtype)
    if how == "average":
        share += 1 / depth
    else:
        share[(depth - 1) // 2 : depth // 2 + 1] = 1 / (1 + (depth + 1) % 2)
    return kernel.sum(1).transpose(1, 2)[..., None] * share
