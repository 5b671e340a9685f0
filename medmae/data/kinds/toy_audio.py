"""Toy sounds: one harmonic call on a noisy ground; the class is how its pitch moves and nothing else.

Pitch, range, loudness, timbre, onset, length and noise are drawn without regard to the class, so neither how high nor
how loud a call is tells its class; where the ridges of its spectrogram go does.
"""

from __future__ import annotations

import numpy as np

from medmae.core.random import mix

CLASSES: tuple[str, ...] = ("rising", "falling", "arch", "vibrato", "two-note", "chirps")
RATE, SECONDS = 16000, 2.0
_STREAM = 0x746F79617564696F
_HIGHEST = 7200.0  # Hertz; harmonics above it are left out, so that nothing folds back


def generate(index: int, *, seed: int) -> tuple[np.ndarray, str]:
    """Sound ``index`` of a seed: float32[32000] in [-1, 1] at 16 kHz, and its class.

    Consecutive indices go through the classes in turn. rising, falling: a glide. arch: up and back. vibrato: a pitch
    that swings. two-note: two steady notes. chirps: a train of short glides.
    """
    label = CLASSES[index % len(CLASSES)]
    random = np.random.default_rng(mix(_STREAM, seed, index))
    total = int(RATE * SECONDS)
    long = int(RATE * random.uniform(0.9, 1.5))
    onset = int(random.integers(0, total - long))
    octaves, loud = _contour(label, np.linspace(0, 1, long, endpoint=False), random)
    pitch = random.uniform(500, 1500) * 2.0 ** (octaves - octaves.mean())
    phase = 2 * np.pi * np.cumsum(pitch) / RATE + random.uniform(0, 2 * np.pi)
    call = np.zeros(long)
    fall = random.uniform(0.8, 2.0)
    for harmonic in range(1, 7):
        call += np.where(harmonic * pitch < _HIGHEST, np.sin(harmonic * phase) / harmonic**fall, 0)
    call *= loud * np.clip(np.minimum(np.arange(long), np.arange(long)[::-1]) / (0.03 * RATE), 0, 1)
    wave = np.zeros(total)
    wave[onset : onset + long] = call / np.sqrt(np.mean(call**2))
    ground = _ground(total, random) * 10 ** (-random.uniform(8, 25) / 20)
    wave = (wave + ground) * random.uniform(0.02, 0.15)
    return np.clip(wave, -1, 1).astype(np.float32), label


def _contour(label: str, t: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Octaves above an arbitrary pitch, and loudness in [0, 1], over the time ``t`` of a call in [0, 1)."""
    span, even = random.uniform(0.5, 1.1), np.ones_like(t)
    bend = t ** random.uniform(0.7, 1.4)
    if label == "rising":
        return span * bend, even
    if label == "falling":
        return -span * bend, even
    if label == "arch":
        return span * np.sin(np.pi * bend) * random.choice((0.8, 1.0)), even
    if label == "vibrato":
        return span / 2 * np.sin(2 * np.pi * (random.uniform(5, 9) * t + random.uniform())), even
    if label == "two-note":
        change = random.uniform(0.35, 0.65)
        step = np.where(t < change, 0.0, span * random.choice((-1, 1)))
        return step, np.clip(np.abs(t - change) / 0.03, 0, 1)
    if label == "chirps":
        place = (random.integers(4, 8) * t) % 1.0
        inside = np.clip(np.minimum(place, 0.6 - place) / 0.08, 0, 1)
        return span * random.choice((-1, 1)) * np.minimum(place / 0.6, 1), inside
    raise ValueError(f"no contour is called {label!r}")


def _ground(total: int, random: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with the frequency, of unit power: float[total]."""
    frequency = np.fft.rfftfreq(total, 1 / RATE).clip(min=40.0)
    spectrum = np.fft.rfft(random.standard_normal(total)) * frequency ** -random.uniform(0, 0.6)
    noise = np.fft.irfft(spectrum, n=total)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))
