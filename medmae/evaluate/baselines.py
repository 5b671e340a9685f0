"""What anybody gets without a network: a model that does not beat these has learned nothing of use.

All three are fitted on training cases only, from one pass over them. What is kept is not voxels but their sums and
products (the normal equations), one small matrix per set of sequences that cases have; every subset's regression is one
solve of a part of their sum. So a cohort of any size fits in a few kilobytes, and incomplete cases count wherever they
can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

Images = Mapping[str, Float[np.ndarray, "*size"]]
NAMES = ("mean", "best single", "linear")
"""The baselines, from the weakest on."""


@dataclass
class Sums:
    """Sums over the foreground voxels of training cases; grows with :meth:`add`.

    Attributes:
        sequences: all sequences there may be.
        products: for each set of sequences that some case has, the matrix of the sums of all products of
            (1, sequence 1, ...), in the order of ``sequences``; absent sequences are left out.
        cases: number of cases added.
    """

    sequences: tuple[str, ...]
    products: dict[tuple[str, ...], Float[np.ndarray, "k k"]] = field(default_factory=dict)
    cases: int = 0

    def add(self, images: Images, foreground: Bool[np.ndarray, "*size"]) -> None:
        """Take in one training case: its images (those of ``sequences``) inside the foreground."""
        names = tuple(name for name in self.sequences if name in images)
        if not names or not foreground.any():
            return
        total = np.zeros((len(names) + 1, len(names) + 1))
        columns = [images[name][foreground] for name in names]
        for start in range(0, len(columns[0]), 1 << 18):  # in pieces, so that float64 copies stay small
            part = np.stack(
                [np.ones(len(columns[0][start : start + (1 << 18)])), *(c[start : start + (1 << 18)] for c in columns)]
            )
            part = part.astype(np.float64)
            total += part @ part.T
        self.products[names] = self.products.get(names, 0.0) + total
        self.cases += 1

    def of(self, names: Sequence[str]) -> Float[np.ndarray, "k k"] | None:
        """Sums of the products of (1, ``names`` in this order) over all cases that have all of them; None without
        any."""
        total: np.ndarray | None = None
        for pattern, products in self.products.items():
            if set(names) <= set(pattern):
                pick = [0, *(pattern.index(name) + 1 for name in names)]
                part = products[np.ix_(pick, pick)]
                total = part.copy() if total is None else total + part
        return total


@dataclass(frozen=True)
class Fit:
    """A linear formula: ``constant`` plus ``slopes`` times the sequences.

    Attributes:
        constant: added to the sum.
        slopes: factor of each sequence.
        error: mean squared error over the voxels it was fitted on.
    """

    constant: float
    slopes: Mapping[str, float]
    error: float

    def __call__(self, images: Images, *, like: Float[np.ndarray, "*size"]) -> Float[np.ndarray, "*size"]:
        """The guess, of the shape of ``like``."""
        out = np.full(like.shape, self.constant, np.float32)
        for name, slope in self.slopes.items():
            out += np.float32(slope) * images[name]
        return out


def _solve(sums: Sums, inputs: Sequence[str], target: str) -> Fit | None:
    """Least squares; None where no training case has all of them."""
    total = sums.of([*inputs, target])
    if total is None:
        return None
    # Scaling the equations first keeps the solve accurate whatever the units of the sequences are.
    scale = np.sqrt(np.maximum(np.diag(total), 1e-300))
    system = total / scale[:, None] / scale
    slopes, *_ = np.linalg.lstsq(system[:-1, :-1], system[:-1, -1], rcond=1e-12)
    slopes = slopes * scale[-1] / scale[:-1]
    residual = total[-1, -1] - 2 * slopes @ total[:-1, -1] + slopes @ total[:-1, :-1] @ slopes
    return Fit(
        float(slopes[0]), dict(zip(inputs, slopes[1:].tolist(), strict=True)), max(0.0, float(residual / total[0, 0]))
    )


@dataclass(frozen=True)
class Baselines:
    """The fitted baselines; made with ``Baselines(sums)``, and solved when asked.

    ``mean`` is the mean intensity of the target. ``best single`` is the one available sequence that gave the smallest
    error on the training cases after a linear fit. ``linear`` is the voxelwise linear regression from all available
    ones; where no training case has them all, from the largest part of them that some case has together with the
    target.
    """

    sums: Sums
    _known: dict[tuple[str, tuple[str, ...], str], Fit | None] = field(default_factory=dict, compare=False, repr=False)

    def fit(self, name: str, available: Sequence[str], target: str) -> Fit | None:
        """The formula of a baseline; None where no training case has the target."""
        key = (name, tuple(sorted(available)), target)
        if key not in self._known:
            self._known[key] = self._fit(name, key[1], target)
        return self._known[key]

    def _fit(self, name: str, available: tuple[str, ...], target: str) -> Fit | None:
        mean = _solve(self.sums, (), target)
        if name == "mean":
            return mean
        singles = [fit for one in available if (fit := _solve(self.sums, (one,), target)) is not None]
        best = min(singles, key=lambda fit: fit.error, default=mean)
        if name == "best single":
            return best
        if name != "linear":
            raise ValueError(f"there is no baseline {name!r}; there are {', '.join(NAMES)}")
        whole = _solve(self.sums, available, target)
        if whole is not None:
            return whole
        patterns = {tuple(n for n in available if n in p) for p in self.sums.products if target in p}
        parts = [fit for part in patterns if part and (fit := _solve(self.sums, part, target)) is not None]
        return min(parts, key=lambda fit: (-len(fit.slopes), fit.error), default=mean)

    def guess(self, images: Images, target: str) -> dict[str, Float[np.ndarray, "*size"]]:
        """What each baseline says of the target, given the available images; those that cannot say anything are left
        out."""
        like = next(iter(images.values()))
        fits = {name: self.fit(name, tuple(images), target) for name in NAMES}
        return {name: fit(images, like=like) for name, fit in fits.items() if fit is not None}
