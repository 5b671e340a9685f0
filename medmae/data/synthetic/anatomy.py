"""Healthy brains: tissue maps of one template, deformed differently for every case.

The template is the MNI152 (2009a) T1, gray and white matter maps that nilearn ships inside its wheel, so nothing is
downloaded. nilearn itself is never imported (it is slow to import, and only three of its files are wanted).

The maps are the mean of 152 people, so their folds are blurred away. They are sharpened, and every case gets sulci of
its own: sheets that stand upright on the brain surface (a random field taken at the nearest point of the surface does
not change with depth), lined with cortex.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from medmae.core.errors import MissingDependency
from medmae.data.synthetic.noise import Field, smooth_noise

Coordinates = Float32[np.ndarray, "3 x y z"]
Points = Float32[np.ndarray, "3 *rest"]

TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
MARGIN_MM = 10.0  # room around the template's brain for larger brains and shifts
SHARPEN = 2.0  # exponent on the tissue probabilities


@dataclass(frozen=True)
class Template:
    """Tissue probabilities on the grid that every case of a cohort shares.

    ``depth`` is the distance to the brain surface in millimeters, ``affine`` maps voxels to MNI millimeters (RAS).
    """

    gray: Field
    white: Field
    csf: Field
    depth: Field
    affine: Float64[np.ndarray, "4 4"]
    spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis."""
        x, y, z = self.gray.shape
        return x, y, z

    def to_mm(self, voxels: Points) -> Points:
        """Template millimeters of ``voxels`` (columns of voxel indices)."""
        moved = np.tensordot(self.affine[:3, :3], voxels, axes=(1, 0))
        points: Points = (moved + self.affine[:3, 3].reshape(3, *[1] * (voxels.ndim - 1))).astype(np.float32)
        return points


@dataclass(frozen=True)
class Anatomy:
    """One healthy (or pushed aside) brain: tissue fractions that sum to one inside ``brain``, depth in millimeters.

    ``place`` is where each voxel comes from in the template, in MNI millimeters: what lobe it is in.
    """

    gray: Field
    white: Field
    csf: Field
    brain: Bool[np.ndarray, "x y z"]
    depth: Field
    place: Coordinates


