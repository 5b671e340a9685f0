"""Vision transformers that were trained on images, as encoders of volumes.

MAE, MultiMAE, timm and transformers checkpoints are read (``vit_names.py``). The rule: blocks, norms and the [CLS]
token are copied; the patch embedding is spread over the third axis and over the sequences; positions are not taken
over, because ours are computed from coordinates; decoders and heads are left behind and start fresh. What stood where
is kept in the model folder as a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmae.atomic import write_text
from medmae.checkpoint import README, file_hash, save_model
from medmae.core.errors import CheckpointError, UsageError
from medmae.core.method import Method
from medmae.find import find

from .reading import read_tensors
from .vit_names import Transformer, inflate, read_transformer

LICENSE = "that of the two-dimensional checkpoint"
NOTICE = "The file does not say which: look it up, and keep to it with everything trained from this folder."
METHODS = ("bm_mae", "eva_mae")
HOW = ("average", "center")
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Attention heads of the usual widths; they leave no trace in a file."""
PREPROCESS = {
    "orientation": "LPS",  # an axial slice then lies as images do: columns to the left, rows to the back
    "spacing": [1.0, 1.0, 1.0],
    "normalize": "zscore_foreground",
}


@dataclass(frozen=True)
class Row:
    """Where one tensor of ours comes from."""

    ours: str
    theirs: tuple[str, ...]
    rule: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What became of the tensors.

    Attributes:
        table: one row per tensor of ours that was filled.
        unused: names in the file that were left behind.
        missing: names of ours that start fresh.
    """

    table: tuple[Row, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def used(self) -> tuple[str, ...]:
        """Names in the file that were used."""
        return tuple(dict.fromkeys(name for row in self.table for name in row.theirs))

    def __str__(self) -> str:
        width = max(len(row.ours) for row in self.table)
        lines = [f"{row.ours:<{width}}  {'x'.join(map(str, row.shape)):>10}  {row.rule:<9} {' + '.join(row.theirs)}"
                 for row in self.table if ".blocks." not in row.ours or ".blocks.0." in row.ours]  # fmt: skip
        fresh = sorted({".".join(name.split(".")[:2]) for name in self.missing})
        return "\n".join([
            *lines, "(further blocks as block 0)",
            f"used {len(self.used)}/{len(self.used) + len(self.unused)} tensors; "
            f"fresh here: {', '.join(fresh) or 'none'}",
        ])  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """The result: the method with what could be taken over, what builds it, and whence it came."""

    method: Method
    recipe: dict[str, Any]
    report: Report
    name: str = "bm_mae"
    origin: dict[str, Any] = field(default_factory=dict)


def convert(
    path: str | Path,
    *,
    method: str = "bm_mae",
    scale: str | None = None,
    sequence: str | None = None,
    inflation: str = "average",
    heads: int | None = None,
    strict: bool = True,
) -> Converted:
    """Read a file.

    Args:
        path: ``.pth`` (read without running what is in it) or safetensors.
        method: ``bm_mae`` (plain blocks) or ``eva_mae`` (rotary blocks with gated MLPs: EVA-02).
        scale: size of the method that the file must fit; by default its sizes are read off the file.
        sequence: names of the sequences, separated by commas; by default the method's.
        inflation: ``average`` or ``center``, see :func:`medmae.convert.vit_names.inflate`.
        heads: attention heads; by default the usual ones of this width, or the scale's.
        strict: refuse a file with tensors that are not known.

    Raises:
        UsageError: no such file, method, scale or inflation; or the number of heads must be said.
        CheckpointError: the file cannot be read safely, is no vision transformer of images, or does not fit.
    """
    for value, known, what in ((method, METHODS, "--method"), (inflation, HOW, "--inflation")):
        if value not in known:
            raise UsageError(f"{what} is {value!r}; it must be one of {', '.join(known)}")
    path = Path(path)
    source = read_transformer(read_tensors(path))
    kernel = source.parts.get("patch.weight")
    if kernel is None or kernel.value.ndim != 4 or not source.depth:
        raise CheckpointError(f"{path}: not a vision transformer of images: no patch embedding [d c h w] and blocks")
    if strict and source.strange:
        raise CheckpointError(
            f"{path}: {len(source.strange)} tensors are not known: {', '.join(source.strange[:5])}. "
            "With strict=False (--no-strict) they are left out, and the network computes something else"
        )
    recipe = _recipe(source, path, method=method, scale=scale, sequence=sequence, heads=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            built = find(method).build(**recipe)
        except UsageError as error:
            raise CheckpointError(f"{path} does not fit {method}: {error}{_heads_hint(method)}") from error
    filled = _plain(source, recipe, inflation) if method == "bm_mae" else _rotary(source, recipe, inflation)
    return Converted(built, recipe, _fill(built, filled, source, path), method,
                     {"file": path.name, "sha256": file_hash(path), "inflation": inflation})  # fmt: skip


def save(converted: Converted, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model folder, with the table of what was used.

    Raises:
        UsageError: ``folder`` exists, is not empty, and ``overwrite`` is not set.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise UsageError(
            f"{folder} exists and is not empty; give another --out, or --overwrite to replace the model in it"
        )
    recipe, report = converted.recipe, converted.report
    table = [{"ours": r.ours, "theirs": list(r.theirs), "rule": r.rule, "shape": list(r.shape)} for r in report.table]
    about = {
        "license": LICENSE,
        "license_notice": NOTICE,
        "data": {"sequences": recipe["sequences"], "preprocess": PREPROCESS, "crop": recipe["size"]},
        "converted": {
            "from": "a vision transformer of images, inflated",
            **converted.origin,
            "used": len(report.used),
            "unused": list(report.unused),
            "missing": list(report.missing),
            "table": table,
        },
    }
    save_model(folder, converted.method, name=converted.name, recipe=recipe, about=about)
    text = f"\n## Where it comes from\n\n```\n{report}\n```\n\nLicense: {LICENSE}. {NOTICE}\n"
    write_text(folder / README, (folder / README).read_text("utf-8") + text)
    return folder


Filled = dict[str, tuple[Tensor, tuple[str, ...], str]]
"""Name of ours -> value, names in the file, rule."""


def _recipe(
    source: Transformer, path: Path, *, method: str, scale: str | None, sequence: str | None, heads: int | None
) -> dict[str, Any]:
    """The resolved arguments: the scale's, which must fit the file, or the file's."""
    d, _, h, w = source.parts["patch.weight"].value.shape
    first = "blocks.0.gate.weight" if method == "eva_mae" else "blocks.0.fc1.weight"
    if first not in source.parts:
        kinds = {"eva_mae": "gated MLPs (EVA-02)", "bm_mae": "plain MLPs (MAE, ViT)"}
        raise CheckpointError(f"{path} does not fit {method}: its blocks have no {kinds[method]}")
    hidden = len(source.parts[first].value)
    given: dict[str, Any] = {} if heads is None else {"heads": heads}
    if sequence is not None:
        given["sequences"] = tuple(name.strip() for name in sequence.split(","))
    found = find(method)
    if method == "eva_mae":
        given |= {"table": (), "registers": int("cls" in source.parts)}
        given["inner_norm"] = "blocks.0.attn_norm.weight" in source.parts
        given["layer_scale"] = 0.1 if "blocks.0.scale1" in source.parts else None
    if scale is not None:
        recipe = found.recipe(scale=scale, **given)
        has = {"width": d, "depth": source.depth, "hidden width": hidden, "patch": [w, h]}
        wants = {"width": recipe["width"], "depth": recipe["depth"], "patch": list(recipe["patch"][:2]),
                 "hidden width": int(recipe["width"] * recipe["mlp_ratio"])}  # fmt: skip
        if wrong := [f"{key} {has[key]}, not {wants[key]}" for key in has if has[key] != wants[key]]:
            raise CheckpointError(f"{path} does not fit {method} at scale {scale}: it has {', '.join(wrong)}")
        return recipe
    default = found.recipe(**given)
    if heads is None:
        if d not in HEADS:
            raise UsageError(f"{path}: the usual number of heads of width {d} is not known: say it with --heads")
        given["heads"] = HEADS[d]
    ratio = hidden / d
    patch = (w, h, default["patch"][2])
    given |= {"width": d, "depth": source.depth, "patch": patch}
    given["mlp_ratio"] = ratio if int(d * ratio) == hidden else (hidden + 0.5) / d
    given["size"] = tuple(max(1, n // p) * p for n, p in zip(default["size"], patch, strict=True))
    if method == "eva_mae":
        given["decoder_heads"] = given.get("heads", heads)
    return found.recipe(**given)


def _plain(source: Transformer, recipe: dict[str, Any], how: str) -> Filled:
    """The tensors of ``bm_mae``'s encoder."""
    filled = _shared(source, recipe, how, share=1)
    for name in recipe["sequences"]:
        _copy(filled, source, "patch.bias", f"encoder.embed.linear.{name}.bias")
    for i in range(recipe["depth"]):
        theirs, ours = f"blocks.{i}.", f"encoder.blocks.{i}."
        for end in ("weight", "bias"):
            thirds = [source.parts.get(f"{theirs}{letter}.{end}") for letter in "qkv"]
            like = next((part.value for part in thirds if part is not None), None)
            if like is not None:  # keys of some networks have no bias, which is a bias of zero
                value = torch.cat([torch.zeros_like(like) if part is None else part.value for part in thirds])
                names = tuple(dict.fromkeys(name for part in thirds if part is not None for name in part.theirs))
                filled[f"{ours}attn.qkv.{end}"] = (value, names, "copied" if len(names) == 1 else "joined")
            for part, mine, scale in (("proj", "attn.proj", "scale1"), ("fc2", "mlp.fc2", "scale2")):
                _copy(filled, source, f"{theirs}{part}.{end}", f"{ours}{mine}.{end}", scale=f"{theirs}{scale}")
            _copy(filled, source, f"{theirs}fc1.{end}", f"{ours}mlp.fc1.{end}")
    return filled


