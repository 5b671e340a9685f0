"""Weights of nnssl, OpenMind, nnFoundation and plain nnU-Net as a model folder: ResEnc U-Nets and Primus transformers.

They come in one layout (``nnunet_file.py``). A U-Net becomes ``resenc_mae``, whose tensors have nnU-Net's names, so
nothing but aliases has to be undone; a Primus becomes ``eva_mae``. Sizes are read off the shapes.

All of nnssl's networks see one channel of any sequence, which has no name. It is called ``any`` here unless told
otherwise; a name says that the channel is for that sequence and no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmae.atomic import write_text
from medmae.checkpoint import README, file_hash, first_names, save_model
from medmae.core.errors import CheckpointError, UsageError
from medmae.core.method import Method
from medmae.core.sequences import canonical
from medmae.find import find
from medmae.nets.primus_keys import from_primus

from .nnunet_file import NnUnetFile, mapping, read_nnunet_file
from .unet_keys import canonical_key, first_convolution, has_decoder, is_unet, unet_recipe

LICENSE = "that of the file: CC BY-SA 4.0 for nnFoundation, CC BY 4.0 for OpenMind"
NOTICE = (
    "Both ask that their authors are named, and nnFoundation that what is made of its weights is shared under the same "
    "license. The file does not say which it is: where you got it does. Weights of your own training are yours."
)
CITE = "Wald, Ulrich, Suprijadi, et al. An OpenMind for 3D medical vision self-supervised learning. ICCV 2025."
ANY = "any"
"""Name of a channel that has seen every sequence."""

HEADS = {396: 6, 792: 12, 864: 12, 1056: 16}
"""Attention heads of the published Primus sizes by their width; they leave no trace in the shapes."""


@dataclass(frozen=True)
class Report:
    """What became of the tensors; names are plain ones, aliases counted once.

    Attributes:
        used: loaded.
        unused: in the file, without a place in the model.
        missing: of the model and not in the file, although its kind should be.
        fresh: of the model and not in the file, because the file has no such part: they start from random numbers.
        notes: what a reader should know.
    """

    used: tuple[str, ...]
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"used {len(self.used)}/{len(self.used) + len(self.unused)}"
        parts = [f"{kind} {_listed(getattr(self, kind))}" for kind in ("unused", "missing", "fresh")]
        return "; ".join([", ".join([counts, *parts]), *self.notes])


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: the model with its weights, what builds it, and what became of every tensor."""

    method: Method
    name: str
    recipe: dict[str, Any]
    report: Report
    file: NnUnetFile
    source: Path


