"""From the files of one case to what is cached: one grid, one foreground, int16 values, statistics.

Everything that depends on the whole volume happens here, once: orientation, spacing, the foreground, the mean and
standard deviation inside it. A crop drawn later is scaled with the statistics of its volume, so two crops of one
volume agree, and so do training, sliding windows and inference (which runs this very function, see
``data/inference.py``).

Values are stored as int16 with a slope and an intercept. Integer sources, and sources that are integers times a
slope, are stored exactly; resampled ones with a step of 1/65535 of their range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, Shaped, UInt8

from medmae.core.errors import DataError, UsageError
from medmae.data.foreground import bounding_box, combine, estimate_foreground, nonzero, spread_points
from medmae.data.geometry import Affine, crop_affine, same_grid, to_model_grid, voxel_spacing
from medmae.data.oddities import CONSTANT, label_values, oddity, voxel_hash
from medmae.data.rules import Rule, keeps_background, scale_all

CT_WINDOW = (-1000.0, 1000.0)  # Hounsfield units: air to dense bone; a spec's own window replaces it
_NORMALIZE = ("zscore_foreground", "zscore", "none")
_ENOUGH_STEPS = 512  # steps of int16 per standard deviation below which outliers are cut instead


class SkippedCaseError(DataError):
    """A case that the policy ``geometry.on_mismatch: skip`` leaves out."""


@dataclass(frozen=True)
class PreprocessSettings:
    """How volumes are brought to the model's grid and scale; the same values at training and inference.

    ``windows`` names sequences whose values are clipped to [low, high] and scaled to [0, 1] (CT); ``rules`` those
    scaled by a rule of their own, which goes before ``windows``; all others are normalized as ``normalize`` says.
    ``margin`` is in millimeters.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    crop: str = "foreground"
    margin: float = 0.0
    foreground: str = "auto"
    normalize: str = "zscore_foreground"
    windows: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    on_mismatch: str = "error"
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, legal in (
            ("crop", self.crop, ("foreground", "none")),
            ("foreground", self.foreground, ("auto", "all", "nonzero")),
            ("normalize", self.normalize, _NORMALIZE),
            ("on_mismatch", self.on_mismatch, ("error", "resample", "skip")),
        ):
            if value not in legal:
                raise UsageError(f"preprocess {name} cannot be {value!r}; it is one of {', '.join(legal)}")

    @classmethod
    def of(cls, source: Any) -> PreprocessSettings:
        """From a spec (with ``preprocess`` and ``geometry``), from :meth:`describe`'s mapping, or from itself.

        UsageError for keys nobody knows.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            values = dict(source)
        else:
            values = {**source.preprocess.model_dump(), "on_mismatch": source.geometry.on_mismatch}
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise UsageError(f"unknown preprocessing setting {unknown[0]!r}; known are {', '.join(names)}")
        if values.get("spacing") is not None:
            values["spacing"] = tuple(float(v) for v in values["spacing"])
        values["margin"] = float(values.get("margin", 0.0))
        values["windows"] = {k: (float(v[0]), float(v[1])) for k, v in dict(values.get("windows") or {}).items()}
        values["rules"] = {name: Rule.of(rule) for name, rule in dict(values.get("rules") or {}).items()}
        return cls(**values)

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values; :meth:`of` reads them back."""
        values = dataclasses.asdict(self)
        values["spacing"] = None if self.spacing is None else list(self.spacing)
        values["windows"] = {name: list(window) for name, window in sorted(self.windows.items())}
        values["rules"] = {name: rule.describe() for name, rule in sorted(self.rules.items())}
        if not self.rules:  # names of prepared cases hang on these values, and most have none
            del values["rules"]
        return values

    def window(self, sequence: str) -> tuple[float, float] | None:
        """The window a sequence is clipped to, or None."""
        if sequence in self.rules:
            return None
        return self.windows.get(sequence, CT_WINDOW if sequence == "ct" else None)