def _rotary(source: Transformer, recipe: dict[str, Any], how: str) -> Filled:
    """The tensors of ``eva_mae``'s encoder; the sequences of a cube are added up, so each has a share."""
    filled = _shared(source, recipe, how, share=len(recipe["sequences"]))
    _copy(filled, source, "patch.bias", "encoder.embed.bias")
    table = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "proj": "attn.proj", "attn_norm": "attn.norm",
             "gate": "mlp.gate", "value": "mlp.value", "mlp_norm": "mlp.norm", "fc2": "mlp.out"}  # fmt: skip
    for i in range(recipe["depth"]):
        for theirs, ours in table.items():
            for end in ("weight", "bias"):
                _copy(filled, source, f"blocks.{i}.{theirs}.{end}", f"encoder.blocks.{i}.{ours}.{end}")
        for k in (1, 2):
            _copy(filled, source, f"blocks.{i}.scale{k}", f"encoder.blocks.{i}.scale{k}.gamma")
    return filled


def _shared(source: Transformer, recipe: dict[str, Any], how: str, *, share: int) -> Filled:
    """Patch embeddings, [CLS] and norms."""
    filled: Filled = {}
    kernel = source.parts["patch.weight"]
    rows = inflate(kernel.value.float(), recipe["patch"][2], how=how).flatten(1) / share
    for name in recipe["sequences"]:
        filled[f"encoder.embed.linear.{name}.weight"] = (rows, kernel.theirs, "inflated")
    if (cls := source.parts.get("cls")) is not None:
        positions = source.parts.get("positions")
        own = cls.value.reshape(1, -1, cls.value.shape[-1])
        if (
            positions is not None
            and positions.value.ndim == 3
            and math.isqrt(k := positions.value.shape[1] - 1) ** 2 == k
        ):
            # [CLS] has a row of positions there, and no position here.
            filled["encoder.prefix_tokens"] = (own + positions.value[:, :1], (*cls.theirs, *positions.theirs), "added")
        else:
            filled["encoder.prefix_tokens"] = (own, cls.theirs, "copied")
    for end in ("weight", "bias"):
        _copy(filled, source, f"norm.{end}", f"encoder.norm.{end}")
        for i in range(recipe["depth"]):
            for norm in ("norm1", "norm2"):
                _copy(filled, source, f"blocks.{i}.{norm}.{end}", f"encoder.blocks.{i}.{norm}.{end}")
    return filled


