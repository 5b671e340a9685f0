"""Toy clouds: points on one closed-form surface each; the class is the kind of surface and nothing else.

Proportions, shear, size, place, noise and the turn about the upright axis are drawn without regard to the class.
Points are spread evenly over the area: a surface is cut into cells in its two parameters, cells are drawn by their
area and points anywhere inside, so density does not tell where the parameters crowd (the poles of a sphere, the inside
of a ring).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from medmae.core.random import mix

COUNT = 2048
_CELLS = 48
_STREAM = 0x746F79706F696E
_TURN = 2 * np.pi

Sheet = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""x, y and z of a piece of a surface from two parameters in [0, 1]."""


def generate(index: int, *, seed: int) -> tuple[np.ndarray, str]:
    """Cloud ``index`` of a seed: float32[2048 3], and its class. Consecutive indices go through the classes in turn.

    ellipsoid, box, torus, cylinder and cone (both closed), lobes (an organ-like blob of two), tube (a vessel that
    winds), bowl (open above). A thing is one to four units long; what the unit is, is not told.
    """
    label = CLASSES[index % len(CLASSES)]
    random = np.random.default_rng(mix(_STREAM, seed, index))
    shape = np.diag(random.uniform(0.75, 1.3, 3)) + np.tril(random.uniform(-0.15, 0.15, (3, 3)), -1)
    angle = random.uniform(0, _TURN)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    points = _spread(_SURFACES[label](random), COUNT, turn @ shape, random)
    points = points * random.uniform(0.6, 1.4) + random.normal(0, 0.3, 3)
    points += random.normal(0, random.uniform(0.002, 0.015), points.shape)
    return points.astype(np.float32), label


def _spread(sheets: list[Sheet], count: int, shape: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """``count`` points, evenly by area, on sheets that the matrix ``shape`` has been applied to: float[count 3]."""
    side = np.linspace(0, 1, _CELLS + 1)
    u, v = np.meshgrid(side, side, indexing="ij")
    corners = np.stack([np.stack(np.broadcast_arrays(*sheet(u, v)), -1) @ shape.T for sheet in sheets])
    a, b, c, d = corners[:, :-1, :-1], corners[:, 1:, :-1], corners[:, :-1, 1:], corners[:, 1:, 1:]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=-1) + np.linalg.norm(np.cross(b - d, c - d), axis=-1)
    chosen = random.choice(area.size, count, p=(area / area.sum()).ravel())
    s, t = random.uniform(size=(2, count, 1))
    a, b, c, d = (x.reshape(-1, 3)[chosen] for x in (a, b, c, d))
    return np.asarray((a * (1 - s) + b * s) * (1 - t) + (c * (1 - s) + d * s) * t)


def _ellipsoid(random: np.random.Generator) -> list[Sheet]:
    return [lambda u, v: _round(u, np.pi * v, 1.0, 1.0)]


def _box(random: np.random.Generator) -> list[Sheet]:
    def face(axis: int, at: float) -> Sheet:
        def sheet(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            flat = [2 * u - 1, 2 * v - 1]
            flat.insert(axis, np.full_like(u, at))
            return 0.8 * flat[0], 0.8 * flat[1], 0.8 * flat[2]

        return sheet

    return [face(axis, at) for axis in range(3) for at in (-1.0, 1.0)]


def _torus(random: np.random.Generator) -> list[Sheet]:
    thick = random.uniform(0.2, 0.4)

    def sheet(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        out = 0.85 + thick * np.cos(_TURN * v)
        return out * np.cos(_TURN * u), out * np.sin(_TURN * u), thick * np.sin(_TURN * v)

    return [sheet]


def _cylinder(random: np.random.Generator) -> list[Sheet]:
    half = random.uniform(0.6, 1.1)
    return [_wall(0.7, 0.7, half), _disk(0.7, -half), _disk(0.7, half)]


def _cone(random: np.random.Generator) -> list[Sheet]:
    half = random.uniform(0.7, 1.1)
    return [_wall(0.95, 0.0, half), _disk(0.95, -half)]


def _lobes(random: np.random.Generator) -> list[Sheet]:
    deep, small, bend = random.uniform(0.25, 0.45), random.uniform(0.1, 0.3), random.uniform(-0.3, 0.3)

    def sheet(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y, z = _round(u, np.pi * v, 0.75, 1.3)
        waist = 1 - deep * np.exp(-((z / 0.4) ** 2)) - small * (z > 0) * np.sin(np.pi * z / 1.3)
        return x * waist + bend * z * z, y * waist * 0.8, z

    return [sheet]


def _tube(random: np.random.Generator) -> list[Sheet]:
    thick, turns, rise = random.uniform(0.1, 0.2), random.uniform(1.0, 1.6), random.uniform(0.5, 0.8)

    def sheet(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        along, out = _TURN * turns * u, 0.7 + thick * np.cos(_TURN * v)
        return out * np.cos(along), out * np.sin(along), rise * (2 * u - 1) + thick * np.sin(_TURN * v)

    return [sheet]


def _bowl(random: np.random.Generator) -> list[Sheet]:
    share = random.uniform(0.4, 0.6)
    return [lambda u, v: _round(u, np.pi * (1 - share * v), 1.0, 1.0)]


def _round(u: np.ndarray, polar: np.ndarray, wide: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """On a spheroid, at ``u`` turns around it and ``polar`` radians from its top."""
    flat = wide * np.sin(polar)
    return flat * np.cos(_TURN * u), flat * np.sin(_TURN * u), high * np.cos(polar)


def _wall(below: float, above: float, half: float) -> Sheet:
    def sheet(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        radius = below + (above - below) * v
        return radius * np.cos(_TURN * u), radius * np.sin(_TURN * u), half * (2 * v - 1)

    return sheet


def _disk(radius: float, at: float) -> Sheet:
    def sheet(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return radius * v * np.cos(_TURN * u), radius * v * np.sin(_TURN * u), np.full_like(u, at)

    return sheet


_SURFACES: Mapping[str, Callable[[np.random.Generator], list[Sheet]]] = {
    "ellipsoid": _ellipsoid,
    "box": _box,
    "torus": _torus,
    "cylinder": _cylinder,
    "cone": _cone,
    "lobes": _lobes,
    "tube": _tube,
    "bowl": _bowl,
}
CLASSES: tuple[str, ...] = tuple(_SURFACES)
