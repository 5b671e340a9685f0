"""Fit pre-trained weights into a network that nnU-Net planned; the plan is never changed.

Every data set gets its own plan: kernels of one voxel along thick slices, fewer or more stages, other channels, axes
in another order. Forcing the pre-training's plan on it instead costs accuracy where spacing matters, so the weights
give way, each in the way that changes what it computes least:

- axes: kernels are permuted so that each works along the same anatomical line as before. They are not flipped where an
  axis points the other way: grids of stride-2 stages are not symmetric, so no flip of the kernels is exact.
- channels: by name. What has no namesake gets the sum of all channels over the new number of channels.
- kernels that lose taps along an axis keep their sum (outer taps are folded onto the edge): the response to anything
  constant along it stays, and so does the scale that a random start of the smaller kernel would have. Where a norm
  follows, the scale is irrelevant. Kernels that gain taps get zeros around.
- transposed convolutions that lose a stride take the mean of the voxels they wrote, and those that gain one repeat:
  their kernel is their stride, so every tap writes another voxel.
- stages are matched from the finest on, in encoder and decoder; further ones stay random.
- different numbers of features do not fit; the tensor is skipped and said so.

A transformer's weights go into its own encoder by name, and its network turns the axes of its input; the share is then
that of the encoder, as the decoder of pre-training is no part of a segmentation network.

Segmentation heads are never copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.checkpoint import first_names
from medmae.convert.unet_keys import canonical_key, first_convolution, stage_count
from medmae.core.errors import UsageError

from .plans import axis_order, meant
from .weights import Source

_LEVEL = re.compile(r"^decoder\.(stages|transpconvs|seg_layers)\.(\d+)\.")
_STEMS = "encoder.stems.each."


@dataclass(frozen=True)
class AdaptReport:
    """What became of every tensor; names are those of the target, ``skipped`` those of the source.

    Attributes:
        loaded: copied as they are, up to the order of axes.
        inflated: made to fit, with what was done.
        skipped: of the source and not used, with the reason.
        random: of the target and as it was initialized.
        share: of the target's parameters in ``scope`` that are loaded or inflated; each tensor counts once, however
            many names it has, and segmentation heads do not count.
        scope: what ``share`` is measured over: ``network``, or ``encoder`` where the source has no such decoder.
        notes: what a reader should know.
    """

    loaded: tuple[str, ...] = ()
    inflated: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    share: float = 0.0
    scope: str = "network"
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.share:.1%} of the {self.scope}'s parameters come from the checkpoint"]
        for kind in ("loaded", "inflated", "skipped", "random"):
            names = getattr(self, kind)
            few = names if kind != "loaded" else ()
            more = f", and {len(few) - 6} more" if len(few) > 6 else ""
            lines.append(f"  {kind}: {len(names)}" + (f" ({'; '.join(few[:6])}{more})" if few else ""))
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def adapt(
    source: Source, network: nn.Module, *, channels: Sequence[str], orientation: str | None = None
) -> AdaptReport:
    """Copy into ``network``, in place, whatever fits or can be made to fit.

    Args:
        source: the weights.
        network: a U-Net of nnU-Net, or for transformers one with the method's encoder at ``encoder``.
        channels: names of the network's input channels in order; "" for one that is no image and stays random.
        orientation: axis codes of the arrays the network will see; None leaves all axes as they are.

    Raises:
        CheckpointError: an orientation that is none.
        UsageError: not one name per input channel.
    """
    order = axis_order(source.orientation, orientation) if orientation else (0, 1, 2)
    ours, target_names = _unique(network)
    notes = list(source.notes)
    if source.kind == "cnn":
        given, prepared = _stacked(source)
        wanted = {name: _role(canonical_key(name), stage_count(target_names)) for name in ours}
        entries = {_role(key, stage_count(given)): (key, value) for key, value in given.items()}
        first = first_convolution(target_names)
        count = len(channels) if first is None else target_names[first].shape[1]
        if count != len(channels):
            raise UsageError(f"the network has {count} input channels, {len(channels)} are named")
    else:
        given, prepared = _sequences(source, ours, getattr(network, "sequences", channels))
        notes += _turned(source, network, orientation)
        wanted = {name: name for name in ours}
        entries = {key: (key, value) for key, value in given.items()}
        first = None
    if order != (0, 1, 2) and source.kind == "cnn":
        notes.append(f"axes are taken in the order {order}: {source.orientation} became {orientation}")
    names = _Names(source.channels, channels)
    loaded, inflated, random, failed, used = [], [], [], {}, set()
    heads = {name for name in ours if ".seg_layers." in name}
    with torch.no_grad():
        for name, value in ours.items():
            role = wanted[name]
            if name in heads or role not in entries:
                random.append(name)
                continue
            key, tensor = entries[role]
            fitted, done = tensor, list(prepared.get(key, ()))
            if source.kind == "cnn":
                entry = names if canonical_key(name) == first else None
                fitted = _fitted(tensor, value, done, order=order, names=entry, transposed=".transpconvs." in name)
            if fitted.shape != value.shape:
                failed[key] = f"{key}: {_shape(tensor)} does not fit {_shape(value)}"
                random.append(name)
                continue
            value.copy_(fitted)
            used.add(key)
            if done:
                inflated.append(f"{name}: {', '.join(done)}")
            else:
                loaded.append(name)
    if first is not None:
        notes += names.notes(given[first].shape[1] if first in given else 0)
    skipped = [failed.get(key, f"{key}: {_why(role)}") for role, (key, _) in entries.items() if key not in used]
    whole = source.kind == "cnn" and source.whole
    inside = [name for name in ours if name not in heads and (whole or name.startswith("encoder."))]
    kept = set(random)
    total = sum(ours[name].numel() for name in inside)
    share = sum(ours[name].numel() for name in inside if name not in kept) / total if total else 0.0
    if not whole:
        notes.append("the checkpoint has no decoder of this kind: the share is that of the encoder, the rest is random")
    return AdaptReport(
        tuple(loaded),
        tuple(inflated),
        tuple(skipped),
        tuple(random),
        share=share,
        scope="network" if whole else "encoder",
        notes=tuple(notes),
    )


class _Names:
    """Which channel of the source a channel of the target is."""

    def __init__(self, source: Sequence[str], target: Sequence[str]) -> None:
        known, wanted = [meant(name) for name in source], [meant(name) for name in target]
        self.source, self.target = list(source), list(target)
        self.match = [known.index(name) if name and name in known else None for name in wanted]

    def notes(self, count: int) -> list[str]:
        """How the source's ``count`` channels were matched, in words."""
        images = [(name, self.match[i]) for i, name in enumerate(self.target) if name]
        without = [name for name, match in images if match is None]
        if len(self.source) != count:
            kept = count == len(self.target) == len(images)
            how = "they are taken in their order" if kept else "every channel starts from their mean"
            return [f"the checkpoint does not name its channels: {how}"]
        if not without:
            return []
        known = f"the checkpoint's ({', '.join(self.source)})"
        if len(without) == len(images):
            return [f"no channel of the data set ({', '.join(without)}) is one of {known}: all start from a mean"]
        return [f"{', '.join(without)}: called like none of {known}, starts from a mean of them"]


