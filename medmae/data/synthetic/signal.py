"""From tissue to images: maps of PD, T1 and T2, the signal equations of each sequence, and what scanners add.

All sequences of a case look at the same maps, so they share what real sequences share. They differ, beyond the
equations, in what real sequences do not share: T1 and T2 vary independently inside one tissue, gadolinium shows
vessels, dura and perfusion, every scan has its own texture, thickness, shift, bias field, noise and unit of intensity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16

from medmae.data.synthetic.anatomy import Anatomy
from medmae.data.synthetic.noise import Field, smooth_noise
from medmae.data.synthetic.tumor import Tumor

Flat = Float32[np.ndarray, " voxels"]

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")


@dataclass(frozen=True)
class Tissue:
    """Relaxation at 3 T in milliseconds (rounded literature values), and how much each varies inside the tissue."""

    pd: float
    t1: float
    t2: float
    vary_t1: float
    vary_t2: float
    t1_gadolinium: float | None = None


TISSUES = {
    "white": Tissue(0.70, 830.0, 72.0, 0.025, 0.05),
    "gray": Tissue(0.80, 1450.0, 92.0, 0.03, 0.07),
    "csf": Tissue(1.0, 4000.0, 1400.0, 0.04, 0.25),
    "ncr": Tissue(0.95, 2300.0, 280.0, 0.18, 0.30),
    "ed": Tissue(0.84, 1400.0, 130.0, 0.10, 0.16),
    "et": Tissue(0.85, 1450.0, 118.0, 0.15, 0.18, t1_gadolinium=560.0),
    "vessel": Tissue(0.80, 1700.0, 45.0, 0.05, 0.10, t1_gadolinium=400.0),
    "dura": Tissue(0.60, 1100.0, 45.0, 0.05, 0.10, t1_gadolinium=520.0),
}

# What no other sequence knows: texture of one scan, its noise (range, of its 95th percentile), and the share of the
# fluid's signal that flow takes away (it leaves voids in t2w where t1n and t2f see dark fluid anyway).
TEXTURE = {"t1n": 0.010, "t1c": 0.022, "t2w": 0.055, "t2f": 0.015}
NOISE = {"t1n": (0.006, 0.018), "t1c": (0.006, 0.018), "t2w": (0.012, 0.035), "t2f": (0.010, 0.030)}
FLOW = {"t1n": 0.05, "t1c": 0.05, "t2w": 0.36, "t2f": 0.1}


@dataclass(frozen=True)
class Scan:
    """How one sequence is acquired: times in milliseconds, lengths in millimeters."""

    name: str
    tr: float
    te: float
    ti: float | None
    gadolinium: bool
    thickness: float
    axis: int
    offset: tuple[float, float, float]

    def describe(self) -> dict[str, Any]:
        """JSON-able values, rounded."""
        plain = asdict(self)
        plain["offset"] = [round(value, 2) for value in self.offset]
        return {key: round(value, 2) if isinstance(value, float) else value for key, value in plain.items()}


def draw_scans(rng: np.random.Generator) -> tuple[Scan, ...]:
    """One random protocol: four scans, t1n and t1c with the same timing up to a few percent."""
    tr, te = rng.uniform(450, 650), rng.uniform(8, 14)
    timing = {
        "t1n": (tr, te, None),
        "t1c": (tr * rng.uniform(0.95, 1.05), te * rng.uniform(0.95, 1.05), None),
        "t2w": (rng.uniform(3800, 6000), rng.uniform(85, 115), None),
        "t2f": (rng.uniform(8500, 10000), rng.uniform(100, 140), rng.uniform(2350, 2600)),
    }
    scans = []
    for name in SEQUENCES:
        thickness = rng.uniform(1, 2) if name in ("t1n", "t1c") else rng.uniform(1, 5)
        offset = np.zeros(3) if name == "t1n" else rng.normal(0, 0.45, 3)  # residual misregistration to t1n
        axis = 2 if rng.random() < 0.7 else int(rng.integers(2))
        x, y, z = (float(value) for value in offset)
        trn, ten, tin = timing[name]
        inversion = None if tin is None else float(tin)
        scans.append(Scan(name, float(trn), float(ten), inversion, name == "t1c", float(thickness), axis, (x, y, z)))
    return tuple(scans)


def acquire(
    rng: np.random.Generator, *, anatomy: Anatomy, tumor: Tumor, scans: tuple[Scan, ...], spacing: float
) -> dict[str, Int16[np.ndarray, "x y z"]]:
    """The images of one case, int16 in arbitrary units, 0 outside the brain."""
    inside = anatomy.brain
    fractions = _mix(rng, anatomy, tumor, spacing)
    relaxation = _relaxation(rng, fractions, anatomy, spacing)
    perfusion = 0.06 * _noise(rng, inside, 6 / spacing) + 0.05 * _noise(rng, inside, 2.5 / spacing)
    patchy = 0.30 * _noise(rng, inside, 4 / spacing)
    sulcal = 1 - 0.8 * np.clip(
        (anatomy.depth[inside] - 15) / 8, 0, 1
    )  # pulsation and small vessels: less in ventricles
    images = {}
    for scan in scans:
        flat = np.zeros(int(inside.sum()), np.float32)
        for name, share in fractions.items():
            pd, t1, t2 = relaxation[name]
            if scan.gadolinium:
                t1 = _enhanced(name, t1, perfusion, patchy)
            signal = _signal(pd, t1, t2, scan)
            if name == "csf":
                signal = signal * (1 - FLOW[scan.name] * sulcal * np.abs(_noise(rng, inside, 2.5 / spacing)))
            flat += share * signal
        texture = 0.7 * _noise(rng, inside, 3 / spacing) + 0.7 * _noise(rng, inside, 1.5 / spacing)
        texture = TEXTURE[scan.name] * texture
        flat *= 1 + texture * (1 + 1.5 * (fractions["ncr"] + fractions["et"] + fractions["ed"]))
        images[scan.name] = _scanned(rng, flat, inside, scan, spacing)
    return images


def _noise(rng: np.random.Generator, inside: np.ndarray, sigma: float) -> Flat:
    """Smooth noise in the brain's voxels, without its extremes."""
    flat: Flat = np.clip(smooth_noise(rng, shape=inside.shape, sigma=sigma)[inside], -2.5, 2.5)
    return flat


