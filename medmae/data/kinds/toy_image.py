"""Toy images: one thing on a ground; the class is its outline and nothing else.

Place, size, angle, colors, texture, light and noise are drawn without regard to the class, so a feature that knows
colors or brightness does not help a probe; one that knows shapes does.
"""

from __future__ import annotations

import numpy as np

from medmae.core.random import mix
from medmae.data.kinds.toy_shapes import OUTLINES, colors, cover, ground

CLASSES: tuple[str, ...] = OUTLINES
SIZE = 64
_STREAM = 0x746F79696D6167


def generate(index: int, *, seed: int) -> tuple[np.ndarray, str]:
    """Image ``index`` of a seed: uint8[3 64 64], and its class. Consecutive indices go through the classes in turn."""
    label = CLASSES[index % len(CLASSES)]
    random = np.random.default_rng(mix(_STREAM, seed, index))
    dark, bright = colors(random)
    behind = ground(random, SIZE, dark, power=float(random.uniform(2.2, 3.0)))
    thing = ground(random, SIZE, bright, power=float(random.uniform(2.2, 3.0)))
    radius = random.uniform(16, 24)
    center = (float(random.uniform(radius, SIZE - radius)), float(random.uniform(radius, SIZE - radius)))
    place = {"radius": radius, "angle": random.uniform(0, 2 * np.pi), "oval": random.uniform(0.85, 1.0)}
    shadow = cover(label, SIZE, center=(center[0] + 2, center[1] + 2), **place)[..., None]
    inside = cover(label, SIZE, center=center, **place)[..., None]
    image = behind * (1 - 0.35 * shadow)
    image = image * (1 - inside) + thing * inside
    image = image + random.normal(0, random.uniform(0.005, 0.01), image.shape)
    return np.ascontiguousarray(np.clip(image * 255, 0, 255).astype(np.uint8).transpose(2, 0, 1)), label