def _fitted(
    weight: Float[Tensor, "*k"],
    value: Float[Tensor, "*l"],
    done: list[str],
    *,
    order: tuple[int, ...],
    names: _Names | None,
    transposed: bool,
) -> Float[Tensor, "*m"]:
    """A tensor of a U-Net with other axes, channels (where ``names`` says which) and kernel size; adds to ``done``."""
    if weight.ndim == 5 and order != (0, 1, 2):
        weight = weight.permute(0, 1, *(axis + 2 for axis in order))
    if names is not None:
        weight = _by_channel(weight, value, names, done)
    return _by_kernel(weight, value, done, transposed=transposed)


def _by_channel(
    weight: Float[Tensor, "out c *k"], value: Float[Tensor, "wanted d *l"], names: _Names, done: list[str]
) -> Float[Tensor, "out _ *k"]:
    """The first convolution for other channels: namesakes are copied, the others get the sum over the new number."""
    c, d = weight.shape[1], value.shape[1]
    match = names.match if len(names.source) == c else [None] * d
    images = all(names.target)
    if c == d and images and (match == list(range(d)) or c == 1 or len(names.source) != c):
        return weight
    if len(weight) != len(value) or weight.ndim != value.ndim:
        return weight
    mean = weight.sum(1) / d
    columns = [mean if at is None else weight[:, at] for at in match]
    for j, name in enumerate(names.target):
        if not name:
            columns[j] = _folded(value[:, j], weight[:, 0])
    done.append(f"channels {c} -> {d}")
    return torch.stack(columns, 1)


def _folded(value: Float[Tensor, "*k"], like: Float[Tensor, "*l"]) -> Float[Tensor, "*l"]:
    """The random start of a channel in the kernel size of the source, so that it comes out again as it was."""
    grown = value
    for axis in range(1, value.ndim):
        grown = _sized(grown, axis, like.shape[axis])
    return grown


def _by_kernel(
    weight: Float[Tensor, "*k"], value: Float[Tensor, "*l"], done: list[str], *, transposed: bool
) -> Float[Tensor, "*m"]:
    """Other kernel sizes, axis by axis; a tensor that cannot be changed comes back as it was."""
    if weight.ndim != value.ndim or weight.ndim < 3 or weight.shape[2:] == value.shape[2:]:
        return weight
    change: Callable[[Tensor, int, int], Tensor] = _restrided if transposed else _sized
    fitted = weight
    for axis in range(2, weight.ndim):
        fitted = change(fitted, axis, value.shape[axis])
    if fitted.shape == value.shape:
        done.append(f"{'stride' if transposed else 'kernel'} {_shape(weight, 2)} -> {_shape(value, 2)}")
    return fitted


