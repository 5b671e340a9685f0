"""Tumors: an irregular core that pushes the brain aside, with a necrotic center, an enhancing rim, and edema.

The kind of tumor (``idh`` mutant or wild type) is drawn first and shapes what is drawn after it, so that it can be read
from the images, but not surely: mutants are more often frontal, enhance less, have less necrosis and less edema.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from medmae.data.synthetic.anatomy import Anatomy, Coordinates, Template
from medmae.data.synthetic.noise import Field, smooth_noise

LABELS = {"background": 0, "ncr": 1, "ed": 2, "et": 3}


@dataclass(frozen=True)
class Plan:
    """What a tumor will be like; lengths in millimeters, ``center`` in voxels, ``site`` in MNI millimeters."""

    mutant: bool
    center: tuple[int, int, int]
    site: tuple[float, float, float]
    radius: float
    stretch: tuple[float, float, float]
    push: float
    rim: float
    halo: float


@dataclass(frozen=True)
class Tumor:
    """Label map, soft fraction of each tumor tissue (``ncr``, ``et``, ``ed``; their sum is at most one)."""

    label: UInt8[np.ndarray, "x y z"]
    fractions: dict[str, Field]

    def volumes(self, spacing: float) -> dict[str, float]:
        """Milliliters of each tissue."""
        return {
            name: float((self.label == value).sum()) * spacing**3 / 1000 for name, value in LABELS.items() if value > 0
        }


def plan_tumor(rng: np.random.Generator, *, template: Template, where: Coordinates) -> Plan:
    """Draw a tumor whose center lies in deep cerebral white matter of the case that comes from ``where``."""
    mutant = bool(rng.random() < 0.4)
    candidates = np.argwhere((template.white > 0.6) & (template.depth > 12))
    mm = template.to_mm(candidates.T.astype(np.float32))
    weight = (mm[2] > -15) * np.where(mm[1] > 0, 3.0 if mutant else 0.8, 1.0)
    site = candidates[rng.choice(len(candidates), p=weight / weight.sum())].astype(np.float32)
    center = np.unravel_index(int(((where - site.reshape(3, 1, 1, 1)) ** 2).sum(0).argmin()), template.shape)
    radius = float(rng.uniform(9, 20))
    x, y, z = (float(value) for value in template.to_mm(site))
    return Plan(
        mutant=mutant,
        center=(int(center[0]), int(center[1]), int(center[2])),
        site=(x, y, z),
        radius=radius,
        stretch=(float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.8, 1.25))),
        push=float(rng.uniform(0.25, 0.55)) * radius,
        rim=float(rng.uniform(1.5, 0.35 * radius) if mutant else rng.uniform(2.5, 0.5 * radius)),
        halo=float(rng.uniform(3, 10) if mutant else rng.uniform(6, 22)),
    )


def displace(where: Coordinates, *, plan: Plan, spacing: float) -> Coordinates:
    """``where`` after the mass effect: tissue near the tumor is pushed away from its center."""
    away, distance = _from_center(plan, where.shape[1:], spacing)
    radius = plan.radius
    push = plan.push * np.exp(-((np.maximum(distance - 0.6 * radius, 0) / (1.1 * radius)) ** 2))
    push = push * np.minimum(distance / (0.6 * radius), 1)
    moved: Coordinates = where - away * (push / np.maximum(distance, 1e-3) / spacing)
    return moved


def grow_tumor(rng: np.random.Generator, *, plan: Plan, anatomy: Anatomy, spacing: float) -> Tumor:
    """The planned tumor in ``anatomy``: its labels and soft tissue fractions."""
    from scipy import ndimage

    shape, radius = anatomy.brain.shape, plan.radius

    def noise(millimeters: float) -> Field:
        return smooth_noise(rng, shape=shape, sigma=millimeters / spacing)

    _, distance = _from_center(plan, shape, spacing, stretch=plan.stretch)
    outline = 0.20 * radius * noise(9.0) + 0.07 * radius * noise(4.0)
    outline = distance + np.clip(outline, -0.45 * radius, 0.45 * radius)
    core = _connected((outline < radius) & anatomy.brain & (anatomy.csf < 0.95), plan.center)
    rim = plan.rim * (1 + 0.5 * np.clip(noise(5.0), -1.8, 1.8))
    inner = core & (outline < radius - np.maximum(rim, 0))
    # Part of a mutant's rim does not enhance; it belongs to the non-enhancing core.
    patchy = core & (noise(6.0) > (0.0 if plan.mutant else 1.3))
    reach = radius + plan.halo
    irregular = np.clip(0.25 * reach * noise(14.0), -0.4 * reach, 0.4 * reach)
    beyond = np.maximum(0, -np.sign(plan.site[0]) * anatomy.place[0])  # the other hemisphere is reached with difficulty
    spread = distance + irregular + 14 * anatomy.gray + 40 * anatomy.csf + 1.5 * beyond  # edema follows white matter
    soft = 1 / (1 + np.exp(np.clip((spread - reach) / 1.5, -30, 30))) * anatomy.brain * ~core
    near = ndimage.binary_dilation(_connected((soft > 0.5) | core, plan.center), iterations=max(1, round(2 / spacing)))
    soft = soft * near

    label = np.zeros(shape, np.uint8)
    label[soft > 0.5] = LABELS["ed"]
    label[core] = LABELS["et"]
    label[inner | patchy] = LABELS["ncr"]
    blur = 0.6 / spacing
    fractions = {name: _blurred(label == LABELS[name], blur) for name in ("ncr", "et")}
    fractions["ed"] = ndimage.gaussian_filter(soft.astype(np.float32), blur)
    total = np.maximum(sum(fractions.values()), 1)
    return Tumor(label, {name: (field / total * anatomy.brain).astype(np.float32) for name, field in fractions.items()})


def _from_center(
    plan: Plan, shape: tuple[int, ...], spacing: float, stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[Float32[np.ndarray, "3 x y z"], Field]:
    """Offset of each voxel from the tumor's center in millimeters (each axis times ``stretch``), and its length."""
    axes = [
        ((np.arange(size, dtype=np.float32) - middle) * np.float32(spacing * factor))
        for size, middle, factor in zip(shape, plan.center, stretch, strict=True)
    ]
    offset = np.stack(np.meshgrid(*axes, indexing="ij"))
    return offset, np.sqrt((offset**2).sum(0))


def _connected(mask: np.ndarray, center: tuple[int, int, int]) -> np.ndarray:
    """The connected part of ``mask`` that holds ``center``, or else its largest part."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    part = parts[center] or 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return np.asarray(parts == part)


def _blurred(mask: np.ndarray, sigma: float) -> Field:
    from scipy import ndimage

    field: Field = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return field