def _mix(rng: np.random.Generator, anatomy: Anatomy, tumor: Tumor, spacing: float) -> dict[str, Flat]:
    """Share of every tissue in the brain's voxels; vessels and dura take the place of what they lie in."""
    inside, shape = anatomy.brain, anatomy.brain.shape
    lesion = {name: field[inside] for name, field in tumor.fractions.items()}
    healthy = np.clip(1 - sum(lesion.values()), 0, 1)
    depth, place = anatomy.depth[inside], anatomy.place[:, inside]
    csf = anatomy.csf[inside]

    # Where two fields are both near zero lies a curve: a tree of tubes, denser in the sulci.
    first, second = (smooth_noise(rng, shape=shape, sigma=4 / spacing)[inside] for _ in range(2))
    radius = float(np.hypot(0.8, 0.3 * spacing)) / 5.7  # the slope of the fields is about 1 / 5.7 mm
    tubes = np.exp(-(first**2 + second**2) / (2 * radius**2))
    vessel = tubes * np.clip(0.25 + 1.6 * csf, 0, 1) * (depth < 25)
    # The sagittal sinus runs along the midline of the surface, over the top and down the back.
    sinus = np.exp(-((place[0] / 3.5) ** 2)) * np.exp(-((depth / 5.0) ** 2)) * ((place[2] > 10) & (place[1] < 40))
    plexus = (csf > 0.6) * (depth > 22) * (smooth_noise(rng, shape=shape, sigma=3 / spacing)[inside] > 1.5) * 0.5
    vessel = np.clip(np.maximum(np.maximum(vessel, sinus * 0.9), plexus), 0, 0.95)
    patches = smooth_noise(rng, shape=shape, sigma=12 / spacing)[inside]
    falx = np.exp(-((place[0] / 1.5) ** 2)) * (depth > 3) * (place[2] > 15) * csf
    shell = np.exp(-(((depth - spacing / 2) / 1.5) ** 2))  # the outermost voxel's center lies half a voxel deep
    dura = np.clip(shell * np.clip(0.4 + 0.5 * patches, 0, 1), 0, 0.6)
    dura = np.maximum(dura, 0.5 * falx) * (1 - vessel)

    rest = healthy * (1 - vessel - dura)
    shares = {"white": anatomy.white[inside] * rest, "gray": anatomy.gray[inside] * rest, "csf": csf * rest}
    shares |= {"vessel": vessel * healthy, "dura": dura * healthy} | lesion
    return {name: share.astype(np.float32) for name, share in shares.items()}