@lru_cache(maxsize=2)
def load_template(spacing: float) -> Template:
    """The template at ``spacing`` millimeters, cropped to the brain; ``MissingDependency`` where nilearn is absent."""
    import nibabel
    from scipy import ndimage

    folder = _template_folder()
    images: list[Any] = [nibabel.load(folder / TEMPLATE.format(name)) for name in ("t1", "gm", "wm")]
    t1, gray, white = (np.asanyarray(image.dataobj).astype(np.float32) / 255 for image in images)
    brain = ndimage.binary_opening((t1 > 0.05) | (gray + white > 0.2))
    brain = ndimage.binary_fill_holes(brain)
    total = np.maximum(gray + white, 1)
    gray, white = gray / total, white / total
    csf = np.clip(1 - gray - white, 0, 1) * brain

    found = np.argwhere(brain)
    low, high = found.min(0) - MARGIN_MM, found.max(0) + MARGIN_MM
    size = tuple(int(n) for n in np.ceil((high - low + 1) / spacing))
    start = low + (spacing - 1) / 2  # center of the first coarse voxel, in template voxels (which are 1 mm)
    affine = np.array(images[0].affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ start
    affine[:3, :3] *= spacing

    def onto(field: Field) -> Float32[np.ndarray, "a b c"]:
        smooth = ndimage.gaussian_filter(field, 0.35 * spacing) if spacing > 1 else field
        result: Field = ndimage.affine_transform(smooth, np.full(3, spacing), start, output_shape=size, order=1)
        return result

    gray, white, csf = (onto(field) ** SHARPEN for field in (gray, white, csf))
    inside = onto(brain.astype(np.float32))
    scale = inside / np.maximum(gray + white + csf, 1e-3)
    depth = ndimage.distance_transform_edt(np.pad(inside > 0.5, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return Template(gray * scale, white * scale, csf * scale, depth.astype(np.float32), affine, float(spacing))


def _template_folder() -> Path:
    """Folder of nilearn's bundled maps, found without importing nilearn."""
    spec = importlib.util.find_spec("nilearn")
    folders = (
        [] if spec is None else [Path(root) / "datasets" / "data" for root in spec.submodule_search_locations or ()]
    )
    for folder in folders:
        if (folder / TEMPLATE.format("t1")).is_file():
            return folder
    state = "is not installed" if not folders else f"does not hold {TEMPLATE.format('t1')} in {folders[0]}"
    raise MissingDependency(
        f"a synthetic cohort is made from the brain template inside nilearn, which {state}: pip install 'medmae[demo]'"
    )


def pose(rng: np.random.Generator, *, template: Template) -> Coordinates:
    """Where each voxel of a new case lies in the template, in template voxels.

    A random rotation, scale and shift, two scales of elastic deformation, and the mirror image in half of the cases.
    """
    shape, spacing = template.shape, template.spacing
    grid = np.indices(shape, dtype=np.float32)
    center = (np.array(shape, dtype=np.float32) - 1) / 2
    a, b, c = np.deg2rad(rng.uniform(-8, 8, 3))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = (about_x @ about_y @ about_z @ np.diag(rng.uniform(0.95, 1.1, 3))).astype(np.float32)
    shift = (rng.uniform(-3, 3, 3) / spacing).astype(np.float32)
    column = (3, 1, 1, 1)
    where = np.tensordot(matrix, grid - center.reshape(column), axes=(1, 0)) + (center + shift).reshape(column)
    for axis in range(3):
        where[axis] += 2.6 / spacing * smooth_noise(rng, shape=shape, sigma=28 / spacing)
        where[axis] += 1.1 / spacing * smooth_noise(rng, shape=shape, sigma=10 / spacing)
    if rng.random() < 0.5:  # the template is symmetric about x = 0 mm
        middle = -template.affine[0, 3] / spacing
        where[0] = np.float32(2 * middle) - where[0]
    return where


def grow(rng: np.random.Generator, *, template: Template, where: Coordinates, atrophy: float) -> Anatomy:
    """The brain whose voxels come from ``where`` in the template; ``atrophy`` (0 to 1) widens its sulci."""
    from scipy import ndimage

    maps = (template.gray, template.white, template.csf)
    gray, white, csf = (ndimage.map_coordinates(field, where, order=1, mode="constant") for field in maps)
    brain = ndimage.binary_fill_holes(gray + white + csf > 0.5)
    depth, nearest = _surface(brain, template.spacing)
    place = template.to_mm(where)
    gray, white, csf = _fold(rng, (gray, white, csf), depth, nearest, place, template.spacing, atrophy)
    scale = brain / np.maximum(gray + white + csf, 1e-3)
    return Anatomy(gray * scale, white * scale, csf * scale, brain, depth, place)


def _surface(brain: np.ndarray, spacing: float) -> tuple[Field, np.ndarray]:
    """Distance of each voxel to the outside of the brain in millimeters, and the flat index of the voxel there."""
    from scipy import ndimage

    padded = np.pad(brain, 1)  # so that a brain that touches the border ends there
    distance, index = ndimage.distance_transform_edt(padded, sampling=spacing, return_indices=True)
    inner = (slice(1, -1),) * 3
    index = np.clip(index[(slice(None), *inner)] - 1, 0, np.array(brain.shape).reshape(3, 1, 1, 1) - 1)
    return distance[inner].astype(np.float32), np.ravel_multi_index(tuple(index), brain.shape)


def _fold(
    rng: np.random.Generator,
    maps: tuple[Field, Field, Field],
    depth: Field,
    nearest: np.ndarray,
    place: Coordinates,
    spacing: float,
    atrophy: float,
) -> tuple[Field, Field, Field]:
    """Individual sulci: CSF in upright sheets, cortex along them, white matter in between."""
    from scipy import ndimage

    gray, white, csf = maps
    shape = gray.shape
    sheet = smooth_noise(rng, shape=shape, sigma=3.2 / spacing).ravel()[nearest]
    sheet = ndimage.gaussian_filter(sheet, 0.6)  # the nearest surface voxel jumps
    wander = smooth_noise(rng, shape=shape, sigma=3.0 / spacing)  # sulci are not quite upright
    distance = np.abs(sheet + 0.2 * wander) * 3.8  # mean slope of the field is about 1 / 3.8 mm
    reach = 13 + 4 * smooth_noise(rng, shape=shape, sigma=9.0 / spacing)
    cerebrum = place[2] > -25  # the cerebellum's folds are too fine to draw
    into = _step((reach - depth) / 1.5) * cerebrum
    width = 1.0 + 0.9 * atrophy
    seen = float(np.hypot(width, 0.4 * spacing))  # a voxel averages over its own width
    sulcus = width / seen * np.exp(-((distance / seen) ** 2)) * into
    lining = _step((3.4 + 0.5 * width - distance) / 0.5) * _step((reach + 3 - depth) / 1.5) * cerebrum
    lining = np.maximum(lining, _step((2.8 - depth) / 0.5) * cerebrum)
    blade = (1 - lining) * into * 0.9
    to_gray, to_white = white * lining * 0.9, gray * blade
    gray, white = gray + to_gray - to_white, white - to_gray + to_white
    fluid = 0.95 * sulcus
    return gray * (1 - fluid), white * (1 - fluid), csf + (gray + white) * fluid


def _step(value: Field) -> Field:
    """Smooth step from 0 to 1 around 0."""
    result: Field = 1 / (1 + np.exp(-np.clip(value, -30, 30)))
    return result