def convert(
    path: str | Path, *, strict: bool = True, sequence: str | None = None, heads: int | None = None
) -> Converted:
    """Read a checkpoint and build the model it fits.

    Args:
        path: ``checkpoint_final.pth`` or the like; ``adaptation_plan.json`` beside it is read too. Nothing is executed.
        strict: refuse a file of which a tensor is left over or missing. A file without a decoder is fine.
        sequence: what the channels are, separated by commas in their order. None takes the names that nnU-Net wrote,
            or ``any`` for one channel.
        heads: attention heads of a Primus of none of the published sizes.

    Raises:
        UsageError: no such file, or not as many names as channels.
        CheckpointError: it is damaged, would have to run code to be read, is of another kind, or (``strict``) does not
            fit entirely.
    """
    path = Path(path)
    file = read_nnunet_file(path)
    if is_unet(file.weights):
        name, recipe, weights = _unet(file, path, sequence)
        own = ("encoder.", "decoder.")
    elif file.is_primus:
        name, recipe, weights = _primus(file, path, sequence, heads)
        own = ("encoder.", "decoder.")
    else:
        first = ", ".join(list(file.weights)[:3])
        raise CheckpointError(f"{path}: neither a U-Net of nnU-Net nor a Primus; its first tensors are {first}")
    found = find(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = found.build(**recipe)
    report = _fill(method, weights, decoder=any(key.startswith("decoder.") for key in weights), notes=file.notes)
    odd = [key for key in report.unused if key.startswith(own)] or list(report.unused)
    if strict and (odd or report.missing):
        raise CheckpointError(
            f"{path}: does not fit {name}: {report}. With strict=False (--no-strict) what fits is loaded and the rest "
            "reported."
        )
    return Converted(method, name, found.recipe(**recipe), report, file, path)


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
    recipe, report, file = converted.recipe, converted.report, converted.file
    preprocess = {"orientation": file.orientation, "normalize": "zscore"}
    if file.spacing is not None:
        preprocess["spacing"] = list(file.spacing)  # type: ignore[assignment]
    about = {
        "license": LICENSE,
        "license_notice": NOTICE,
        "citation": [find(converted.name).card.citation, CITE, *_cited(file)],
        "data": {"sequences": recipe["sequences"], "preprocess": preprocess, "crop": recipe["size"]},
        "converted": {
            "from": "checkpoint in the layout of nnU-Net and nnssl",
            "sha256": file_hash(converted.source),
            "used": len(report.used),
            "unused": list(report.unused),
            "missing": list(report.missing),
            "fresh": list(report.fresh),
        },
    }
    save_model(folder, converted.method, name=converted.name, recipe=recipe, about=about)
    card = (folder / README).read_text("utf-8") + f"\n## License of these weights\n\n{LICENSE}. {NOTICE}\n"
    write_text(folder / README, card)
    return folder


def _unet(file: NnUnetFile, path: Path, sequence: str | None) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Name, recipe and weights of a U-Net; heads for another number of outputs (classes) are left out."""
    weights = file.weights
    network = unet_recipe(weights, strides=_strides(file))
    first = first_convolution(weights)
    if first is None or weights[first].ndim != 5:
        raise CheckpointError(f"{path}: its network has no first convolution over volumes; 2-D networks are not taken")
    names = _channels(file, weights[first].shape[1], sequence, path)
    total = [math.prod(stride[axis] for stride in network["strides"]) for axis in range(3)]
    size = file.patch or tuple(max(160 - 160 % t, 2 * t) for t in total)
    if len(size) != 3 or any(n % t for n, t in zip(size, total, strict=True)):
        size = tuple(max(n - n % t, 2 * t) for n, t in zip((size * 3)[:3], total, strict=True))
    outputs = {len(value) for key, value in weights.items() if key.startswith("decoder.seg_layers.")}
    if outputs and (file.has_classes or outputs != {len(names)}):
        weights = {key: value for key, value in weights.items() if not key.startswith("decoder.seg_layers.")}
    block = [math.gcd(n, 16) for n in size]
    return "resenc_mae", {"sequences": list(names), "size": list(size), "block": block, **network}, weights


def _primus(
    file: NnUnetFile, path: Path, sequence: str | None, heads: int | None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Name, recipe and weights of a Primus."""
    stored = file.weights
    stem = stored.get("down_projection.proj.weight")
    gate = stored.get("eva.blocks.0.mlp.fc1_g.weight")
    if stem is None or stem.ndim != 5 or gate is None:
        raise CheckpointError(
            f"{path}: a Primus with another patch embedding or MLP than the first version; only that one is taken"
        )
    width, patch, names = len(stem), tuple(stem.shape[2:]), _channels(file, stem.shape[1], sequence, path)
    kwargs = mapping(mapping(file.adaptation.get("architecture_plans")).get("arch_kwargs"))
    heads = heads or kwargs.get("eva_numheads") or kwargs.get("encoder_eva_numheads") or HEADS.get(width)
    if heads is None or width % (6 * heads):
        raise CheckpointError(
            f"{path}: how many attention heads its width of {width} is split into cannot be read off a file; the "
            f"published widths are {', '.join(map(str, HEADS))}. Say it: medmae.convert.nnssl.convert(..., heads=N)"
        )
    registers = stored["register_tokens"].shape[1] if "register_tokens" in stored else 0
    positions = stored.get("eva.pos_embed")
    size = file.patch
    if size is None or any(n % p for n, p in zip(size, patch, strict=True)):
        edge = round((positions.shape[1] - registers) ** (1 / 3)) if positions is not None else 20
        size = tuple(edge * p for p in patch)
    table = tuple(n // p for n, p in zip(size, patch, strict=True)) if positions is not None else ()
    autoencoder = "decoder.norm.weight" in stored
    decoder_depth = _depth(stored, "decoder.blocks.") if autoencoder else 2
    recipe = {
        "sequences": list(names),
        "size": list(size),
        "patch": list(patch),
        "width": width,
        "depth": _depth(stored, "eva.blocks."),
        "heads": int(heads),
        "mlp_ratio": 8 / 3 if int(width * 8 / 3) == len(gate) else len(gate) / width,
        "table": list(table),
        "axes": [1, 0, 2] if autoencoder else [0, 1, 2],
        "registers": registers,
        "inner_norm": "eva.blocks.0.attn.norm.weight" in stored,
        "layer_scale": 0.1 if "eva.blocks.0.gamma_1" in stored else None,
        "decoder_depth": decoder_depth,
        "decoder_heads": int(heads),
    }
    try:
        weights, unused = from_primus(stored, names=names, patch=patch, table=table)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    left = {key: stored[key] for key in unused if not key.startswith("up_projection.") and key != "mask_token"}
    return "eva_mae", recipe, weights | left


def _channels(file: NnUnetFile, count: int, sequence: str | None, path: Path) -> tuple[str, ...]:
    """Names of the channels."""
    given = [name for name in (sequence or "").split(",") if name.strip()]
    named = given or list(file.channels) or ([ANY] if count == 1 else [])
    names = tuple(dict.fromkeys(canonical(name) for name in named))
    if len(names) != count:
        raise UsageError(
            f"{path}: its network has {count} input channels and {len(names)} names are known"
            f"{f' ({chr(44).join(names)})' if names else ''}: say what they are, in order, with --sequence t1n,t1c,..."
        )
    return names


def _strides(file: NnUnetFile) -> Sequence[Sequence[int]] | None:
    """From the plan in the file, for encoders that came without their decoder."""
    if has_decoder(file.weights):
        return None
    kwargs = mapping(mapping(file.adaptation.get("architecture_plans")).get("arch_kwargs"))
    strides = kwargs.get("strides")
    if not isinstance(strides, list | tuple) or not all(isinstance(entry, list | tuple) for entry in strides):
        return None
    return [[int(n) for n in entry] for entry in strides]


def _fill(method: Method, weights: Mapping[str, Tensor], *, decoder: bool, notes: tuple[str, ...]) -> Report:
    state = method.state_dict()
    alias = first_names(state)
    own = {canonical_key(key): state[key] for key in state if alias[key] == key}
    used, unused = [], []
    with torch.no_grad():
        for key, value in weights.items():
            if key in own and own[key].shape == value.shape:
                own[key].copy_(value)
                used.append(key)
            else:
                why = f" {tuple(value.shape)}, expected {tuple(own[key].shape)}" if key in own else ""
                unused.append(key + why)
    absent = [key for key in own if key not in set(used)]
    fresh = [key for key in absent if key.startswith("decoder.") and (not decoder or ".seg_layers." in key)]
    missing = tuple(key for key in absent if key not in set(fresh))
    return Report(tuple(used), tuple(unused), missing, tuple(fresh), notes)


def _cited(file: NnUnetFile) -> list[str]:
    """Papers named in the file."""
    lines: list[str] = []
    for entry in file.citations:
        for kind in ("apa_citations", "bibtex_citations"):
            lines += [str(line) for line in entry.get(kind) or ()]
    return list(dict.fromkeys(lines))


def _depth(stored: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max((int(key[len(prefix) :].split(".")[0]) for key in stored if key.startswith(prefix)), default=-1)


def _listed(keys: tuple[str, ...]) -> str:
    return f"{len(keys)} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})" if keys else "0"
