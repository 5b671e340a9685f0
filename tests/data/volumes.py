"""Small cases written to disk for the tests of preparation, cache and loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from medmae.data.preprocess import PreprocessSettings


@dataclass(frozen=True)
class FileCase:
    key: str
    images: Mapping[str, Path]
    label: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Section:
    """Stands for a part of a spec."""

    values: Mapping[str, object] = field(default_factory=dict)
    on_mismatch: str = "error"
    remap: Mapping[int, int] = field(default_factory=dict)

    def model_dump(self) -> dict[str, object]:
        plain = PreprocessSettings().describe()
        del plain["on_mismatch"]
        return {**plain, **self.values}


@dataclass(frozen=True)
class FakeSpec:
    preprocess: Section = Section()
    geometry: Section = Section()
    label: Section | None = None


@dataclass(frozen=True)
class FakeCohort:
    train: tuple[FileCase, ...]
    val: tuple[FileCase, ...] = ()
    spec: FakeSpec = FakeSpec()
    sequences: tuple[str, ...] = ("t1n", "t2w")

    def split(self) -> Mapping[str, tuple[FileCase, ...]]:
        return {"train": self.train, "val": self.val, "test": ()}


def brain(shape: tuple[int, int, int]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return (grid**2).sum(0) < 0.8


def volume(shape: tuple[int, int, int], *, seed: int, background: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(400, 90, shape).clip(50, 1200).round()
    return np.where(brain(shape), values, background).astype(np.int16)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 2, 1]) if affine is None else affine), path)
    return path


def make_case(
    folder: Path,
    name: str,
    *,
    sequences: tuple[str, ...] = ("t1n", "t2w"),
    shape: tuple[int, int, int] = (24, 26, 20),
    seed: int = 0,
    background: int = 0,
    label: bool = False,
) -> FileCase:
    files = {
        s: write(folder / name / f"{s}.nii.gz", volume(shape, seed=seed + i, background=background))
        for i, s in enumerate(sequences)
    }
    truth = None
    if label:
        tumor = np.zeros(shape, np.uint8)
        tumor[10:14, 10:14, 8:11] = 4
        truth = write(folder / name / "seg.nii.gz", tumor)
    return FileCase(name, files, truth)


@st.composite
def affines(draw: st.DrawFn, *, oblique: bool) -> np.ndarray:
    """Voxel sizes, an axis permutation, flips, a rotation, an origin."""
    spacing = np.array([draw(st.floats(0.6, 4.0)) for _ in range(3)])
    matrix = np.eye(3)[:, draw(st.permutations([0, 1, 2]))] * np.array(
        [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    )
    if oblique:
        a, b, c = (draw(st.floats(-0.6, 0.6)) for _ in range(3))
        rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        matrix = rz @ ry @ rx @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix * spacing
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return affine.astype(np.float32).astype(np.float64)  # as a NIfTI sform stores it
