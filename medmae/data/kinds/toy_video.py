"""Toy videos: one thing moves over a ground; the class is how it moves and nothing else.

Outline, colors, ground, size, place, angle and speed are drawn without regard to the class, and every class passes
through places, sizes and angles that the others also take: a single frame hardly tells the class, their order does.
"""

from __future__ import annotations

import numpy as np

from medmae.core.random import mix
from medmae.data.kinds.toy_shapes import colors, cover, ground

CLASSES: tuple[str, ...] = ("left", "right", "circle", "bounce", "grow", "spin")
FRAMES, SIZE = 16, 64
_OUTLINES = ("square", "triangle", "cross", "star")  # those that can be seen to spin
_STREAM = 0x746F79766964656F


def generate(index: int, *, seed: int) -> tuple[np.ndarray, str]:
    """Video ``index`` of a seed: uint8[16 64 64 3], and its class. Consecutive indices go through the classes in turn.

    left, right: drifts that way. circle: around a center. bounce: up and down as from a floor. grow: swells in place.
    spin: turns in place.
    """
    label = CLASSES[index % len(CLASSES)]
    random = np.random.default_rng(mix(_STREAM, seed, index))
    dark, bright = colors(random)
    behind = ground(random, SIZE, dark)
    outline = _OUTLINES[int(random.integers(len(_OUTLINES)))]
    thing = bright[0]
    oval = float(random.uniform(0.7, 1.0))
    noise = random.uniform(0.005, 0.02)
    row, column, radius, angle = _motion(label, random)
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.float32)
    for t in range(FRAMES):
        center, place = (row[t], column[t]), {"radius": radius[t], "angle": angle[t], "oval": oval}
        shadow = cover(outline, SIZE, center=(center[0] + 2, center[1] + 2), **place)[..., None]
        inside = cover(outline, SIZE, center=center, **place)[..., None]
        frames[t] = behind * (1 - 0.35 * shadow) * (1 - inside) + thing * inside
    frames += random.normal(0, noise, frames.shape)
    return np.clip(frames * 255, 0, 255).astype(np.uint8), label


def _motion(label: str, random: np.random.Generator) -> tuple[list[float], list[float], list[float], list[float]]:
    """Row, column, radius (pixels) and angle (radians) of the thing in every frame."""
    time = np.linspace(0, 1, FRAMES)
    size = random.uniform(9, 15)
    room = size + 1
    row = np.full(FRAMES, random.uniform(room, SIZE - room))
    column = np.full(FRAMES, random.uniform(room, SIZE - room))
    radius = np.full(FRAMES, size)
    angle = np.full(FRAMES, random.uniform(0, 2 * np.pi))
    if label in ("left", "right"):
        way = random.uniform(18, 28)
        first = random.uniform(room, SIZE - room - way)
        column = first + way * time
        if label == "left":
            column = column[::-1]
    elif label == "circle":
        around = random.uniform(8, 14)
        middle = random.uniform(room + around * 0.6, SIZE - room - around * 0.6, 2)
        phase = random.uniform(0, 2 * np.pi) + random.choice((-1, 1)) * random.uniform(1, 1.5) * 2 * np.pi * time
        row, column = middle[0] + around * np.sin(phase), middle[1] + around * np.cos(phase)
    elif label == "bounce":
        height = random.uniform(14, 26)
        floor = random.uniform(room + height, max(SIZE - room, room + height + 1))
        hop = (random.uniform(1.2, 2.0) * time + random.uniform(0, 1)) % 1
        row = floor - height * 4 * hop * (1 - hop)
    elif label == "grow":
        radius = size * np.linspace(random.uniform(0.4, 0.6), random.uniform(1.3, 1.6), FRAMES)
    elif label == "spin":
        angle = angle + random.choice((-1, 1)) * random.uniform(0.8, 1.5) * np.pi * time
    return row.tolist(), column.tolist(), radius.tolist(), angle.tolist()
