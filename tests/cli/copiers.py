"""A model that copies t1n: it answers with the t1n voxels at the place it is asked about, so that what must come out
is known at every voxel; and images for it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.find import find

PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground", "normalize": "zscore_foreground"}
SIZE = (26, 21, 17)


def save_copier(folder: Path, *, preprocess: dict | None = None, about: dict | None = None, **options: object) -> Path:
    """A model folder that is loaded as a model which answers with the t1n voxels of the asked place."""
    found = find("bm_mae")
    recipe = found.recipe(scale="test", **options)
    method = found.build(**recipe)
    data = {
        "sequences": list(method.sequences),
        "preprocess": preprocess or PREPROCESS,
        "copier": True,
        **(about or {}),
    }
    return save_model(folder, method, name="bm_mae", recipe=recipe, about={"data": data})


def blob(size: tuple[int, ...] = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image of positive integers on zero background, and where it is not background."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    image = rng.integers(200, 900, size) * inside
    return image.astype(np.int16), inside


def affine_of(seed: int) -> np.ndarray:
    """Oblique, with permuted and flipped axes, and another spacing on every axis."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.eye(3)[rng.permutation(3)] + 0.2 * rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(rng.uniform(0.8, 2.5, 3)) * rng.choice([-1, 1])
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def save(
    path: Path, array: np.ndarray, affine: np.ndarray, *, codes: tuple[int, int] = (1, 1), units: str = "mm"
) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units(units)
    image.header["descrip"] = b"JOHN DOE 1970"
    nib.save(image, path)
    return path


def call(*arguments: object) -> int:
    return main(["reconstruct", *map(str, arguments), "--overlap", "0", "--quiet"])


def zscored(path: Path, mask: Path) -> np.ndarray:
    values, inside = nib.load(path).get_fdata(), nib.load(mask).get_fdata() > 0
    return (values - values[inside].mean()) / values[inside].std()
