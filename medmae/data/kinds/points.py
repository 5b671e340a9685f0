"""Clouds of points: from scanners, from simulations, and from the surfaces of meshes.

A sample is always the same number of points. A larger cloud is thinned at random, a smaller one keeps all its points
and repeats some, and a mesh is sampled evenly over its area, anew at every visit: a mesh of few large triangles is as
good as one of many. Then the points are centered on their mean and scaled to reach 1, as Point-MAE has it, or divided
by a given length, which keeps sizes comparable. In training every axis is stretched and the cloud shifted, on the
device; turning is an option, because what stands upright in all data (a patient, a street) says something by it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from medmae.core.errors import DataError, UsageError
from medmae.core.random import mix, normal, uniform
from medmae.data.kinds import toy_points, toys
from medmae.data.kinds.listing import Sample
from medmae.data.kinds.options import checked_options
from medmae.data.kinds.point_files import SUFFIXES, Shape, read_shape, trimesh
from medmae.data.layouts import printable

TURNS = ("none", "x", "y", "z", "any")
_CHOOSE, _FIXED, _STRETCH, _SHIFT, _TURN = range(0x706F696E, 0x706F696E + 5)


@dataclass(frozen=True)
class PointsKind:
    """How clouds are read. The batch entry is ``points``, Float[b n 3].

    Attributes:
        points: points of a sample.
        least: points that a cloud must have, those of one group of the method.
        scale: ``"unit"`` (the farthest point is at 1), or the length, in the unit of the files, that becomes 1: with
            100, clouds in millimeters come in decimeters. Chamfer losses then grow with the size of things.
        stretch: in training every axis is multiplied by a number from [1/stretch, stretch]; 1 is off.
        shift: in training each cloud is moved by up to this much along every axis, after scaling.
        turn: in training clouds are turned by any angle about an axis, or in ``any`` way; ``none`` is off.
    """

    points: int = 1024
    least: int = 1
    scale: str | float = "unit"
    stretch: float = 1.5
    shift: float = 0.2
    turn: str = "none"

    name: ClassVar[str] = "points"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    entries: ClassVar[tuple[str, ...]] = ("points",)

    def __post_init__(self) -> None:
        if self.points < self.least:
            raise UsageError(f"data.reading.points {self.points}: a group of the method alone has {self.least} points")
        if self.scale != "unit" and (isinstance(self.scale, str) or not 0 < self.scale < float("inf")):
            raise UsageError(
                f"data.reading.scale is 'unit' or a positive length in the unit of the files, not {self.scale!r}"
            )
        if self.stretch < 1 or self.shift < 0:
            raise UsageError(
                f"data.reading.stretch {self.stretch} is at least 1, data.reading.shift {self.shift} at least 0"
            )
        if self.turn not in TURNS:
            raise UsageError(f"data.reading.turn is one of {', '.join(TURNS)}, not {self.turn!r}")

    @classmethod
    def of(cls, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> PointsKind:
        """The kind for a method whose recipe may have a ``group_size``, with the user's options.

        Raises UsageError for an option that is unknown or has no such value.
        """
        return cls(least=int(recipe.get("group_size", 1)), **checked_options(cls, options, without=("least",)))

    def read(self, sample: Sample, *, key: int, training: bool) -> dict[str, np.ndarray]:
        """``points`` Float32[n 3], centered and scaled; which points is a function of the key.

        Without ``training`` it is a function of the sample's name.
        """
        shape = self._shape(sample)
        seed = mix(_CHOOSE, key) if training else mix(_FIXED, zlib.crc32(sample.key.encode(errors="surrogatepass")))
        drawn = self._draw(shape, np.random.default_rng(seed))
        drawn -= drawn.mean(0)
        radius = float(np.linalg.norm(drawn, axis=1).max())
        if not 0 < radius < float("inf"):
            raise DataError(f"{_shown(sample)}: the points that were drawn all lie in one place")
        return {"points": (drawn / (radius if isinstance(self.scale, str) else self.scale)).astype(np.float32)}

    def finish(self, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        """``points``, in training turned, stretched and shifted by the sample's key."""
        points = batch["points"].float()
        return {"points": self._varied(points, batch["key"]) if training else points}

    def facts(self, sample: Sample) -> dict[str, Any]:
        """Numbers of points and faces, and the size of the box around it in the unit of the file.

        Raises DataError where the file is broken, or has fewer points than a group.
        """
        if "toy" in sample.extra:
            return {"points": toy_points.COUNT, "faces": 0}
        shape = self._shape(sample)
        size = [float(f"{side:.5g}") for side in np.ptp(shape.points, axis=0)]
        return {"points": len(shape.points), "faces": 0 if shape.faces is None else len(shape.faces), "size": size}

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": self.name, **dataclasses.asdict(self)}

    def _shape(self, sample: Sample) -> Shape:
        if "toy" in sample.extra:
            return Shape(toys.generate("toy-points", int(sample.extra["toy"]))[0].astype(np.float64))
        shape = read_shape(sample.path)
        if shape.faces is None and len(shape.points) < self.least:
            raise DataError(
                f"{_shown(sample)}: {len(shape.points)} points, fewer than the {self.least} of one group; "
                "leave it out, scan it more densely, or make the groups smaller (--set method.group_size=...)"
            )
        return shape

    def _draw(self, shape: Shape, random: np.random.Generator) -> Float64[np.ndarray, "n 3"]:
        count = len(shape.points)
        if shape.faces is not None:
            package = trimesh()
            # About the first corner: sums of areas far from the origin would lose their digits.
            mesh = package.Trimesh(shape.points - shape.points[0], shape.faces, process=False)
            drawn, _ = package.sample.sample_surface(mesh, self.points, seed=random)
            return np.array(drawn, np.float64)
        if count >= self.points:
            return shape.points[random.choice(count, self.points, replace=False)]
        again = random.choice(count, self.points - count)
        return shape.points[random.permutation(np.concatenate([np.arange(count), again]))]

    def _varied(self, points: Float[Tensor, "b n 3"], key: Int[Tensor, " b"]) -> Float[Tensor, "b n 3"]:
        if self.turn != "none":
            points = points @ rotations(key, about=self.turn).to(points.dtype)
        low = 1 / self.stretch
        factor = low + (self.stretch - low) * uniform(key, 3, stream=_STRETCH)
        offset = self.shift * (2 * uniform(key, 3, stream=_SHIFT) - 1)
        return points * factor[:, None] + offset[:, None]


def rotations(key: Int[Tensor, " b"], *, about: str) -> Float32[Tensor, "b 3 3"]:
    """One rotation per key: by a uniform angle about ``x``, ``y`` or ``z``, or uniform among all for ``any``."""
    if about == "any":
        w, x, y, z = torch.nn.functional.normalize(normal(key, 4, stream=_TURN), dim=1).unbind(1)
        rows = (
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        )  # fmt: skip
        return torch.stack(rows, 1).view(-1, 3, 3)
    angle = 2 * torch.pi * uniform(key, 1, stream=_TURN)[:, 0]
    axis = "xyz".index(about)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn = torch.eye(3, device=key.device).repeat(len(key), 1, 1)
    turn[:, a, a] = turn[:, b, b] = angle.cos()
    turn[:, a, b], turn[:, b, a] = angle.sin(), -angle.sin()
    return turn


def _shown(sample: Sample) -> str:
    return printable(str(sample.path), limit=400)
