"""Heads with an answer for every voxel: decoders on whatever a backbone is, for any subset of the sequences.

A decoder sees the images themselves as well, since neither tokens nor coarse maps carry single voxels: one stem per
sequence, averaged over those that are present. So one network serves every subset, and detail does not have to pass
through the few hundred numbers of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.tokens import Batch
from medmae.nets.encoded import Pyramid
from medmae.nets.strides import raising
from medmae.nets.unetr import PyramidDecoder, UnetrDecoder, token_map

from .backbone import Backbone
from .pooling import Features
from .published import KIND as PUBLISHED
from .published import PublishedHead

KINDS = ("decoder", PUBLISHED)


class DenseHead(nn.Module):
    """A decoder that fits the backbone: UNETR's for tokens, a U-Net's for maps.

    Args:
        backbone: of three axes, with one value per voxel and sequence; it is told which hidden layers to hand on.
        outputs: channels that go out.
        features: channels at full resolution.
        deep_supervision: in training, hand out the scores of all scales but the coarsest, the finest first.
        dropout: probability that a channel is zero in front of the scores, in [0, 1).

    Raises:
        UsageError: a backbone without tokens on a grid of patches, and without maps.
    """

    def __init__(
        self,
        backbone: Backbone,
        outputs: int,
        *,
        features: int = 16,
        deep_supervision: bool = False,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(features, int) or features < 1 or not 0 <= dropout < 1:
            raise UsageError(f"features {features} must be a count, dropout {dropout} a probability below 1")
        self.names, self.grid = backbone.sequences, backbone.tokenizer.grid
        options: dict[str, Any] = {
            "names": self.names, "classes": outputs, "features": features, "dropout": dropout,
            "deep_supervision": deep_supervision,
        }  # fmt: skip
        encoder: Any = backbone.encoder
        self.decoder: UnetrDecoder | PyramidDecoder
        self.taps: tuple[int, ...] = ()
        if hasattr(encoder, "widths"):
            self.decoder = PyramidDecoder(widths=encoder.widths, strides=_strides(encoder, self.grid.patch), **options)
            return
        strides = [(1,) * 3, *reversed(raising(self.grid.patch))]
        if len(strides) < 2:
            raise UsageError(f"patches of {self.grid.patch} voxels leave a decoder nothing to raise")
        self.decoder = UnetrDecoder(width=encoder.width, strides=strides, **options)
        scales = self.decoder.scales
        self.taps = tuple(max(0, backbone.levels * k // scales - 1) for k in range(1, scales))
        backbone.taps = self.taps

    def forward(self, features: Features, batch: Batch) -> Tensor | list[Tensor]:
        """The raw numbers of every voxel, [b outputs x y z]; in training with deep supervision a list of them."""
        images, present = stacked(batch, self.names)
        found: Tensor | list[Tensor] = self.decoder(images, present, self._levels(features))
        return found if isinstance(found, Tensor) or self.training else found[0]

    def start(self, values: Float[Tensor, " outputs"]) -> None:
        """Let every voxel begin with ``values``."""
        with torch.no_grad():
            for layer in self.decoder.seg_layers:
                nn.init.trunc_normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
                layer.bias.copy_(values)  # type: ignore[union-attr, operator]

    def _levels(self, features: Features) -> list[Tensor]:
        encoded = features.encoded
        if isinstance(encoded, Pyramid):
            return list(encoded.dense())
        tokens = encoded.tokens
        layers = [type(tokens)(tokens.layout, encoded.taps[i]) for i in self.taps]
        return [token_map(layer, encoded.full, self.grid.shape) for layer in [*layers, tokens]]


def stacked(batch: Batch, names: tuple[str, ...]) -> tuple[Float[Tensor, "b m x y z"], Bool[Tensor, "b m"]]:
    """The images of a batch as channels, and which of them there are."""
    images = torch.cat([batch[name] for name in names], 1)
    present = batch.get("present")
    if present is None:
        present = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    return images, present


def _strides(encoder: Any, patch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Factors between the maps of a convolutional encoder, the first one from the images."""
    found = getattr(encoder, "strides", None)
    if found is not None:
        return [tuple(stride) for stride in found]
    count = len(encoder.widths)  # each stage but the first halves, and the last has one cell per patch
    first = tuple(edge // 2 ** (count - 1) for edge in patch)
    if math.prod(first) < 1:
        raise UsageError(f"an encoder of {count} stages cannot be halved out of patches of {patch}")
    return [first, *((2,) * len(patch) for _ in range(count - 1))]


def build_dense(recipe: Mapping[str, Any], *, backbone: Backbone, outputs: int) -> DenseHead | PublishedHead:
    """The dense head that ``recipe`` describes.

    Args:
        recipe: ``kind`` (decoder), ``features``, ``deep_supervision``, ``dropout``; or ``kind`` (published),
            ``features``, ``sequences``.
        backbone: what it decodes.
        outputs: channels that go out.

    Raises:
        UsageError: there is no such kind, or options that do not fit.
    """
    options = {name: value for name, value in recipe.items() if name != "kind"}
    try:
        made = PublishedHead if recipe.get("kind") == PUBLISHED else DenseHead
        return made(backbone, outputs, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the {recipe.get('kind')} head cannot be built: {error}") from error
