"""A pre-trained vision transformer as a network that nnU-Net builds from its plans.

Plans name a class by its dotted path and its arguments as JSON. nnU-Net then expects: ``strides`` among the arguments,
from which it computes the scales of deep supervision; ``decoder.deep_supervision``, which it switches; heads under
``seg_layers``, which it leaves out when it loads weights; any size of window; and an ``input_shape`` equal to the patch
of the plans. The encoder keeps the names its method gives it (``encoder.*``), so weights are matched by name.

nnU-Net's arrays are (z, y, x), transposed once more as the plans say, whereas most models are trained on (x, y, z). The
network turns its input into the model's order of axes and its output back, so that no weight has to be turned.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.sequences import canonical
from medmae.find import find
from medmae.nets.strides import raising
from medmae.nets.unetr import UnetrDecoder, token_map

from .plans import array_orientation, axis_order
from .plans import configuration as resolve
from .presence import NOTHING

CLASS = "medmae.transfer.nnunet.vit.ViTSegmenter"
"""How plans name the network."""

METHODS = ("bm_mae", "eva_mae", "hi_end_mae")
"""Methods whose encoder fits: tokens on a grid of patches, hidden layers on request."""

ORIENTATION = "RAS"
"""Axis codes of the arrays a model was trained on, where its folder does not say."""


class ViTSegmenter(nn.Module):
    """The encoder of a method with everything visible, and a UNETR decoder.

    A channel that is zero all over a sample (nearer than ``NOTHING``) is missing: it has no tokens and does not enter
    the decoder. Where all are (a window of plain background), all count as present.

    Args:
        input_channels: channels; as many as ``sequences``.
        num_classes: channels that go out.
        deep_supervision: hand out a list of scores, the finest first, one for each of ``strides`` but the last.
        strides: factors per scale and axis in the order of the network's axes, fine to coarse, all 1 at the first;
            their product per axis is the patch of the transformer.
        input_shape: voxels per axis of the plans' patch.
        sequences: names of the channels, in their order.
        method: which method's encoder.
        recipe: its arguments as a model folder has them; ``sequences`` and ``size`` in it are replaced.
        axes: for each axis of the model, the axis of the network's input that it is.
        features: channels of the decoder at full resolution.
        spacing: millimeters per voxel in the order of the model's axes, for models whose positions are in millimeters.

    Raises:
        UsageError: arguments that do not fit together, or a method without such an encoder.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = True,
        *,
        strides: Sequence[Sequence[int]],
        input_shape: Sequence[int],
        sequences: Sequence[str],
        method: str = "bm_mae",
        recipe: Mapping[str, Any] | None = None,
        axes: Sequence[int] = (0, 1, 2),
        features: int = 32,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise UsageError(f"{method!r} has no encoder for a segmentation network; there are: {', '.join(METHODS)}")
        if input_channels != len(sequences):
            raise UsageError(
                f"the data set has {input_channels} channels and the plans name {len(sequences)} sequences "
                f"({', '.join(sequences)}): write plans for this data set"
            )
        if sorted(axes) != [0, 1, 2] or len(input_shape) != 3:
            raise UsageError(f"three axes are needed, not input_shape {tuple(input_shape)} with axes {tuple(axes)}")
        self.sequences, self.axes, self.spacing = tuple(sequences), tuple(axes), None if spacing is None else [*spacing]
        self.back = tuple(self.axes.index(axis) for axis in range(3))
        shape = [int(input_shape[axis]) for axis in self.axes]
        given = {k: v for k, v in (recipe or {}).items() if k not in ("sequences", "size")}
        patch = find(method).recipe(**given)["patch"]
        size = [-(-n // p) * p for n, p in zip(shape, patch, strict=True)]
        built: Any = find(method).build(**given, sequences=self.sequences, size=size)
        self.patch, self.coords, self.unit = tuple(patch), built.tokenizer.coords, built.tokenizer.unit
        self.encoder = built.encoder
        turned = [tuple(int(stride[axis]) for axis in self.axes) for stride in strides]
        if [math.prod(column) for column in zip(*turned, strict=True)] != list(self.patch):
            raise UsageError(f"the product of the strides {turned} is not the transformer's patch {list(self.patch)}")
        self.decoder = UnetrDecoder(
            names=self.sequences,
            width=self.encoder.width,
            strides=turned,
            classes=num_classes,
            features=features,
            deep_supervision=deep_supervision,
        )
        depth, scales = len(self.encoder.blocks), self.decoder.scales
        self.taps = tuple(max(0, depth * k // scales - 1) for k in range(1, scales))
        self.strides = turned

    def forward(self, x: Float[Tensor, "b m i j k"]) -> Tensor | list[Tensor]:
        """Scores at the resolution of the input, or a list of scores at falling resolution.

        Args:
            x: images in the order of ``sequences``, of any size; what the patch does not divide is padded with zeros
                and cut off again.
        """
        x = x.permute(0, 1, *(2 + axis for axis in self.axes))
        size = tuple(x.shape[2:])
        present = self._present(x)
        x = F.pad(x, [n for s, p in zip(size[::-1], self.patch[::-1], strict=True) for n in (0, -s % p)])
        scores = self.decoder(x, present, self._levels(x, present))
        if isinstance(scores, Tensor):
            return self._restored(scores, size)
        step, cut = [1, 1, 1], []
        for score, stride in zip(scores, self.strides, strict=False):
            step = [a * b for a, b in zip(step, stride, strict=True)]
            cut.append(self._restored(score, [-(-n // k) for n, k in zip(size, step, strict=True)]))
        return cut

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """He's rule for the convolutions of the decoder, as nnU-Net's own networks have it; for ``network.apply``.

        The encoder has none: it keeps the start that its method gave it.
        """
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _present(self, x: Float[Tensor, "b m x y z"]) -> Bool[Tensor, "b m"]:
        """Which channels hold an image."""
        with torch.no_grad():
            here = x.abs().amax((2, 3, 4)) >= NOTHING
            return here | ~here.any(1, keepdim=True)

    def _levels(self, x: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> list[Tensor]:
        """Maps of the tapped hidden layers and of the final features."""
        grid = Grid(tuple(x.shape[2:]), self.patch)
        tokenizer = ModalityGrid(self.sequences, grid, coords=self.coords, unit=self.unit)
        batch: dict[str, Tensor] = {name: x[:, i : i + 1] for i, name in enumerate(self.sequences)}
        if torch.compiler.is_compiling() or not bool(present.all()):  # a look at the data would break the graph
            batch["present"] = present
        if self.coords == "mm":
            batch["spacing"] = x.new_tensor(self.spacing or (1.0, 1.0, 1.0)).expand(len(x), -1)
        tokens = tokenizer(batch)
        encoded = self.encoder(tokens, tokens.layout, tap=self.taps)
        found = [encoded.taps[i] for i in self.taps]
        layers = [encoded.tokens, *(type(tokens)(encoded.tokens.layout, content) for content in found)]
        return [token_map(layer, encoded.full, grid.shape) for layer in [*layers[1:], layers[0]]]

    def _restored(self, score: Tensor, size: Sequence[int]) -> Tensor:
        """Without what was padded, in the order of axes that came in."""
        return score[:, :, : size[0], : size[1], : size[2]].permute(0, 1, *(2 + axis for axis in self.back))


def rounded(patch_size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """The nearest window that whole patches of the transformer fill, at least one patch; halves go up."""
    return tuple(max(p, (2 * n + p) // (2 * p) * p) for n, p in zip(patch_size, patch, strict=True))


def vit_plans(
    plans: Mapping[str, Any],
    model_config: Mapping[str, Any],
    *,
    name: str,
    configuration: str = "3d_fullres",
    channels: Sequence[str] | None = None,
    orientation: str | None = None,
    features: int = 32,
) -> dict[str, Any]:
    """A copy of nnU-Net plans in which one configuration trains a vision transformer of ours.

    Spacing, normalization, batch size and the folder of preprocessed data stay the user's. The patch stays too where
    whole patches of the transformer fill it; otherwise it is rounded to the nearest that they fill, with a warning.

    Args:
        plans: the user's plans, as in the JSON file.
        model_config: ``config.json`` of a model folder (method and recipe).
        name: of the new plans; nnU-Net looks for them in ``name.json``.
        configuration: which configuration; three axes.
        channels: names of the channels in the order of dataset.json; other spellings of a sequence are understood.
            Default: the model's sequences. Channels that the model does not know start fresh.
        orientation: axis codes of nnU-Net's arrays, such as SAR; default: as the plans say for files stored as RAS.
        features: channels of the decoder at full resolution.

    Raises:
        UsageError: a configuration that does not exist, is not 3-D or belongs to a cascade; a method whose encoder does
            not fit.
        CheckpointError: an orientation that is none.
    """
    values = resolve(plans, configuration)
    method, recipe = str(model_config["method"]), dict(model_config["recipe"])
    if method not in METHODS:
        raise UsageError(f"a model of {method} gives no vision transformer for nnU-Net; {', '.join(METHODS)} do")
    size = [int(n) for n in values["patch_size"]]
    if len(size) != 3 or len(recipe["patch"]) != 3:
        raise UsageError(f"configuration {configuration!r} has {len(size)} axes; the model wants three")
    if values.get("previous_stage"):
        raise UsageError(f"configuration {configuration!r} is the second stage of a cascade: choose 3d_fullres")
    known = list(recipe["sequences"])
    wanted = [_called(channel, known) for channel in (channels or known)]
    trained = ((model_config.get("data") or {}).get("preprocess") or {}).get("orientation") or ORIENTATION
    axes = list(axis_order(orientation or array_orientation(plans), trained))
    back = [axes.index(axis) for axis in range(3)]
    patch = [int(recipe["patch"][axis]) for axis in back]
    fitting = list(rounded(size, patch))
    if fitting != size:
        warnings.warn(
            f"the patch {size} of configuration {configuration!r} is not whole patches {patch} of the transformer: "
            f"the new plans use {fitting}",
            stacklevel=2,
        )
    strides = [(1, 1, 1), *reversed(raising(recipe["patch"]))]
    kwargs = {
        "strides": [[int(stride[axis]) for axis in back] for stride in strides],
        "input_shape": fitting,
        "sequences": wanted,
        "method": method,
        "recipe": {k: deepcopy(v) for k, v in recipe.items() if k not in ("sequences", "size")},
        "axes": axes,
        "features": features,
        "spacing": [float(values["spacing"][axis]) for axis in axes] if "spacing" in values else None,
    }
    written = deepcopy(dict(plans))
    written["plans_name"] = name
    entry = written["configurations"][configuration]
    entry["patch_size"] = fitting
    entry["architecture"] = {"network_class_name": CLASS, "arch_kwargs": kwargs, "_kw_requires_import": []}
    return written


def _called(channel: str, known: Sequence[str]) -> str:
    """The name of a channel as the model knows it, or as the toolkit spells it."""
    return channel if channel in known else canonical(channel)
