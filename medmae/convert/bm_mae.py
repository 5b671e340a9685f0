"""The published weights of BM-MAE (``bmmae.pth``, ``bmmae_tcga.pth``) as a model folder.

The file is a plain state dict of 207 tensors. One table, :func:`key_table`, says where each goes. Sizes are read off
the shapes; the number of attention heads leaves no trace in them and is the published one unless said otherwise.
Position codes are stored in the file although they are fixed: they are compared with the formula and not loaded, so
that a file made for another grid order is noticed and any volume size stays possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medmae.atomic import write_text
from medmae.checkpoint import README, save_model
from medmae.core.errors import CheckpointError, UsageError
from medmae.core.grid import Grid
from medmae.core.method import Method
from medmae.core.sequences import canonical, in_order
from medmae.find import find
from medmae.nets.positions import sincos

from .reading import read_tensors

LICENSE = "CC BY-NC 4.0"
NOTICE = (
    "The published BM-MAE weights are licensed CC BY-NC 4.0 by their authors: not for commercial use, "
    "attribution required. This holds for the converted folder and for everything trained from it."
)
PREPROCESS = {
    "orientation": "LPS",  # BraTS files are stored so, and the reference does not reorient
    "spacing": [1.0, 1.0, 1.0],
    "normalize": "zscore_foreground",
}
TOLERANCE = 1e-5  # of the stored position codes; a code is at most 1

_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.out_proj": "attn.proj",
    "mlp.linear1": "mlp.fc1",
    "mlp.linear2": "mlp.fc2",
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor of the published file goes.

    Attributes:
        theirs: its name in the file.
        ours: the parameter of ours, or None where it is checked and not loaded.
        shape: how it is laid out here, from how it is laid out there.
    """

    theirs: str
    ours: str | None
    shape: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Report:
    """What became of the tensors.

    Attributes:
        used: names in the file that were loaded, or checked against their formula.
        unused: names in the file that the model has no place for.
        missing: names the model needs that the file lacks.
        checked: those of ``used`` that were compared and not loaded.
    """

    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    checked: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether everything in the file was used and nothing is missing."""
        return not self.unused and not self.missing

    def __str__(self) -> str:
        total = len(self.used) + len(self.unused)
        text = f"used {len(self.used)}/{total} ({len(self.checked)} position codes checked against their formula)"
        return f"{text}, unused {_listed(self.unused)}, missing {_listed(self.missing)}"


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        method: the model with the published weights.
        recipe: what builds it.
        report: what became of every tensor.
    """

    method: Method
    recipe: dict[str, Any]
    report: Report


def key_table(names: Mapping[str, str], *, depth: int, decoder_depth: int) -> tuple[Entry, ...]:
    """Every tensor of the published layout: 207 for four sequences, 12 encoder and 3 decoder blocks.

    Args:
        names: sequence in the file -> sequence here.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
    """
    table = [Entry("cls_token", "encoder.prefix_tokens", _same)]
    for theirs, ours in names.items():
        stem = f"tokenizers.{theirs}.patch_embedding"
        table.append(Entry(f"{stem}.position_embeddings", None, _same))
        table.append(Entry(f"{stem}.patch_embeddings.weight", f"encoder.embed.linear.{ours}.weight", _rows))
        table.append(Entry(f"{stem}.patch_embeddings.bias", f"encoder.embed.linear.{ours}.bias", _same))
    table += _blocks("blocks", "encoder.blocks", depth) + _linear("norm", "encoder.norm")
    table.append(Entry("decoder.mask_tokens", "decoder.mask_token", _vector))
    table.append(Entry("decoder.position_embeddings", None, _same))
    for theirs, ours in (("embed", "embed"), ("norm", "norm"), ("pred", "head")):
        table += _linear(f"decoder.decoder_{theirs}", f"decoder.{ours}")
    for theirs, ours in names.items():
        table.append(Entry(f"decoder.modality_embeddings.{theirs}", f"decoder.modality.{ours}", _vector))
    return tuple(table + _blocks("decoder.decoder_blocks", "decoder.blocks", decoder_depth))


