"""What is done to a batch on the training device: cast, normalize, flip, vary intensities.

Workers deliver int16 crops, half the bytes to move and none of the arithmetic. Normalizing a volume and then
scaling and shifting it is one affine map per volume, so all of it is folded into one multiply-add over the batch;
flips move int16. Every draw is a function of the sample's key: the same on any device, in any batch. What lies
outside the foreground is 0 at the end, always: intensity changes never move the background.

Numbers agree with MONAI's NormalizeIntensity, ScaleIntensity, ShiftIntensity, AdjustContrast and Flip (tested).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from medmae.core.errors import UsageError
from medmae.core.random import normal, uniform

_FLIP, _SCALE, _SHIFT, _GAMMA, _GAMMA_GATE, _NOISE, _NOISE_GATE = range(0x61750, 0x61757)


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; the defaults are those of the published BM-MAE (flips, scale and shift).

    ``flip``: probability per axis. ``scale``: values are multiplied by 1 + U(-scale, scale). ``shift``: U(-shift,
    shift) standard deviations are added. ``gamma``: exponents are drawn from [1/gamma, gamma] with probability
    ``gamma_probability`` (1 = off). ``noise``: largest standard deviation of Gaussian noise, with
    ``noise_probability``. ``per_sequence``: draw intensities for every sequence on its own instead of once a sample.
    """

    flip: tuple[float, float, float] = (0.5, 0.5, 0.5)
    scale: float = 0.1
    shift: float = 0.1
    gamma: float = 1.0
    gamma_probability: float = 0.3
    noise: float = 0.0
    noise_probability: float = 0.15
    per_sequence: bool = False

    def __post_init__(self) -> None:
        shares = {"gamma_probability": self.gamma_probability, "noise_probability": self.noise_probability}
        for name, value in {**shares, **{f"flip[{i}]": p for i, p in enumerate(self.flip)}}.items():
            if not 0 <= value <= 1:
                raise UsageError(f"augmentation {name} is a probability, not {value}")
        if self.scale < 0 or self.shift < 0 or self.noise < 0 or self.gamma < 1:
            raise UsageError("augmentation: scale, shift and noise are at least 0, gamma at least 1")

    @classmethod
    def none(cls) -> Augmentation:
        """Nothing is changed."""
        return cls(flip=(0.0, 0.0, 0.0), scale=0.0, shift=0.0)

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**dataclasses.asdict(self), "flip": list(self.flip)}


@dataclass(frozen=True)
class AugmentationDraws:
    """What will be done to a batch: everything random about it, on the host."""

    flips: Bool[Tensor, "b 3"]
    factor: Float[Tensor, "b m"]
    offset: Float[Tensor, "b m"]
    gamma: Float[Tensor, "b m"]
    noise: Float[Tensor, "b m"]
    key: Int[Tensor, " b"]


def draw_augmentation(key: Int[Tensor, " b"], settings: Augmentation, *, sequences: int) -> AugmentationDraws:
    """Draw for every key of a batch."""
    n = sequences if settings.per_sequence else 1

    def spread(stream: int) -> Tensor:
        return uniform(key, n, stream=stream).expand(-1, sequences)

    factor = 1 + settings.scale * (2 * spread(_SCALE) - 1)
    offset = settings.shift * (2 * spread(_SHIFT) - 1)
    exponent = settings.gamma ** (2 * spread(_GAMMA) - 1)
    gamma = torch.where(spread(_GAMMA_GATE) < settings.gamma_probability, exponent, torch.ones_like(exponent))
    gated = spread(_NOISE_GATE)
    # What is left of the gate's draw once it has passed is uniform again: it sets the noise's strength.
    strength = settings.noise * gated / max(settings.noise_probability, 1e-12)
    noise = torch.where(gated < settings.noise_probability, strength, torch.zeros_like(strength))
    flips = uniform(key, 3, stream=_FLIP) < torch.tensor(settings.flip)
    return AugmentationDraws(flips, factor, offset, gamma, noise, key)


def flip(volumes: Shaped[Tensor, "b c x y z"], flips: Bool[Tensor, "b 3"]) -> Shaped[Tensor, "b c x y z"]:
    """Mirror every sample along its axes; ``flips`` is on the host."""
    if not bool(flips.any()):
        return volumes
    axes = [[axis + 1 for axis in range(3) if chosen[axis]] for chosen in flips.tolist()]
    return torch.stack([sample.flip(along) if along else sample for sample, along in zip(volumes, axes, strict=True)])