@dataclass(frozen=True)
class Statistics:
    """Of one volume inside its foreground, in the units of the file; ``mean`` and ``std`` are what is subtracted and
    divided by (for a windowed sequence its lower end and its width)."""

    mean: float
    std: float
    low: float
    median: float
    high: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Quantized:
    """Values as ``stored * slope + inter``."""

    stored: Int16[np.ndarray, "x y z"]
    slope: float
    inter: float

    def values(self) -> Float[np.ndarray, "x y z"]:
        """The values in the units of the file, float32."""
        return self.stored.astype(np.float32) * np.float32(self.slope) + np.float32(self.inter)


@dataclass(frozen=True)
class Prepared:
    """One case on the model's grid; ``affine`` belongs to the crop, ``header`` to the first file that counts.

    ``odd``: what is odd about an image, by sequence; a constant one is not among ``images``. ``voxels``: a hash of
    each image's values and place (``data/oddities.py``). ``label_values``: those of the file, before remap.
    """

    images: Mapping[str, Quantized]
    foreground: UInt8[np.ndarray, "x y z"]
    label: Shaped[np.ndarray, "x y z"] | None
    affine: Affine
    statistics: Mapping[str, Statistics]
    points: Shaped[np.ndarray, "k 3"]
    header: Any
    odd: Mapping[str, str] = dataclasses.field(default_factory=dict)
    voxels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_values: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the cropped volumes."""
        x, y, z = self.foreground.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimeters per voxel."""
        return voxel_spacing(self.affine)


@dataclass(frozen=True)
class _Grid:
    """A volume reduced to what :func:`to_model_grid` needs."""

    array: Any
    affine: Any


