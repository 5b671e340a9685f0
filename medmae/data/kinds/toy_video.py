"""Toy videos: one thing moves over a ground; the class is what moves, not how or where.

Motion, colors, ground, size, place and speed are drawn without regard to the class. A frame shows the outline, and
the next ones show it elsewhere: what is hidden in one place has been seen, or will be, in another.
"""

from __future__ import annotations

import numpy as np

from medmae.core.random import mix
from medmae.data.kinds.toy_shapes import OUTLINES, colors, cover, ground

CLASSES: tuple[str, ...] = OUTLINES
MOTIONS: tuple[str, ...] = ("drift", "circle", "bounce", "grow", "spin")
FRAMES, SIZE = 16, 64
_STREAM = 0x746F79766964656F


def generate(index: int, *, seed: int) -> tuple[np.ndarray, str]:
    """Video ``index`` of a seed: uint8[16 64 64 3], and its class. Consecutive indices go through the classes in turn.

    Motions: drift on a straight line; circle around a center; bounce up and down as from a floor; grow in place;
    spin in place.
    """
    label = CLASSES[index % len(CLASSES)]
    random = np.random.default_rng(mix(_STREAM, seed, index))
    dark, bright = colors(random)
    behind = ground(random, SIZE, dark, power=float(random.uniform(2.2, 3.0)))
    thing = bright[0]
    oval = float(random.uniform(0.85, 1.0))
    noise = random.uniform(0.005, 0.01)
    row, column, radius, angle = path(MOTIONS[int(random.integers(len(MOTIONS)))], random)
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.float32)
    for t in range(FRAMES):
        center, place = (row[t], column[t]), {"radius": radius[t], "angle": angle[t], "oval": oval}
        shadow = cover(label, SIZE, center=(center[0] + 2, center[1] + 2), **place)[..., None]
        inside = cover(label, SIZE, center=center, **place)[..., None]
        frames[t] = behind * (1 - 0.35 * shadow) * (1 - inside) + thing * inside
    frames += random.normal(0, noise, frames.shape)
    return np.clip(frames * 255, 0, 255).astype(np.uint8), label


def path(motion: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, column, radius (pixels) and angle (radians) of the thing in every frame: float[16] each."""
    time = np.linspace(0, 1, FRAMES)
    size = random.uniform(14, 20)
    room = size * 0.9
    row = np.full(FRAMES, random.uniform(room, SIZE - room))
    column = np.full(FRAMES, random.uniform(room, SIZE - room))
    radius = np.full(FRAMES, size)
    angle = np.full(FRAMES, random.uniform(0, 2 * np.pi))
    if motion == "drift":
        last = random.uniform(room, SIZE - room, 2)
        row, column = row + (last[0] - row) * time, column + (last[1] - column) * time
    elif motion == "circle":
        around = random.uniform(6, 12)
        phase = random.uniform(0, 2 * np.pi) + random.choice((-1, 1)) * random.uniform(1, 1.5) * 2 * np.pi * time
        middle = SIZE / 2 + random.uniform(-6, 6, 2)
        row, column = middle[0] + around * np.sin(phase), middle[1] + around * np.cos(phase)
    elif motion == "bounce":
        height = random.uniform(14, 24)
        hop = (random.uniform(1.2, 2.0) * time + random.uniform(0, 1)) % 1
        row = SIZE - room - height * 4 * hop * (1 - hop)
    elif motion == "grow":
        radius = size * np.linspace(random.uniform(0.5, 0.7), random.uniform(1.2, 1.4), FRAMES)
    elif motion == "spin":
        angle = angle + random.choice((-1, 1)) * random.uniform(0.5, 1.0) * np.pi * time
    return row, column, radius, angle
