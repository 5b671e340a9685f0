"""What a synthesis is asked for: the sequences that a patient has and the network was not shown.

The answer is a linear formula of what was given, plus what the network adds. The formula (least squares on training
cases, one per subset and target) is what anybody gets without a network; a network that begins there only has to learn
what is better, for every subset from the first step on.

What the network adds ends in a small network for single voxels that reads the images as they are: the norms inside a
decoder take away how bright a window is, and brightness is half of what tells one sequence from another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.tokens import Batch
from medmae.evaluate.baselines import Baselines, Sums
from medmae.evaluate.metrics import K1, K2, SIGMA, WINDOW

from .backbone import Backbone
from .dense import DenseHead, stacked
from .objectives import Objective
from .pooling import Features

KIND = "synthesis"
"""Of the head."""
RANGE = 5.0
"""Data range of a standardized sequence where none is known, in standard deviations."""


class Synthesis(Objective):
    """One image per sequence: L1, L2 and 1 - SSIM inside the foreground, of what is there and was not shown.

    Args:
        names: sequences, in the order of the outputs.
        l1: weight of the mean absolute error.
        l2: weight of half the mean squared error.
        ssim: weight of 1 - SSIM, see :func:`similarity`.
        outside: what a voxel outside the foreground counts in L1 and L2, where the truth is 0; inside it is 1.
        ranges: data range of each sequence for SSIM; None is :data:`RANGE` each.
        prior: what the linear formulas are solved from, see :func:`prior_of`; None is without.

    Raises:
        ValueError: fewer than two sequences, weights that cannot be meant, or another number of ranges.
    """

    hides = True

    def __init__(
        self,
        *,
        names: Sequence[str],
        l1: float | int = 1.0,
        l2: float | int = 1.0,
        ssim: float | int = 0.5,
        outside: float | int = 0.0,
        ranges: Sequence[float | int] | None = None,
        prior: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        weights = (l1, l2, ssim, outside)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"sequences {list(names)}: at least two, each once; one cannot be told from itself")
        if any(not 0 <= weight < math.inf for weight in weights) or l1 + l2 + ssim == 0:
            raise ValueError(f"weights l1 {l1}, l2 {l2}, ssim {ssim}, outside {outside}: at least 0, and not all 0")
        widths = [RANGE] * len(names) if ranges is None else [float(width) for width in ranges]
        if len(widths) != len(names) or min(widths) <= 0:
            raise ValueError(f"data ranges {widths}: one above 0 for each of {', '.join(names)}")
        self.names, self.outputs, self.widths = tuple(names), len(names), widths
        self.l1, self.l2, self.ssim, self.outside = (float(weight) for weight in weights)
        self._formulas = None if prior is None else Baselines(_sums(self.names, prior))
        self._known: dict[tuple[bool, ...], Tensor] = {}

    def completed(self, raw: Any, batch: Batch) -> Any:
        """The raw numbers on top of the linear formula of the given sequences; of several scales, the finest."""
        if not isinstance(raw, Tensor):
            return [self.completed(raw[0], batch), *raw[1:]]
        if self._formulas is None:
            return raw
        images, present = stacked(batch, self.names)
        formula = self.formulas(present).to(images.device)
        shown = images.float().masked_fill(~present[..., None, None, None], 0)
        with torch.autocast(images.device.type, enabled=False):
            start = torch.einsum("boi,bixyz->boxyz", formula[..., 1:], shown)
        return raw.float() + start + formula[..., :1, None, None]

    def formulas(self, present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m n"]:
        """Per sample and output: the constant, then the factor of every sequence; zeros where nothing is known."""
        return torch.stack([self._formula(tuple(row)) for row in present.tolist()])

    def _formula(self, present: tuple[bool, ...]) -> Float[Tensor, "m n"]:
        if present not in self._known:
            table = torch.zeros(self.outputs, self.outputs + 1)
            given = [name for name, there in zip(self.names, present, strict=True) if there]
            for row, name in enumerate(self.names):
                if present[row]:
                    table[row, 1 + row] = 1.0
                elif self._formulas is not None and (fit := self._formulas.fit("linear", given, name)) is not None:
                    table[row, 0] = fit.constant
                    for source, slope in fit.slopes.items():
                        table[row, 1 + self.names.index(source)] = slope
            self._known[present] = table
        return self._known[present]

    def forward(self, raw: Any, batch: Batch) -> dict[str, Tensor]:
        """``l1``, ``l2`` and ``dissimilarity``, weighed; those with weight 0 are left out.

        Args:
            raw: images [b m *size], or a list of them of which the first counts.
            batch: ``present`` is what was shown, ``had`` what there is.
        """
        guess = raw if isinstance(raw, Tensor) else raw[0]
        images, present = stacked(batch, self.names)
        wanted = batch.get("had", present) & ~present
        inside = batch["foreground"] > 0
        with torch.autocast(guess.device.type, enabled=False):
            sample, channel = wanted.nonzero(as_tuple=True)
            mine, truth = guess.float()[sample, channel], images.float()[sample, channel]
            region = inside[sample, 0]
            weight = torch.where(region, 1.0, self.outside)
            total = weight.sum().clamp_min(1)
            found = {}
            if self.l1:
                found["l1"] = self.l1 * ((mine - truth).abs() * weight).sum() / total
            if self.l2:
                found["l2"] = 0.5 * self.l2 * ((mine - truth).square() * weight).sum() / total
            if self.ssim:
                width = truth.new_tensor(self.widths)[channel]
                lost = (1 - similarity(mine, truth, region, width)) * region
                found["dissimilarity"] = self.ssim * lost.sum() / region.sum().clamp_min(1)
        return found

    def read(self, raw: Float[Tensor, "b m *size"]) -> dict[str, Tensor]:
        """``volumes`` [b m *size], normalized, in the order of the names; those that were given are of no use."""
        return {"volumes": raw.float()}


def similarity(
    guess: Float[Tensor, "n x y z"],
    truth: Float[Tensor, "n x y z"],
    region: Bool[Tensor, "n x y z"],
    width: Float[Tensor, " n"],
) -> Float[Tensor, "n x y z"]:
    """The map of structural similarity of ``medmae.evaluate.metrics.Ssim``, with a gradient for the guess.

    Args:
        guess: images.
        truth: what they should be.
        region: outside of it guess and truth are both taken as the truth.
        width: data range of each.
    """
    guess = torch.where(region, guess, truth)
    # A variance is a small difference of large numbers; a constant added to both images does not change it.
    middle = truth.mean((1, 2, 3), keepdim=True)
    low, high = guess - middle, truth - middle
    mean, true_mean = _smooth(low), _smooth(high)
    variance, true_variance = _smooth(low.square()) - mean.square(), _smooth(high.square()) - true_mean.square()
    together = _smooth(low * high) - mean * true_mean
    mean, true_mean = mean + middle, true_mean + middle
    c1, c2 = ((k * width.view(-1, 1, 1, 1)) ** 2 for k in (K1, K2))
    light = (2 * mean * true_mean + c1) / (mean.square() + true_mean.square() + c1)
    return light * (2 * together + c2) / (variance + true_variance + c2)


def _smooth(images: Float[Tensor, "n x y z"]) -> Float[Tensor, "n x y z"]:
    """A Gaussian window, axis by axis, the border continued by its edge: one product with a matrix per axis."""
    for axis in (1, 2, 3):
        matrix = _band(images.shape[axis]).to(images)
        images = torch.tensordot(images, matrix, dims=([axis], [1])).movedim(-1, axis)
    return images


def _band(n: int) -> Float[Tensor, "n n"]:
    place = torch.arange(WINDOW) - WINDOW // 2
    kernel = torch.exp(-0.5 * (place.double() / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).float()
    rows = torch.arange(n)[:, None].expand(n, WINDOW)
    columns = (rows + place).clamp(0, n - 1)
    return torch.zeros(n, n).index_put((rows, columns), kernel.expand(n, WINDOW), accumulate=True)


class SynthesisHead(nn.Module):
    """A decoder whose channels are read voxel by voxel together with the images.

    Args:
        backbone: as for :class:`medmae.transfer.dense.DenseHead`.
        outputs: images that go out.
        features: channels of the decoder at full resolution; it hands on as many.
        dropout: probability that such a channel is zero, in [0, 1).
        hidden: width of the network for single voxels.

    Raises:
        UsageError: sizes that cannot be meant, or no backbone for a decoder.
    """

    def __init__(
        self, backbone: Backbone, outputs: int, *, features: int = 16, dropout: float | int = 0.0, hidden: int = 32
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise UsageError(f"hidden {hidden} must be a count")
        self.names = backbone.sequences
        # What the decoder hands on is read by the next layer, so dropout there is dropout in front of the answer.
        self.dense = DenseHead(backbone, features, features=features, dropout=dropout)
        self.mix = nn.Conv3d(features + 2 * len(self.names), hidden, 1)
        self.middle = nn.Conv3d(hidden, hidden, 1)
        self.last = nn.Conv3d(hidden, outputs, 1)
        self.drop = nn.Dropout3d(dropout)

    def forward(self, features: Features, batch: Batch) -> Float[Tensor, "b outputs x y z"]:
        """What is added to the formula."""
        images, present = stacked(batch, self.names)
        there = present[..., None, None, None]
        context = F.leaky_relu(self.dense(features, batch), 0.01)
        shown = images.masked_fill(~there, 0)
        flags = there.to(images.dtype).expand_as(images)
        hidden = F.gelu(self.mix(torch.cat([context, shown.to(context.dtype), flags.to(context.dtype)], 1)))
        hidden = F.gelu(self.middle(self.drop(hidden)))
        found: Tensor = self.last(hidden)
        return found

    def start(self, values: Float[Tensor, " outputs"]) -> None:
        """Let every voxel begin with ``values``."""
        with torch.no_grad():
            nn.init.zeros_(self.last.weight)
            assert self.last.bias is not None
            self.last.bias.copy_(values)


def build_synthesis(recipe: Mapping[str, Any], *, backbone: Backbone, outputs: int) -> SynthesisHead:
    """The head that ``recipe`` describes: ``features``, ``dropout``, ``hidden``.

    Raises:
        UsageError: options that do not fit.
    """
    try:
        return SynthesisHead(backbone, outputs, **{name: value for name, value in recipe.items() if name != "kind"})
    except (TypeError, ValueError) as error:
        raise UsageError(f"the {KIND} head cannot be built: {error}") from error


def prior_of(sums: Sums) -> list[dict[str, Any]]:
    """Sums over training cases as JSON values: per set of sequences, the mean of all products of (1, sequences...).

    Numbers are rounded to nine digits, so that a run that is resumed with other threads finds the same ones.
    """
    return [
        {
            "sequences": list(names),
            "voxels": int(products[0, 0]),
            "products": [[float(f"{value:.9g}") for value in row] for row in (products / products[0, 0]).tolist()],
        }
        for names, products in sorted(sums.products.items())
    ]


def _sums(names: tuple[str, ...], prior: Sequence[Mapping[str, Any]]) -> Sums:
    found = {}
    for entry in prior:
        products = np.asarray(entry["products"], dtype=np.float64) * float(entry["voxels"])
        known = tuple(entry["sequences"])
        if not set(known) <= set(names) or products.shape != (len(known) + 1,) * 2:
            raise ValueError(f"sums of {', '.join(known)} do not fit the sequences {', '.join(names)}")
        found[known] = products
    return Sums(names, found, len(found))
