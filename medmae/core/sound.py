"""From a waveform to what an audio method reads.

The filterbank is that of Kaldi, because published weights have seen no other: frames without padding, mean removed,
pre-emphasis, Hann window, power spectrum, triangles in mel, natural logarithm. It is plain torch, so that it runs in a
data worker and on the device alike, and it is here because data and methods both need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DataError
from .random import mix as mix_seed
from .random import uniform

FLOOR = float(torch.finfo(torch.float32).eps)
"""Smallest energy of which a logarithm is taken."""


def log_mel(
    wave: Float[Tensor, "*b samples"],
    *,
    rate: int,
    bins: int = 128,
    frame_ms: float = 25.0,
    hop_ms: float = 10.0,
    low: float = 20.0,
    emphasis: float = 0.97,
) -> Float[Tensor, "*b frames bins"]:
    """Logarithms of mel energies as Kaldi computes them (without dither), from a wave in [-1, 1].

    Args:
        wave: one channel; the last axis is time.
        rate: samples per second.
        bins: triangles, equally wide in mel.
        frame_ms: milliseconds of a frame.
        hop_ms: milliseconds from frame to frame. What is left at the end and fills no frame is not used.
        low: Hertz at which the first triangle starts; the last one ends at half the rate.
        emphasis: share of the sample before that is taken off each sample.

    Raises:
        DataError: the wave is shorter than one frame.
    """
    long, hop = int(rate * frame_ms / 1000), int(rate * hop_ms / 1000)
    if wave.shape[-1] < long:
        raise DataError(
            f"a sound of {wave.shape[-1]} samples at {rate} Hz is shorter than one frame of {long}: leave it out"
        )
    frames = wave.unfold(-1, long, hop).double()
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)  # the first sample follows itself
    frames = (frames - emphasis * before) * torch.hann_window(
        long, periodic=False, dtype=torch.float64, device=wave.device
    )
    size = 1 << (long - 1).bit_length()
    power = torch.fft.rfft(frames, n=size).abs().square()[..., : size // 2]
    energy = power @ _triangles(rate, size, bins, low).to(wave.device).T
    return energy.clamp_min(FLOOR).log().to(wave.dtype)


def _mel(hertz: Tensor | float) -> Tensor:
    return 1127.0 * torch.log(1.0 + torch.as_tensor(hertz, dtype=torch.float32) / 700.0)


def centers(*, rate: int, bins: int, low: float = 20.0) -> Float[Tensor, " bins"]:
    """Frequency of the middle of every bin of :func:`log_mel`, in Hertz."""
    first, last = _mel(low), _mel(rate / 2)
    middle = first + (last - first) / (bins + 1) * torch.arange(1, bins + 1)
    return 700.0 * (torch.exp(middle / 1127.0) - 1.0)


@lru_cache(maxsize=8)
def _triangles(rate: int, size: int, bins: int, low: float) -> Float[Tensor, "bins half"]:
    """Weight of every frequency of a spectrum in every bin; triangles are straight in mel and meet at their centers.

    In float32 as Kaldi has it: where a low bin holds one frequency only, at its very edge, that shows.
    """
    first, last = _mel(low), _mel(rate / 2)
    edges = (first + (last - first) / (bins + 1) * torch.arange(bins + 2))[:, None]
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    mel = _mel(torch.arange(size // 2) * (rate / size))
    rising, falling = (mel - left) / (center - left), (right - mel) / (right - center)
    return torch.minimum(rising, falling).clamp_min(0).double()


@dataclass(frozen=True)
class Frontend:
    """How a method wants its sound: everything between a waveform and the entry of a batch.

    Attributes:
        rate: samples per second of the waves it takes.
        frames: length of the spectrogram; longer sounds are cut, shorter ones filled up.
        bins: mel bins.
        mean: of the log-mel values of the data it was made for.
        std: of the same. Values become ``(x - mean) / (2 std)``.
        fill: what shorter sounds are filled up with: ``zero`` (before the mean is taken off) or the ``minimum`` of the
            sound itself.
    """

    rate: int
    frames: int
    bins: int
    mean: float
    std: float
    fill: Literal["zero", "minimum"] = "zero"

    def __call__(self, wave: Float[Tensor, "*b samples"]) -> Float[Tensor, "*b 1 frames bins"]:
        """The spectrogram of a wave in [-1, 1], or of several; its mean is taken off first."""
        x = log_mel(wave - wave.mean(-1, keepdim=True), rate=self.rate, bins=self.bins)[..., : self.frames, :]
        short = self.frames - x.shape[-2]
        if short > 0:
            value = torch.zeros_like(x[..., :1, :1]) if self.fill == "zero" else x.amin((-2, -1), keepdim=True)
            x = torch.cat([x, value.expand(*x.shape[:-2], short, self.bins)], -2)
        return ((x - self.mean) / (2 * self.std)).unsqueeze(-3)


def mix_waves(
    waves: Float[Tensor, "b samples"],
    key: Int[Tensor, " b"],
    *,
    probability: float = 0.3,
    most: int = 3,
    snr: tuple[float, float] = (5.0, 25.0),
) -> Float[Tensor, "b samples"]:
    """Lay other sounds of the batch, more quietly, over some sounds (Bird-MAE).

    Args:
        waves: sounds of one length.
        key: randomness of every sound.
        probability: of a sound to be mixed with others.
        most: sounds in a mixture at most, itself among them.
        snr: decibels by which a sound is louder than each laid over it, drawn uniformly.
    """
    b = len(waves)
    if b < 2 or most < 2:
        return waves
    chance = uniform(key, 1 + 3 * most, stream=mix_seed(41))
    count = (chance[:, 0] < probability) * (1 + (chance[:, 1] * (most - 1)).long())
    power, out = waves.square().mean(-1).clamp_min(1e-12), waves
    for i in range(most - 1):
        other = (torch.arange(b, device=waves.device) + 1 + (chance[:, 2 + 2 * i] * (b - 1)).long()) % b
        decibels = snr[0] + (snr[1] - snr[0]) * chance[:, 3 + 2 * i]
        gain = (power / power[other]).sqrt() * 10 ** (-decibels / 20)
        out = out + torch.where(i < count, gain, 0.0)[:, None] * waves[other]
    return out
