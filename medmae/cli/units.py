"""The intensity units of a reconstruction.

MR images have no units: a model answers in standard deviations of the foreground, and what they mean in another image's
numbers is a choice. It is made here, once, and written into the sidecar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmae.core.errors import DataError, UsageError

from .console import say

UNITS = ("cohort", "zscore")


@dataclass(frozen=True)
class Scale:
    """Units of the output: value = normalized * ``std`` + ``mean``; ``source`` says where the two come from.

    ``kind`` is "cohort", "zscore" or "match" where the model counts in deviations from a mean; else "files" (the units
    of the input files) or "window" (0 at its lower end, 1 at its upper).
    """

    kind: str
    mean: float
    std: float
    source: str


def scale_of(target: str, data: Mapping[str, Any], *, units: str | None, match: Path | None) -> Scale:
    """The units of a reconstructed ``target``.

    Args:
        target: name of the sequence.
        data: what the model remembers of its training data (``statistics``: sequence -> ``mean`` and ``std``).
        units: one of :data:`UNITS`; None is "cohort" where the model knows the sequence's statistics, else "zscore".
        match: an image of that sequence whose foreground gives mean and deviation; goes before ``units``.

    Raises:
        UsageError: "cohort" was asked for and the model knows no statistics.
        DataError: the image to match cannot be read or is constant.
    """
    if match is not None:
        _check_standardized(target, data)
        return _matched(match)
    own = _own_units(target, data, units=units)
    if own is not None:
        return own
    known = (data.get("statistics") or {}).get(target)
    if units == "zscore" or (units is None and known is None):
        if units is None:
            say(
                f"the model knows no intensities of {target}: units are standard deviations (see --match)",
                style="yellow",
            )
        return Scale("zscore", 0.0, 1.0, "the model's own units")
    if known is None:
        raise UsageError(
            f"the model knows no intensities of {target}; use --units zscore, or --match with an image of that sequence"
        )
    return Scale("cohort", float(known["mean"]), float(known["std"]), "average over the model's training cases")


def _own_units(target: str, data: Mapping[str, Any], *, units: str | None) -> Scale | None:
    """The units of a target that the model does not count in deviations: a CT window, or values as they are."""
    from medmae.data.preprocess import PreprocessSettings

    settings = PreprocessSettings.of(data.get("preprocess") or {})
    window = settings.window(target)
    if window is not None:
        low, high = window
        if units == "zscore":
            return Scale("window", 0.0, 1.0, f"the model's own units: 0 is {low:g} and 1 is {high:g} in the files")
        return Scale("files", low, high - low, f"the window {low:g} to {high:g} that the model's inputs are clipped to")
    if settings.normalize == "none":
        return Scale("files", 0.0, 1.0, "the units of the files: the model was trained without normalization")
    return None


def _check_standardized(target: str, data: Mapping[str, Any]) -> None:
    """Mean and deviation of an image are units only where the model itself counts in deviations from the mean."""
    from medmae.data.preprocess import PreprocessSettings

    settings = PreprocessSettings.of(data.get("preprocess") or {})
    if settings.window(target) is not None or settings.normalize == "none":
        raise UsageError(f"the model knows {target} in its own units already, not in deviations; leave out --match")


def _matched(path: Path) -> Scale:
    import numpy as np

    from medmae.data.fingerprint import Fingerprints
    from medmae.data.foreground import estimate_foreground
    from medmae.data.readers import read

    array = read(path).array
    inside = estimate_foreground(array) & np.isfinite(array)
    if not inside.any() or float(array[inside].std()) == 0:
        raise DataError(f"{path}: no foreground with varying intensities to match; give another image to --match")
    values = array[inside].astype(np.float64)
    return Scale("match", float(values.mean()), float(values.std()), f"sha256:{Fingerprints(None).of(path)}")
