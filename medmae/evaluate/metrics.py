"""Image metrics inside a region, with every convention stated, because PSNR and SSIM mean nothing without them.

All are taken over the voxels of a region (the foreground, or the label) and never over the background, which is most
of a head scan, is trivially right, and would flatter everybody. The data range of PSNR and SSIM is the distance between
the 0.5 and 99.5 percentile of the truth in the foreground: robust against single bright voxels, and the same for the
label region, so that its numbers can be compared with those of the foreground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Volume = Float[np.ndarray, "*size"]
Region = Bool[np.ndarray, "*size"]

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # of SSIM, as in the original publication and in MONAI
METRICS = ("psnr", "ssim", "mae", "r2")
"""Names of the metrics; those inside the label end in ``_label``."""
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "mae": False, "r2": True}


def data_range(truth: Volume, region: Region) -> float:
    """Distance between the 0.5 and 99.5 percentile of the truth in the region; 1 where it is constant."""
    low, high = np.percentile(truth[region], (0.5, 99.5))
    width = float(high - low)
    return width if width > 1e-12 else 1.0


def mae(guess: Volume, truth: Volume, region: Region) -> float:
    """Mean absolute error in the region, in the units of the images."""
    return float(np.abs(guess[region] - truth[region]).mean(dtype=np.float64))


def psnr(guess: Volume, truth: Volume, region: Region, *, width: float) -> float:
    """Peak signal-to-noise ratio in dB for a data range of ``width``; capped at 100 dB, which a perfect guess gets."""
    error = float(np.square(guess[region] - truth[region], dtype=np.float64).mean())
    return 100.0 if error == 0 else min(100.0, 20 * math.log10(width) - 10 * math.log10(error))


def r2(guess: Volume, truth: Volume, region: Region) -> float:
    """Share of the truth's variance in the region that is explained; NaN where the truth is constant."""
    values = truth[region].astype(np.float64)
    spread = float(np.square(values - values.mean()).sum())
    error = float(np.square(guess[region] - values).sum())
    return 1 - error / spread if spread > 0 else math.nan


class Ssim:
    """The map of structural similarity (Wang et al., 2004) of guesses with one truth.

    Gaussian window of 11 voxels and sigma 1.5, K1 0.01, K2 0.03, as MONAI computes it, at every voxel: the border is
    continued by its edge. The window is applied axis by axis, some fifty times faster than a full 3-D kernel, and what
    depends on the truth alone is kept. Outside the foreground guess and truth are both taken as the truth, so that
    nobody is judged by background, and the map is computed on the foreground's bounding box plus the reach of the
    window.

    Args:
        truth: the image.
        foreground: the voxels that count.
        width: data range.
    """

    def __init__(self, truth: Volume, foreground: Region, *, width: float) -> None:
        reach = WINDOW // 2
        places = np.nonzero(foreground)
        self._box = tuple(slice(max(0, int(p.min()) - reach), int(p.max()) + 1 + reach) for p in places)
        self._inside = foreground[self._box]
        self._truth = truth[self._box].astype(np.float64)
        self._shape = truth.shape
        self._c1, self._c2 = (K1 * width) ** 2, (K2 * width) ** 2
        self._mean = _smooth(self._truth)
        self._variance = _smooth(self._truth**2) - self._mean**2

    def map(self, guess: Volume) -> Float[np.ndarray, "*size"]:
        """Similarity at every voxel; 1 outside the box around the foreground."""
        own = np.where(self._inside, guess[self._box], self._truth)
        mean = _smooth(own)
        variance = _smooth(own**2) - mean**2
        together = _smooth(own * self._truth) - mean * self._mean
        light = (2 * mean * self._mean + self._c1) / (mean**2 + self._mean**2 + self._c1)
        texture = (2 * together + self._c2) / (variance + self._variance + self._c2)
        full = np.ones(self._shape)
        full[self._box] = light * texture
        return full


def _smooth(image: np.ndarray) -> np.ndarray:
    from scipy.ndimage import correlate1d

    place = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-0.5 * (place / SIGMA) ** 2)
    kernel /= kernel.sum()
    for axis in range(image.ndim):
        image = correlate1d(image, kernel, axis=axis, mode="nearest")
    return image


@dataclass(frozen=True, eq=False)
class Truth:
    """One image to be guessed, with what is computed from it once and used for every guess.

    Attributes:
        image: the image.
        foreground: the voxels that count.
        label: region inside which the metrics are given too (for example a tumor), cut to the foreground; None for
            none.
        width: data range.
        ssim: similarity with this image.
    """

    image: Volume
    foreground: Region
    label: Region | None
    width: float
    ssim: Ssim

    @classmethod
    def of(
        cls, image: Volume, foreground: Bool[np.ndarray, "*any"], *, label: Bool[np.ndarray, "*any"] | None = None
    ) -> Truth:
        """Raises ValueError where the foreground is empty or the shapes differ."""
        if image.shape != foreground.shape or (label is not None and label.shape != image.shape):
            raise ValueError(f"image {image.shape}, foreground {foreground.shape} and label must have one shape")
        if not foreground.any():
            raise ValueError("the foreground is empty: there is nothing to measure")
        width = data_range(image, foreground)
        inside = None if label is None else label & foreground
        if inside is not None and not inside.any():
            inside = None
        return cls(image, foreground, inside, width, Ssim(image, foreground, width=width))


def measure(guess: Volume, truth: Truth) -> Mapping[str, float]:
    """PSNR, SSIM, MAE and R2 in the foreground and, with ``_label``, inside the label where there is one."""
    regions = {"": truth.foreground} | ({} if truth.label is None else {"_label": truth.label})
    similarity = truth.ssim.map(guess)
    result = {}
    for ending, region in regions.items():
        result["psnr" + ending] = psnr(guess, truth.image, region, width=truth.width)
        result["ssim" + ending] = float(similarity[region].mean())
        result["mae" + ending] = mae(guess, truth.image, region)
        result["r2" + ending] = r2(guess, truth.image, region)
    return result