def convert(
    path: str | Path,
    *,
    heads: int = 12,
    decoder_heads: int = 12,
    size: tuple[int, ...] | None = None,
    strict: bool = True,
) -> Converted:
    """Read a published file.

    Args:
        path: ``.pth`` or safetensors.
        heads: attention heads of the encoder (they leave no trace in the shapes).
        decoder_heads: attention heads of the decoder.
        size: voxels per axis; by default the cube that has as many patches as the file has positions.
        strict: raise where a tensor is missing or unused, or a position code is not the formula's. With False
            those tensors are ignored or left at their initial values (the same every time), and the report says so.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read safely, or does not fit.
    """
    stored = read_tensors(path)
    try:
        recipe, names = _infer(stored, heads=heads, decoder_heads=decoder_heads, size=size)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: not the layout of a BM-MAE checkpoint: {error}") from error
    found = find("bm_mae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = found.build(**recipe)
    table = key_table(names, depth=recipe["depth"], decoder_depth=recipe["decoder_depth"])
    report = _load(method, stored, table, recipe, path=Path(path), strict=strict)
    return Converted(method, recipe, report)


def save(converted: Converted, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model folder, with the license of the weights in its config and card.

    Raises:
        UsageError: ``folder`` exists, is not empty, and ``overwrite`` is not set.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise UsageError(
            f"{folder} exists and is not empty; give another --out, or --overwrite to replace the model in it"
        )
    recipe, report = converted.recipe, converted.report
    about = {
        "license": LICENSE,
        "license_notice": NOTICE,
        "data": {"sequences": recipe["sequences"], "preprocess": PREPROCESS, "crop": recipe["size"]},
        "converted": {
            "from": "BM-MAE (Lucas-rbnt/BM-MAE), state dict",
            "used": len(report.used),
            "unused": list(report.unused),
            "missing": list(report.missing),
        },
    }
    save_model(folder, converted.method, name="bm_mae", recipe=recipe, about=about)
    card = (folder / README).read_text("utf-8") + f"\n## License of these weights\n\n{LICENSE}. {NOTICE}\n"
    write_text(folder / README, card)
    return folder


def _infer(
    stored: Mapping[str, Tensor], *, heads: int, decoder_heads: int, size: tuple[int, ...] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved recipe, and the sequences: theirs -> ours in our order."""
    theirs = list(
        dict.fromkeys(key.split(".")[1] for key in stored if key.startswith("tokenizers.") and key.count(".") > 2)
    )
    if not theirs:
        raise ValueError(
            f"no 'tokenizers.*' among its {len(stored)} tensors (the first are {', '.join(list(stored)[:3])})"
        )
    ours = {canonical(name): name for name in theirs}
    if len(ours) < len(theirs):
        raise ValueError(f"two of its sequences {theirs} have one name here ({sorted(ours)})")
    names = {ours[name]: name for name in in_order(tuple(ours))}
    stem = f"tokenizers.{theirs[0]}.patch_embedding"
    weight = _shaped(stored, f"{stem}.patch_embeddings.weight", 5)
    if weight.shape[1] != 1:
        raise ValueError(f"its sequences have {weight.shape[1]} channels each, not one")
    patch, width = tuple(weight.shape[2:]), len(weight)
    if size is None:
        count = _shaped(stored, f"{stem}.position_embeddings", 3).shape[1]
        edge = round(count ** (1 / 3))
        if edge**3 != count:
            raise ValueError(f"its {count} positions per sequence are no cube: say the size in voxels per axis")
        size = tuple(edge * p for p in patch)
    sizes: dict[str, Any] = {"sequences": tuple(names.values()), "size": size, "patch": patch}
    sizes |= {"width": width, "heads": heads, "depth": _depth(stored, "blocks."), "decoder_heads": decoder_heads}
    if "blocks.0.mlp.linear1.weight" in stored:
        sizes["mlp_ratio"] = len(_shaped(stored, "blocks.0.mlp.linear1.weight", 2)) / width
    if "decoder.decoder_embed.weight" in stored:
        inner = len(_shaped(stored, "decoder.decoder_embed.weight", 2))
        sizes |= {"decoder_width": inner, "decoder_depth": _depth(stored, "decoder.decoder_blocks.")}
        if "decoder.decoder_blocks.0.mlp.linear1.weight" in stored:
            hidden = len(_shaped(stored, "decoder.decoder_blocks.0.mlp.linear1.weight", 2))
            sizes["decoder_mlp_ratio"] = hidden / inner
    return find("bm_mae").recipe(preset="published", **sizes), names


def _load(
    method: Method,
    stored: Mapping[str, Tensor],
    table: tuple[Entry, ...],
    recipe: dict[str, Any],
    *,
    path: Path,
    strict: bool,
) -> Report:
    """Fill the parameters of ``method`` and say what became of every tensor."""
    own, used, checked, faults = dict(method.named_parameters()), [], [], []
    grid = Grid(tuple(recipe["size"]), tuple(recipe["patch"]))
    filled = set()
    for entry in table:
        value = stored.get(entry.theirs)
        if value is None:
            continue
        if entry.ours is None:
            fault = _check_positions(value, grid)
            checked += [] if fault else [entry.theirs]
        else:
            fault = _fill(own[entry.ours], entry.shape(value))
            filled |= set() if fault else {entry.ours}
        faults += [f"{entry.theirs} {fault}"] if fault else []
        used += [] if fault else [entry.theirs]
    known = {entry.theirs for entry in table}
    lost = set(own) - {entry.ours for entry in table}
    missing = tuple(entry.theirs for entry in table if entry.theirs not in stored) + tuple(sorted(lost))
    report = Report(tuple(used), tuple(key for key in stored if key not in set(used)), missing, tuple(checked))
    if strict and (faults or not report.complete):
        strangers = [key for key in stored if key not in known]
        why = f" {'; '.join(faults[:3])}." if faults else ""
        raise CheckpointError(f"{path}: does not fit BM-MAE: {report}.{why}{_hint(strangers)}")
    return report


def _fill(parameter: Tensor, value: Tensor) -> str:
    """Copy, or say why not."""
    if parameter.shape != value.shape:
        return f"has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}"
    with torch.no_grad():
        parameter.copy_(value)
    return ""


def _check_positions(stored: Float[Tensor, "*shape"], grid: Grid) -> str:
    """Compare stored position codes with the formula, or say how they differ."""
    if stored.ndim != 3 or stored.shape[:2] != (1, grid.length) or stored.shape[2] < 6:
        return f"has shape {tuple(stored.shape)}, expected (1, {grid.length}, width) for a grid of {grid.shape}"
    apart = float((stored[0].float() - sincos(grid.indices(), stored.shape[2])).abs().max())
    return f"is not the sine-cosine code of a grid of {grid.shape} (off by {apart:.2g})" if apart > TOLERANCE else ""


def _hint(unused: list[str]) -> str:
    if any("cross_attn" in key or ".norm_cross" in key for key in unused):
        return (
            " The file was written with MONAI 1.4 or later, whose blocks carry tensors that BM-MAE does not have; "
            "with strict=False (--no-strict) they are left out."
        )
    return " With strict=False (--no-strict) what fits is loaded and the rest reported."


def _blocks(theirs: str, ours: str, depth: int) -> list[Entry]:
    return [
        entry
        for i in range(depth)
        for part, name in _BLOCK.items()
        for entry in _linear(f"{theirs}.{i}.{part}", f"{ours}.{i}.{name}")
    ]


def _linear(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.{end}", f"{ours}.{end}", _same) for end in ("weight", "bias")]


def _depth(stored: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [int(key[len(prefix) :].split(".")[0]) for key in stored if key.startswith(prefix)]
    if not numbers:
        raise ValueError(f"no tensors under {prefix!r}")
    return 1 + max(numbers)


def _shaped(stored: Mapping[str, Tensor], key: str, axes: int) -> Tensor:
    if key not in stored:
        raise ValueError(f"it lacks {key}")
    if stored[key].ndim != axes:
        raise ValueError(f"{key} has shape {tuple(stored[key].shape)}, expected {axes} axes")
    return stored[key]


def _same(value: Tensor) -> Tensor:
    return value


def _rows(value: Tensor) -> Tensor:
    """A strided convolution over one channel as a linear map of the patch: voxel order is the same."""
    return value.flatten(1)


def _vector(value: Tensor) -> Tensor:
    return value.flatten()


def _listed(keys: tuple[str, ...]) -> str:
    if not keys:
        return "0"
    return f"{len(keys)} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