def prepare(
    case: Any, spec: Any, *, remap: Mapping[int, int] | None = None, read: Callable[[Path], Any] | None = None
) -> Prepared:
    """Bring one case (``images``, ``mask``, ``label``) to the model's grid.

    ``spec`` is a Spec, a PreprocessSettings or its JSON. ``remap`` (file value -> class) defaults to the Spec's own.
    ``read`` replaces the reader (path -> volume with ``array``, ``affine``, ``header``). DataError for sequences
    that do not share a grid where the policy is "error", SkippedCaseError where it is "skip" and where every image is
    constant: one that is carries no information and counts as missing.
    """
    if read is None:
        from medmae.data.readers import read as read_file

        read = read_file
    settings = PreprocessSettings.of(spec)
    if not case.images:
        raise DataError(f"case {case.key} has no images")
    volumes = {name: read(path) for name, path in case.images.items()}
    odd = {name: kind for name, volume in volumes.items() if (kind := oddity(volume.array)) is not None}
    volumes = {name: volume for name, volume in volumes.items() if odd.get(name) != CONSTANT}
    if not volumes:
        raise SkippedCaseError(f"case {case.key}: every voxel of {' and '.join(case.images)} has the same value")
    reference = next(iter(volumes.values()))
    extras = {name: read(path) for name, path in (("mask", case.mask), ("label", case.label)) if path is not None}
    _check_grids(case, {**volumes, **extras}, reference, settings)
    arrays = {name: _onto(volume, reference, nearest=False) for name, volume in volumes.items()}
    masks = {name: _onto(volume, reference, nearest=True) for name, volume in extras.items()}

    if "mask" in masks:
        foreground = np.nan_to_num(masks["mask"]) > 0
        if not foreground.any():
            raise DataError(f"case {case.key}: the foreground mask is empty; repair it or remove it from the spec")
    elif settings.foreground == "all":
        foreground = np.ones(reference.array.shape, bool)
    elif settings.foreground == "nonzero":
        foreground = nonzero(arrays.values())
    else:
        foreground = combine(estimate_foreground(array) for array in arrays.values())
    arrays, scales = scale_all(arrays, foreground, settings.rules)
    if keeps_background(settings.rules):
        start, stop = bounding_box(foreground)
        foreground[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    prepared = _on_model_grid(
        arrays, foreground, masks.get("label"), reference, settings, label_remap(spec) if remap is None else remap
    )
    known = {n: dataclasses.replace(prepared.statistics[n], mean=mean, std=std) for n, (mean, std) in scales.items()}
    return dataclasses.replace(
        prepared,
        statistics={**prepared.statistics, **known},
        odd=odd,
        voxels={name: voxel_hash(volume) for name, volume in volumes.items()},
        label_values=label_values(extras["label"].array) if "label" in extras else (),
    )


def label_remap(spec: Any) -> dict[int, int]:
    """Value in the label file -> value of the class, of anything that has a ``label`` with a ``remap``."""
    label = getattr(spec, "label", None)
    return dict(getattr(label, "remap", None) or {})


def _on_model_grid(
    arrays: Mapping[str, np.ndarray],
    foreground: Bool[np.ndarray, "x y z"],
    label: np.ndarray | None,
    reference: Any,
    settings: PreprocessSettings,
    remap: Mapping[int, int],
) -> Prepared:
    def move(array: np.ndarray, nearest: bool) -> tuple[np.ndarray, Affine]:
        grid = _Grid(array, reference.affine)
        return to_model_grid(grid, orientation=settings.orientation, spacing=settings.spacing, nearest=nearest)

    mask, affine = move(foreground.astype(np.uint8), True)
    inside = mask > 0
    start: tuple[int, ...] = (0, 0, 0)
    stop: tuple[int, ...] = mask.shape
    if settings.crop == "foreground":
        start, stop = bounding_box(inside)
        widen = [round(settings.margin / step) for step in voxel_spacing(affine)]
        start = tuple(max(0, a - w) for a, w in zip(start, widen, strict=True))
        stop = tuple(min(n, b + w) for n, b, w in zip(mask.shape, stop, widen, strict=True))
    cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    inside = np.ascontiguousarray(inside[cut])

    images, statistics = {}, {}
    for name, array in arrays.items():
        moved = np.ascontiguousarray(move(array, False)[0][cut])
        finite = np.isfinite(moved)
        if not finite.all():
            moved = np.where(finite, moved, moved[finite].min() if finite.any() else 0).astype(np.float32)
            inside &= finite
        window = settings.window(name)
        if window is not None:
            moved = np.clip(moved, *window)
        images[name] = moved
    stored = {name: quantize(values, inside) for name, values in images.items()}
    for name, item in stored.items():
        statistics[name] = measure(item, inside, normalize=settings.normalize, window=settings.window(name))

    classes = None
    if label is not None:
        classes = classes_of(np.ascontiguousarray(move(label, True)[0][cut]), remap)
    return Prepared(
        images=stored,
        foreground=inside.astype(np.uint8),
        label=classes,
        affine=crop_affine(affine, start),
        statistics=statistics,
        points=spread_points(inside),
        header=reference.header,
    )


def _check_grids(case: Any, volumes: Mapping[str, Any], reference: Any, settings: PreprocessSettings) -> None:
    wrong = [
        f"{name}: shape {tuple(volume.array.shape)}, affine {np.round(volume.affine, 3).tolist()}"
        for name, volume in volumes.items()
        if not same_grid(volume.array.shape, volume.affine, reference.array.shape, reference.affine)
    ]
    if not wrong or settings.on_mismatch == "resample":
        return
    first = next(iter(volumes))
    message = (
        f"case {case.key}: not on the grid of {first} (shape {tuple(reference.array.shape)}, affine "
        f"{np.round(reference.affine, 3).tolist()}): {'; '.join(wrong)}. "
        "Set geometry.on_mismatch to resample (bring them to its grid) or skip (leave the case out); "
        "for single files `medmae reconstruct` has --resample"
    )
    raise SkippedCaseError(message) if settings.on_mismatch == "skip" else DataError(message)


def _onto(volume: Any, reference: Any, *, nearest: bool) -> np.ndarray:
    if same_grid(volume.array.shape, volume.affine, reference.array.shape, reference.affine):
        return np.asarray(volume.array)
    like = (reference.array.shape, reference.affine)
    return to_model_grid(volume, like=like, nearest=nearest)[0]


def classes_of(values: Shaped[np.ndarray, "x y z"], remap: Mapping[int, int]) -> Shaped[np.ndarray, "x y z"]:
    """Values of a label file (rounded) as classes: remapped all at once, uint8 or int16. DataError for values below 0
    or above 32767."""
    whole = np.rint(np.nan_to_num(values)).astype(np.int64)
    result = whole.copy()
    for source, target in remap.items():
        result[whole == source] = target
    if result.min() < 0 or result.max() > np.iinfo(np.int16).max:
        raise DataError(
            f"label values run from {result.min()} to {result.max()}; 0 to 32767 can be used, see label.remap"
        )
    kind: type[np.generic] = np.uint8 if result.max() <= 255 else np.int16
    return np.asarray(result, dtype=kind)


def measure(
    item: Quantized,
    inside: Bool[np.ndarray, "x y z"],
    *,
    normalize: str = "zscore_foreground",
    window: tuple[float, float] | None = None,
) -> Statistics:
    """Statistics of the values inside the foreground (population standard deviation; 1 where all values are equal)."""
    chosen = item.values() if normalize == "zscore" or not inside.any() else item.values()[inside]
    chosen = chosen.ravel()
    low, median, high = (float(v) for v in np.percentile(chosen, [0.5, 50.0, 99.5]))
    mean, std = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))
    if window is not None:
        mean, std = window[0], window[1] - window[0]
    elif normalize == "none":
        mean, std = 0.0, 1.0
    if not std > 1e-8 * max(1.0, abs(mean)):
        std = 1.0
    return Statistics(mean, std, low, median, high, float(chosen.min()), float(chosen.max()))


