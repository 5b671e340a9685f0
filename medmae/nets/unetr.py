"""Decoders to voxels: a pyramid of transposed convolutions fed by hidden layers or maps, and by the images.

UNETR's shape: the deeper a hidden layer, the coarser the scale where it enters; the images themselves enter at full
resolution, since no token carries single voxels. What differs is that sequences may be missing. At each place tokens
are averaged over the sequences that have one; the images go through one convolution each and are averaged over those
that are present, and what follows is normalized, so that a missing sequence leaves no trace and the scale of the
features does not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.tokens import TokenLayout, Tokens

WIDEST = 320
"""Channels of the coarse stages at most."""

Factor = tuple[int, int, int]


def token_map(tokens: Tokens, full: TokenLayout, shape: Sequence[int]) -> Float[Tensor, "b d *g"]:
    """Tokens as a map on the grid of patches: the mean over the sequences that have a token there, zero where none has.

    Args:
        tokens: features [b v d].
        full: layout of the full set, sequence by sequence on one grid.
        shape: patches per axis.

    Raises:
        ValueError: the full set is not whole grids of this shape.
    """
    n = math.prod(shape)
    if full.total % n:
        raise ValueError(f"{full.total} tokens are not whole grids of {tuple(shape)}")
    blank = torch.zeros((), device=tokens.content.device)
    b, width = len(tokens.content), tokens.content.shape[-1]
    features = tokens.onto(full, blank).content.view(b, -1, n, width).sum(1)
    ones = Tokens(tokens.layout, torch.ones_like(tokens.content[..., :1]))
    count = ones.onto(full, blank).content.view(b, -1, n, 1).sum(1)
    return (features / count.clamp_min(1)).transpose(1, 2).reshape(b, width, *shape)


class FusedStem(nn.Module):
    """One convolution per sequence, averaged over the sequences that are present.

    The mean of linear maps is one linear map of the images, each divided by the number of those present: one
    convolution over stacked channels, with the cost of one.

    Args:
        names: sequences in the order of the channels.
        width: channels that come out.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.names = tuple(names)
        # No bias: the norm that follows would take it out again.
        self.each = nn.ModuleDict({name: nn.Conv3d(1, width, 3, padding=1, bias=False) for name in self.names})

    def forward(self, images: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b w x y z"]:
        """The mean of the features of the images that are present."""
        share = present / present.sum(1, keepdim=True).clamp_min(1)
        images = images.masked_fill(~present[..., None, None, None], 0) * share.to(images.dtype)[..., None, None, None]
        weight = torch.cat([self.each[name].weight for name in self.names], 1)  # type: ignore[misc]
        return F.conv3d(images, weight, padding=1)


class Smooth(nn.Module):
    """Two 3^3 convolutions with instance norms and a shortcut.

    Args:
        incoming: channels that come in.
        width: channels that go out.
    """

    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(incoming, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.shortcut = nn.Sequential(nn.Conv3d(incoming, width, 1), _norm(width)) if incoming != width else None

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b w x y z"]:
        """The same size, other channels."""
        inside = self.norm2(self.conv2(_active(self.norm1(self.conv1(x)))))
        return _active(inside + (x if self.shortcut is None else self.shortcut(x)))


class Rise(nn.Sequential):
    """Transposed convolutions from the grid of patches to a finer scale, each with a norm and an activation.

    Args:
        incoming: channels of the tokens.
        width: channels of the scale.
        factors: upsampling of every step and axis, coarse to fine.
    """

    def __init__(self, incoming: int, width: int, factors: Sequence[Factor]) -> None:
        steps: list[nn.Module] = []
        for i, factor in enumerate(factors):
            steps += [
                nn.ConvTranspose3d(width if i else incoming, width, factor, factor),
                _norm(width),
                nn.LeakyReLU(0.01),
            ]
        super().__init__(*steps)


class Climb(nn.Module):
    """From the coarsest maps to class scores: raise, join what the scale has to say, smooth; scale by scale.

    Args:
        widths: channels per scale, fine to coarse.
        strides: factors per scale and axis, fine to coarse, the first unused.
        outputs: channels of the scores.
        deep_supervision: hand out all scales but the coarsest, the finest first, in place of the finest alone.
        dropout: probability that a channel is zero in front of the scores, in [0, 1).
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        strides: Sequence[Factor],
        outputs: int,
        deep_supervision: bool = False,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        self.deep_supervision, self.scales = deep_supervision, len(widths) - 1
        scales = range(self.scales)
        # From coarse to fine, as in nnU-Net's decoders; it looks for heads by the name of their list.
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(widths[s + 1], widths[s], strides[s + 1], strides[s + 1]) for s in reversed(scales)
        )
        self.stages = nn.ModuleList(Smooth(2 * widths[s], widths[s]) for s in reversed(scales))
        self.seg_layers = nn.ModuleList(nn.Conv3d(widths[s], outputs, 1) for s in reversed(scales))
        self.drop = nn.Dropout3d(dropout)

    def climb(self, x: Float[Tensor, "b _ i j k"], skips: Sequence[Float[Tensor, "b _ ..."]]) -> Tensor | list[Tensor]:
        """Scores [b outputs x y z], or a list of them, the finest first.

        Args:
            x: the coarsest maps.
            skips: what every scale but the coarsest has to say, fine to coarse.
        """
        scores = []
        for i, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat([up(x), skips[-1 - i]], 1))
            if self.deep_supervision or i == self.scales - 1:
                scores.append(self.seg_layers[i](self.drop(x)))
        return scores[::-1] if self.deep_supervision else scores[-1]


class UnetrDecoder(Climb):
    """Class scores from hidden layers of a token encoder and the images.

    Args:
        names: sequences in the order of the image channels.
        width: features per token.
        strides: factors per scale and axis, fine to coarse, all 1 at the first; their product per axis is the patch.
        classes: channels that go out.
        features: channels at full resolution; they double from scale to scale, up to 320.
        deep_supervision: hand out all scales but the coarsest, the finest first, in place of the finest alone.
        dropout: see :class:`Climb`.

    Raises:
        ValueError: fewer than two scales, not three axes, or a first scale with a factor.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        width: int,
        strides: Sequence[Sequence[int]],
        classes: int,
        features: int = 32,
        deep_supervision: bool = False,
        dropout: float | int = 0.0,
    ) -> None:
        if len(strides) < 2 or any(len(step) != 3 for step in strides) or set(strides[0]) != {1}:
            raise ValueError(f"strides are at least two triples, the first all 1, not {list(strides)}")
        steps = _triples(strides)
        widths = [min(features * 2**s, WIDEST) for s in range(len(steps) - 1)] + [width]
        super().__init__(
            widths=widths, strides=steps, outputs=classes, deep_supervision=deep_supervision, dropout=dropout
        )
        self.stem = FusedStem(names, widths[0])
        self.stem_norm, self.stem_smooth = _norm(widths[0]), Smooth(widths[0], widths[0])
        self.rise = nn.ModuleList(Rise(width, widths[s], steps[:s:-1]) for s in range(1, self.scales))

    def forward(
        self,
        images: Float[Tensor, "b m x y z"],
        present: Bool[Tensor, "b m"],
        levels: Sequence[Float[Tensor, "b d i j k"]],
    ) -> Tensor | list[Tensor]:
        """Scores [b classes x y z], or a list of scores, the finest first.

        Args:
            images: the images, whole patches.
            present: which of them there are; what the others hold does not matter.
            levels: maps of hidden layers, shallow to deep, one per scale except the finest; the last is the final one.
        """
        if len(levels) != self.scales:
            raise ValueError(f"the decoder has {self.scales} scales for hidden layers, got {len(levels)}")
        skips = [self.stem_smooth(_active(self.stem_norm(self.stem(images, present))))]
        skips += [rise(level) for rise, level in zip(self.rise, levels, strict=False)]
        return self.climb(levels[-1], skips)


class PyramidDecoder(Climb):
    """Class scores from the maps of a convolutional encoder, and from the images where its first maps are coarser.

    Args:
        names: sequences in the order of the image channels.
        widths: channels of the encoder's maps, fine to coarse.
        strides: factors per map and axis, fine to coarse; the first is that between the images and the finest map.
        classes: channels that go out.
        features: channels at full resolution where the encoder has no such maps.
        deep_supervision: see :class:`Climb`.
        dropout: see :class:`Climb`.

    Raises:
        ValueError: fewer than two scales, or not three axes.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        classes: int,
        features: int = 32,
        deep_supervision: bool = False,
        dropout: float | int = 0.0,
    ) -> None:
        steps, own = _triples(strides), list(widths)
        coarser = set(steps[0]) != {1}
        if coarser:
            steps, own = [(1, 1, 1), *steps], [features, *own]
        if len(steps) < 2 or len(steps) != len(own):
            raise ValueError(f"{len(widths)} maps with {len(strides)} strides are no pyramid of two scales or more")
        super().__init__(widths=own, strides=steps, outputs=classes, deep_supervision=deep_supervision, dropout=dropout)
        self.stem = FusedStem(names, features) if coarser else None
        if coarser:
            self.stem_norm, self.stem_smooth = _norm(features), Smooth(features, features)

    def forward(
        self,
        images: Float[Tensor, "b m x y z"],
        present: Bool[Tensor, "b m"],
        levels: Sequence[Float[Tensor, "b _ ..."]],
    ) -> Tensor | list[Tensor]:
        """Scores [b classes x y z], or a list of scores, the finest first; arguments as in :class:`UnetrDecoder`."""
        skips = list(levels[:-1])
        if self.stem is not None:
            skips.insert(0, self.stem_smooth(_active(self.stem_norm(self.stem(images, present)))))
        return self.climb(levels[-1], skips)


def _triples(strides: Sequence[Sequence[int]]) -> list[Factor]:
    return [(int(x), int(y), int(z)) for x, y, z in strides]


def _norm(width: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(width, eps=1e-5, affine=True)


def _active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)
