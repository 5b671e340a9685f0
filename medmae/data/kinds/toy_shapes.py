"""Pictures of made-up things: surfaces with the spectrum of photographs, and outlines to cut out of them.

Photographs have a power spectrum that falls with the square of the frequency; noise of that spectrum in two colors
is hard to tell from real ground at 64 pixels, and takes a reconstruction more than one constant per patch. Outlines
are signed distances, so that edges are smooth at every size and angle.
"""

from __future__ import annotations

import numpy as np

OUTLINES = ("square", "triangle", "cross", "star", "disk", "ring")
_SOFT = 0.7  # half the width of an edge, in pixels


def surface(random: np.random.Generator, size: int, *, power: float = 1.6) -> np.ndarray:
    """Noise with a falling spectrum: float32[size size], zero mean, unit deviation, periodic.

    The amplitude falls with ``frequency ** -power``.
    """
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((size, size))) * radius**-power
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def colors(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colors of a ground and of a thing on it that is lit: two pairs of two similar colors, float32[2 3] each.

    Hues are anything; the thing is the brighter of the two, as what is looked at most often is.
    """
    dark, bright = random.uniform(0.1, 0.5, 3), random.uniform(0.45, 0.95, 3)
    bright += max(0.0, 0.25 - float((bright - dark).mean()))
    pairs = [color + random.uniform(-spread, spread, (2, 3)) for color, spread in ((dark, 0.14), (bright, 0.08))]
    return pairs[0].astype(np.float32), pairs[1].astype(np.float32)


def ground(random: np.random.Generator, size: int, pair: np.ndarray, *, power: float = 1.6) -> np.ndarray:
    """A surface between two colors, lit from one side: float32[size size 3].

    ``pair`` is float[2 3].
    """
    share = 1 / (1 + np.exp(-1.5 * surface(random, size, power=power)))[..., None]
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    light = 1 + 0.15 * (np.cos(angle) * x + np.sin(angle) * y)
    return np.asarray((share * pair[0] + (1 - share) * pair[1]) * light[..., None], np.float32)


def cover(
    outline: str, size: int, *, center: tuple[float, float], radius: float, angle: float, oval: float = 1.0
) -> np.ndarray:
    """How far each pixel lies inside an outline: float32[size size] in [0, 1].

    ``center`` (row, column) and ``radius`` are in pixels, ``angle`` in radians; ``oval`` narrows one axis. All outlines
    of one radius have about the same area, so that the area does not tell them apart.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    y, x = y - center[0], x - center[1]
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / (radius * oval)
    distance = _distance(outline, u, v) * radius
    return np.asarray(np.clip(0.5 - distance / (2 * _SOFT), 0, 1), np.float32)


def _distance(outline: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (about) to an outline of unit size, negative inside."""
    r = np.hypot(u, v)
    if outline == "disk":
        return r - 0.9
    if outline == "ring":
        return np.abs(r - 0.85) - 0.27
    if outline == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if outline == "triangle":
        return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.68
    if outline == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 1.1, b - 0.34), np.maximum(b - 1.1, a - 0.34))
    if outline == "star":
        turn = np.cos(5 * np.arctan2(v, u))
        return (r - (0.82 + 0.36 * turn)) * 0.7
    raise ValueError(f"no outline is called {outline!r}")