def quantize(values: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"] | None = None) -> Quantized:
    """int16 with slope and intercept: exact where the values are integers (times a slope), else in 65535 steps.

    Where single outliers would leave too few steps for the foreground (below 512 per standard deviation), values
    farther than 64 standard deviations from its mean are cut.
    """
    low, high = float(values.min()), float(values.max())
    if high == low:
        return Quantized(np.zeros(values.shape, np.int16), 1.0, low)
    if high - low <= 65535 and bool((values == np.rint(values)).all()):
        inter = 0.0 if low >= -32768 and high <= 32767 else low + 32768.0
        return Quantized((values - np.float32(inter)).astype(np.int16), 1.0, inter)
    lattice = _lattice(np.unique(values))
    if lattice is not None:
        step, first = lattice
        codes = np.rint((values.astype(np.float64) - first) / step)
        shift = 0 if codes.max() <= 32767 else 32768
        return Quantized((codes - shift).astype(np.int16), step, first + shift * step)
    chosen = values[inside] if inside is not None and inside.any() else values
    mean, std = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))
    if std > 0 and (high - low) / 65535 > std / _ENOUGH_STEPS:
        low, high = max(low, mean - 64 * std), min(high, mean + 64 * std)
    step = (high - low) / 65535
    codes = np.rint((np.clip(values, low, high).astype(np.float64) - low) / step) - 32768
    return Quantized(codes.astype(np.int16), step, low + 32768 * step)


def _lattice(found: Float[np.ndarray, " k"]) -> tuple[float, float] | None:
    """(step, first) when sorted distinct values are integers times a step, up to float32 rounding; else None."""
    if not 2 <= len(found) <= 65536:
        return None
    exact = found.astype(np.float64)
    gaps = np.diff(exact)
    near = gaps[gaps < 1.5 * gaps.min()]
    step = float(near.mean())
    counts = np.rint(gaps / step)
    codes = np.concatenate([[0.0], np.cumsum(counts)])
    if codes[-1] > 65535:
        return None
    step, first = (float(v) for v in np.polyfit(codes, exact, 1))
    residual = np.abs(exact - (first + step * codes)).max()
    rounding = np.spacing(np.float32(np.abs(found).max()))
    return (step, first) if residual <= min(4 * float(rounding), 0.05 * step) else None
