"""Random numbers as pure functions of a key.

A masked autoencoder draws a plan for every sample of every step. If those draws came from a generator with hidden
state, resuming a run, changing the number of workers or processes, or evaluating twice would change the plans. Here
every draw is a hash of ``(key, stream, position)``: the key identifies the sample in its step, the stream the purpose,
the position the number wanted. There is no state to save, and a sample gets the same draws whatever batch it is in.
Uniform numbers are the same on every device; those made from them by logarithms may differ in the last bit.

The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
2014) applied to a Weyl sequence, written with int64 tensors, whose products wrap modulo 2**64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_TRIES = 24  # rejection rounds of the gamma sampler; each accepts with probability > 0.95


def mix(*parts: int) -> int:
    """Hash integers into one seed in [0, 2**63); order matters, and any change gives an unrelated seed."""
    state = 0
    for part in parts:
        state = _finalize((state + _GAMMA + (int(part) & _MASK)) & _MASK)
    return state >> 1


def _finalize(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_A) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_B) & _MASK
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of an int64 tensor (torch's is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _hash(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(_MIX_A)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_B)
    return value ^ _shift(value, 31)


def uniform(key: Int[Tensor, " b"], n: int, *, stream: int) -> Float[Tensor, "b n"]:
    """``n`` numbers in [0, 1) per key, float32 with 24 random bits; another ``stream`` gives independent numbers."""
    start = _hash(key.long() + _signed(mix(stream, 1) * _GAMMA & _MASK))
    position = torch.arange(1, n + 1, device=key.device, dtype=torch.int64) * _signed(_GAMMA)
    bits = _shift(_hash(start[:, None] + position), 40)
    return bits.to(torch.float32) / float(1 << 24)


def normal(key: Int[Tensor, " b"], n: int, *, stream: int) -> Float[Tensor, "b n"]:
    """``n`` standard normal numbers per key (Box and Muller, 1958)."""
    u = 1.0 - uniform(key, 2 * n, stream=stream)  # in (0, 1], so the logarithm is finite
    return torch.sqrt(-2.0 * torch.log(u[:, :n])) * torch.cos(2.0 * math.pi * u[:, n:])


def gamma(key: Int[Tensor, " b"], n: int, *, shape: float, stream: int) -> Float[Tensor, "b n"]:
    """``n`` Gamma(shape, 1) numbers per key (Marsaglia and Tsang, 2000, with their boost for shapes below one).

    The rejection loop is unrolled to a fixed number of rounds and the first accepted value is taken, so that the
    result stays a pure function of the key.
    """
    return _log_gamma(key, n, shape=shape, stream=stream).exp().float().clamp_min(1e-37)


def _log_gamma(key: Int[Tensor, " b"], n: int, *, shape: float, stream: int) -> Float[Tensor, "b n"]:
    """Logarithms of :func:`gamma`, in float64: at small shapes most of the numbers themselves are too small to hold."""
    if shape <= 0:
        raise ValueError(f"the shape of a gamma distribution must be positive, not {shape}")
    d = (shape if shape >= 1.0 else shape + 1.0) - 1.0 / 3.0
    x = normal(key, n * _TRIES, stream=2 * stream).view(len(key), n, _TRIES)
    u = (1.0 - uniform(key, n * _TRIES, stream=2 * stream + 1)).view(len(key), n, _TRIES)
    v = (1.0 + x / math.sqrt(9.0 * d)) ** 3
    accepted = (v > 0) & (torch.log(u) < 0.5 * x * x + d - d * v + d * torch.log(v.clamp_min(1e-30)))
    first = accepted.int().argmax(-1, keepdim=True)
    value = (d * v.gather(-1, first).squeeze(-1).clamp_min(1e-30)).double().log()
    if shape < 1.0:
        boost = (1.0 - uniform(key, n, stream=mix(stream, 2))).double()
        value = value + boost.log() / shape
    return value


def dirichlet(
    key: Int[Tensor, " b"], n: int, *, alpha: float, stream: int, among: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b n"]:
    """Shares of ``n`` parts that sum to one, from a symmetric Dirichlet distribution.

    Where ``among`` is given, only its parts get a share (none where it has none); the others are exactly zero.
    """
    parts = _log_gamma(key, n, shape=alpha, stream=stream)
    if among is None:
        return parts.softmax(-1).float()
    return parts.masked_fill(~among, -torch.inf).softmax(-1).float().where(among, 0.0)
