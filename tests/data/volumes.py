"""Small cases written to disk for the tests of preparation, cache and loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