def _relaxation(
    rng: np.random.Generator, fractions: dict[str, Flat], anatomy: Anatomy, spacing: float
) -> dict[str, tuple[Flat, Flat, Flat]]:
    """PD, T1 and T2 of every tissue in the brain's voxels: T1 and T2 share some of their texture, not all."""
    inside = anatomy.brain

    def texture() -> Flat:
        fine = 0.6 * _noise(rng, inside, 2.2 / spacing) + 0.6 * _noise(rng, inside, 5 / spacing)
        return np.asarray(fine + 0.5 * _noise(rng, inside, 22 / spacing), np.float32)

    shared, only_t1, only_t2 = texture(), texture(), texture()
    in_t1, in_t2 = 0.6 * shared + 0.8 * only_t1, 0.6 * shared + 0.8 * only_t2
    depth = anatomy.depth[inside]
    deep = np.clip((depth - 20) / 10, 0, 1)  # deep gray matter holds iron
    spots = 0.7 * _noise(rng, inside, 2.5 / spacing) + 0.7 * _noise(rng, inside, 9 / spacing)
    spots = np.clip(4 * (spots - 1.7), 0, 1) * deep  # small age-related lesions of deep white matter
    maps = {}
    for name in fractions:
        tissue = TISSUES[name]
        jitter = (1 + rng.normal(0, [0.02, 0.05, 0.06])).astype(np.float32)
        t1 = tissue.t1 * jitter[1] * np.clip(1 + tissue.vary_t1 * in_t1, 0.4, 2)
        t2 = tissue.t2 * jitter[2] * np.clip(1 + tissue.vary_t2 * in_t2, 0.3, 2.5)
        if name == "gray":
            t1, t2 = t1 * (1 - 0.10 * deep), t2 * (1 - 0.15 * deep)
        if name == "white":
            t1, t2 = t1 * (1 + 0.2 * spots), t2 * (1 + 0.35 * spots)
        pd = np.full_like(t1, tissue.pd * jitter[0])
        maps[name] = (pd.astype(np.float32), t1.astype(np.float32), t2.astype(np.float32))
    return maps


def _enhanced(name: str, t1: Flat, perfusion: Flat, patchy: Flat) -> Flat:
    """T1 after gadolinium: short where the contrast agent leaks or flows, a little shorter in perfused gray matter."""
    enhanced, factor = TISSUES[name].t1_gadolinium, np.ones_like(t1)
    if enhanced is not None:
        factor = enhanced / TISSUES[name].t1 * np.clip(1 + patchy, 0.5, 2.2)
    elif name in ("gray", "white"):
        factor = 0.95 - (perfusion if name == "gray" else 0.5 * perfusion)
    return np.asarray(t1 * factor, np.float32)


def _signal(pd: Flat, t1: Flat, t2: Flat, scan: Scan) -> Flat:
    """Spin echo, or inversion recovery (magnitude) where the scan has an inversion time."""
    if scan.ti is None:
        recovered = 1 - np.exp(-scan.tr / t1)
    else:
        recovered = np.abs(1 - 2 * np.exp(-scan.ti / t1) + np.exp(-scan.tr / t1))
    return np.asarray(pd * recovered * np.exp(-scan.te / t2), np.float32)


def _scanned(
    rng: np.random.Generator, flat: Flat, inside: np.ndarray, scan: Scan, spacing: float
) -> Int16[np.ndarray, "x y z"]:
    """What the scanner and the pipeline after it make of a signal: blur, shift, bias, noise, unit, skull strip."""
    image = np.zeros(inside.shape, np.float32)
    image[inside] = flat
    weight = inside.astype(np.float32)
    for axis in range(3):
        # 2.35 standard deviations are the full width at half maximum of a slice profile
        sigma = float(np.hypot(0.3, scan.thickness / 2.35 / spacing if axis == scan.axis else 0.0))
        image, weight = (_spread(field, axis, sigma, scan.offset[axis] / spacing) for field in (image, weight))
    flat = image[inside] / np.maximum(weight[inside], 0.2)  # the skull that was stripped is not black
    flat = flat * np.exp(0.09 * smooth_noise(rng, shape=inside.shape, sigma=45 / spacing)[inside])
    reference = float(np.percentile(flat, 95))
    sigma = reference * float(rng.uniform(*NOISE[scan.name]))
    real, imaginary = (np.float32(sigma) * rng.standard_normal(flat.shape, dtype=np.float32) for _ in range(2))
    flat = np.hypot(flat + real, imaginary)
    unit = float(rng.uniform(400, 1800)) / reference
    result = np.zeros(inside.shape, np.int16)
    result[inside] = np.clip(np.round(flat * unit), 0, 32767)
    return result


def _spread(field: Field, axis: int, sigma: float, offset: float) -> Field:
    """``field`` blurred by ``sigma`` and shifted by ``offset`` voxels along ``axis``, in one pass."""
    from scipy import ndimage

    radius = int(np.ceil(3 * sigma + abs(offset)))
    kernel = np.exp(-0.5 * ((np.arange(-radius, radius + 1) - offset) / sigma) ** 2)
    spread: Field = ndimage.correlate1d(field, (kernel / kernel.sum()).astype(np.float32), axis=axis, mode="constant")
    return spread