def _sized(weight: Float[Tensor, "*k"], axis: int, size: int) -> Float[Tensor, "*l"]:
    """A kernel of ``size`` taps along an axis: folded onto its middle with its sum kept, or with zeros around."""
    now = weight.shape[axis]
    if now == size or now % 2 == 0 or size % 2 == 0:
        return weight
    if size > now:
        padding = [0, 0] * (weight.ndim - 1 - axis) + [(size - now) // 2] * 2
        return nn.functional.pad(weight, padding)
    cut = (now - size) // 2
    low, middle, high = weight.split([cut + 1, size - 2, cut + 1], axis) if size > 1 else (weight, weight, weight)
    if size == 1:
        return weight.sum(axis, keepdim=True)
    return torch.cat([low.sum(axis, keepdim=True), middle, high.sum(axis, keepdim=True)], axis)


def _restrided(weight: Float[Tensor, "*k"], axis: int, size: int) -> Float[Tensor, "*l"]:
    """A transposed convolution of another stride: the mean of the voxels it wrote, or each of them repeated."""
    now = weight.shape[axis]
    if now % size == 0:
        return weight.unflatten(axis, (size, now // size)).mean(axis + 1)
    return weight.repeat_interleave(size // now, axis) if size % now == 0 else weight


def _unique(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a network by their first name, and the same by plain name."""
    state = network.state_dict()
    alias = first_names(state)
    ours = {name: value for name, value in state.items() if alias[name] == name and value.is_floating_point()}
    return ours, {canonical_key(name): value for name, value in ours.items()}


def _role(key: str, stages: int) -> str:
    """What a tensor is for, whatever the number of stages: decoder stages count from the finest."""
    found = _LEVEL.match(key)
    if found is not None:
        level = stages - 2 - int(found[2])
        return f"decoder.{found[1]}.level{level}.{key[found.end() :]}"
    return re.sub(r"\.skip\.\d+\.", ".skip.", key)  # the projection comes second only where a pooling comes first


def _stacked(source: Source) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The weights with one stem over all channels, and what was done to get it.

    One stem per sequence and the mean of them becomes one convolution over all channels divided by their number; the
    norm after it gets the mean of the norms, as there is but one.
    """
    weights = dict(source.weights)
    stems = {key: weights.pop(key) for key in list(weights) if key.startswith(_STEMS)}
    if not stems:
        return weights, {}
    present = [name for name in source.channels if any(key.startswith(f"{_STEMS}{name}.") for key in stems)]
    prepared = {}
    for rest in sorted({key[len(_STEMS) :].partition(".")[2] for key in stems}):
        each = [stems[f"{_STEMS}{name}.{rest}"] for name in present]
        first = rest == "convs.0.conv.weight"
        weights[f"encoder.stem.{rest}"] = torch.cat(each, 1) / len(each) if first else torch.stack(each).mean(0)
        prepared[f"encoder.stem.{rest}"] = [f"{len(each)} stems {'stacked' if first else 'averaged'}"]
    return weights, prepared


def _sequences(
    source: Source, ours: Mapping[str, Tensor], channels: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Encoder tensors of a transformer; those of a sequence it has not seen are the mean over the ones it has."""
    weights = {key: value for key, value in source.weights.items() if key.startswith("encoder.")}
    prepared = {}
    for name in channels:
        for key in ours:
            parts = key.split(".")
            if key in weights or not name or meant(name) not in parts:
                continue
            at = parts.index(meant(name))
            each = [weights.get(".".join([*parts[:at], other, *parts[at + 1 :]])) for other in source.channels]
            there = [value for value in each if value is not None]
            if there:
                weights[key] = torch.stack(there).mean(0)
                prepared[key] = [f"mean over {len(there)} sequences"]
    return weights, prepared


def _turned(source: Source, network: nn.Module, orientation: str | None) -> list[str]:
    """A transformer's network turns its input itself, as its plans say: a note where the images lie otherwise."""
    axes = getattr(network, "axes", None)
    if axes is None or not orientation or tuple(axes) == axis_order(orientation, source.orientation):
        return []
    return [
        f"the plans give the transformer the axes {tuple(axes)}, and these images ({orientation}) would need "
        f"{axis_order(orientation, source.orientation)} to lie as those it has seen ({source.orientation})"
    ]


def _why(role: str) -> str:
    return "heads are never copied" if ".seg_layers." in role else "the network has no such part"


def _shape(value: Tensor, start: int = 0) -> str:
    return "x".join(map(str, value.shape[start:]))
