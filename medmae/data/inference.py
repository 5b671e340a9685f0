"""One case for a model that is already trained, and the way back to the grid of the file it came from.

The very function that prepared the training cases prepares this one, and the very function that normalized training
batches normalizes it: a model can never meet other statistics, another foreground or another rounding than it
learned on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped

from medmae.core.errors import DataError
from medmae.data.augment import normalize
from medmae.data.fingerprint import Fingerprints
from medmae.data.geometry import Affine, back_to_input
from medmae.data.preprocess import Prepared, PreprocessSettings, Statistics, prepare


@dataclass(frozen=True)
class InferenceCase:
    """Whole volumes on the model's grid.

    ``images``: normalized float32 values per sequence, 0 outside ``foreground``. ``statistics`` turn them back:
    value = normalized * std + mean. ``affine`` is the grid's, ``header`` that of the input whose grid is written (the
    first one given). ``files``: SHA-256 of every input, to be compared with a model's training files; ``voxels``: a
    hash of its values and place. ``odd``: what is odd about an input; a constant one is not among the images.
    ``label``: classes of the label file, where one was asked for.
    """

    images: Mapping[str, Float[np.ndarray, "x y z"]]
    foreground: Bool[np.ndarray, "x y z"]
    statistics: Mapping[str, Statistics]
    affine: Affine
    spacing: tuple[float, float, float]
    header: Any
    files: Mapping[str, str]
    voxels: Mapping[str, str]
    odd: Mapping[str, str]
    label: Integer[np.ndarray, "x y z"] | None = None

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the sequences there are."""
        return tuple(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the model's grid."""
        x, y, z = self.foreground.shape
        return x, y, z

    def in_units(self, array: Float[np.ndarray, "x y z"], *, sequence: str) -> Float[np.ndarray, "x y z"]:
        """Normalized values in the intensity units of ``sequence``, which must be one of :attr:`present`."""
        known = self.statistics.get(sequence)
        if known is None:
            raise DataError(
                f"{sequence} was not given, so its units are not known; given are {', '.join(self.present)}"
            )
        return np.asarray(array, np.float32) * np.float32(known.std) + np.float32(known.mean)


@dataclass(frozen=True)
class _Files:
    """The part of a case that ``prepare`` reads."""

    key: str
    images: Mapping[str, Path]
    mask: Path | None
    label: Path | None = None


def load_case(
    images: Mapping[str, str | Path],
    preprocess: Any,
    *,
    mask: str | Path | None = None,
    label: str | Path | None = None,
    remap: Mapping[int, int] | None = None,
) -> InferenceCase:
    """Read and prepare one case as the model's training cases were.

    ``images``: sequence -> file, the first one decides the grid that results are written on. ``preprocess``: the
    settings in a model's config (``describe()["preprocess"]``), a Spec or PreprocessSettings. ``mask``: foreground;
    estimated where there is none. ``label``: read beside the images, its values sent through ``remap``. DataError for
    files that cannot be read or do not share a grid.
    """
    if not images:
        raise DataError("no image was given; give at least one, such as --t1n FILE")
    named = {name: Path(path) for name, path in images.items()}
    case = _Files("given", named, *(None if path is None else Path(path) for path in (mask, label)))
    prints = Fingerprints(None)
    prepared = prepare(case, PreprocessSettings.of(preprocess), remap=remap or {})
    return _normalized(
        prepared, {name: prints.of(path) for name, path in case.images.items() if name in prepared.images}
    )


def _normalized(prepared: Prepared, files: Mapping[str, str]) -> InferenceCase:
    foreground = torch.from_numpy(prepared.foreground > 0)[None, None]
    images = {}
    for name, item in prepared.images.items():
        known = prepared.statistics[name]
        calibration = torch.tensor([[[item.slope, item.inter, known.mean, known.std]]], dtype=torch.float32)
        images[name] = normalize(torch.from_numpy(item.stored)[None, None], foreground, calibration)[0, 0].numpy()
    return InferenceCase(
        images=images,
        foreground=prepared.foreground > 0,
        statistics=prepared.statistics,
        affine=prepared.affine,
        spacing=prepared.spacing,
        header=prepared.header,
        files=files,
        voxels=prepared.voxels,
        odd=prepared.odd,
        label=prepared.label,
    )


def to_input_grid(
    array: Shaped[np.ndarray, "x y z"], case: InferenceCase, *, order: int = 1, fill: float | int = 0.0
) -> Shaped[np.ndarray, "u v w"]:
    """Values on the model's grid, on the grid of the case's ``header``; ``fill`` outside the model's grid.

    World positions are kept. Where the grids differ by flips, permutations and a crop only, the result is exact;
    otherwise linear (``order`` 1) or nearest (``order`` 0, for labels). DataError where the shape is not the case's.
    """
    if tuple(array.shape) != case.shape:
        raise DataError(f"an array of shape {tuple(array.shape)} does not lie on this case's grid of {case.shape}")
    return back_to_input(array, case.affine, case.header, order=order, fill=fill)