def _copy(filled: Filled, source: Transformer, theirs: str, ours: str, *, scale: str = "") -> None:
    """Take one tensor over; a factor per feature behind it (layer scale) is multiplied in, which is the same."""
    if (part := source.parts.get(theirs)) is None:
        return
    if (factor := source.parts.get(scale)) is None:
        filled[ours] = (part.value, part.theirs, "copied")
    else:
        by = factor.value.reshape(-1, *(1,) * (part.value.ndim - 1))
        filled[ours] = (part.value * by, (*part.theirs, *factor.theirs), "scaled")


def _fill(method: Method, filled: Filled, source: Transformer, path: Path) -> Report:
    """Copy into the network, strictly."""
    own = dict(method.named_parameters())
    rows, faults = [], []
    for name, (value, theirs, rule) in filled.items():
        if name not in own:
            faults.append(f"{theirs[0]} has no place ({name})")
        elif own[name].shape != value.shape:
            faults.append(f"{theirs[0]} gives {tuple(value.shape)} for {name}, which is {tuple(own[name].shape)}")
        else:
            with torch.no_grad():
                own[name].copy_(value)
            rows.append(Row(name, theirs, rule, tuple(value.shape)))
    blocks = [name for name in own if name.startswith("encoder.blocks.") and name not in filled]
    faults += [f"nothing in the file fills {name}" for name in blocks[:3]]
    if faults:
        raise CheckpointError(f"{path} does not fit: {'; '.join(faults[:4])}")
    used = {name for row in rows for name in row.theirs}
    known = [name for part in source.parts.values() for name in part.theirs]
    unused = dict.fromkeys([*source.left, *source.strange, *(name for name in known if name not in used)])
    return Report(tuple(rows), tuple(unused), tuple(name for name in own if name not in filled))


def _heads_hint(method: str) -> str:
    return (
        ". EVA-02's heads of 64 features cannot turn about three axes; --heads cuts the same maps into others, whose "
        "attention differs from that of the images"
        if method == "eva_mae"
        else ""
    )