def normalize(
    volumes: Shaped[Tensor, "b m x y z"],
    foreground: Bool[Tensor, "b 1 x y z"],
    calibration: Float[Tensor, "b m 4"],
    draws: AugmentationDraws | None = None,
) -> Float[Tensor, "b m x y z"]:
    """Stored values to normalized ones: ((v * slope + inter - mean) / std) * factor + offset, 0 outside the
    foreground.

    ``calibration`` holds slope, inter, mean, std; a row of zeros (an absent sequence) gives zeros.
    """
    slope, inter, mean, std = calibration.double().unbind(-1)
    there = std != 0
    std = torch.where(there, std, torch.ones_like(std))
    weight, bias = slope / std, (inter - mean) / std
    if draws is not None:
        factor, offset = draws.factor.to(weight), draws.offset.to(weight)
        weight, bias = weight * factor, bias * factor + offset * there
    weight, bias = (value.float()[:, :, None, None, None] for value in (weight, bias))
    values = volumes.to(torch.float32, copy=True)
    torch.addcmul(bias, values, weight, out=values)  # in place: fresh memory costs a host more than the arithmetic
    if draws is not None and bool((draws.gamma != 1).any()):
        values = adjust_contrast(values, foreground, draws.gamma.to(values))
    if draws is not None and bool((draws.noise != 0).any()):
        values = _add_noise(values, draws, there)
    return values.mul_(foreground)


def adjust_contrast(
    values: Float[Tensor, "b m x y z"], foreground: Bool[Tensor, "b 1 x y z"], gamma: Float[Tensor, "b m"]
) -> Float[Tensor, "b m x y z"]:
    """((v - low) / range) ** gamma * range + low, with the range of each volume's foreground."""
    infinity = float("inf")
    low = values.masked_fill(~foreground, infinity).amin((2, 3, 4), keepdim=True)
    high = values.masked_fill(~foreground, -infinity).amax((2, 3, 4), keepdim=True)
    usable = (high > low) & torch.isfinite(low) & (gamma[:, :, None, None, None] != 1)
    low, high = (torch.where(usable, bound, torch.zeros_like(bound)) for bound in (low, high))
    width = high - low
    bent = ((values - low) / (width + 1e-7)).clamp_min(0) ** gamma[:, :, None, None, None] * width + low
    return torch.where(usable, bent, values)


def _add_noise(values: Float[Tensor, "b m x y z"], draws: AugmentationDraws, there: Bool[Tensor, "b m"]) -> Tensor:
    levels = draws.noise.to(values) * there
    for i, sigmas in enumerate(draws.noise.tolist()):
        if not any(sigmas):
            continue
        key = draws.key[i : i + 1].to(values.device)
        noise = normal(key, values[i].numel(), stream=_NOISE).view_as(values[i])
        values[i] += noise * levels[i][:, None, None, None]
    return values


def finish_batch(
    batch: Mapping[str, Tensor], *, sequences: tuple[str, ...], device: Any, draws: AugmentationDraws | None
) -> dict[str, Tensor]:
    """A delivered batch to a method's input.

    In: ``volumes`` Int16[u m x y z], ``foreground`` UInt8[u 1 x y z], optional ``label`` [u 1 x y z], ``row``
    Int[b] (which crop belongs to which sample; omitted when u = b), ``calibration`` Float[b m 4], ``present``
    Bool[b m] and any other tensor with one row per sample. Out: Float[b 1 x y z] per sequence, ``foreground``
    Bool[b 1 x y z], ``label`` Int64[b 1 x y z], the rest unchanged; ``present`` only where something is missing,
    ``calibration`` and ``row`` gone.
    """
    done: dict[str, Tensor] = {}
    flips = None if draws is None else draws.flips
    spatial: dict[str, Tensor] = {}
    for name in ("volumes", "foreground", "label"):
        if name in batch:
            moved = batch[name].to(device, non_blocking=True)
            if "row" in batch:
                moved = moved[batch["row"].to(device)]
            spatial[name] = moved if flips is None else flip(moved, flips)
    foreground = spatial["foreground"].bool()
    values = normalize(spatial["volumes"], foreground, batch["calibration"].to(device, non_blocking=True), draws)
    for row, name in enumerate(sequences):
        done[name] = values[:, row : row + 1]
    done["foreground"] = foreground
    if "label" in spatial:
        done["label"] = spatial["label"].long()
    if not bool(batch["present"].all()):
        done["present"] = batch["present"].to(device, non_blocking=True)
    for name, value in batch.items():
        if name not in ("volumes", "foreground", "label", "row", "calibration", "present"):
            done[name] = value.to(device, non_blocking=True)
    return done
