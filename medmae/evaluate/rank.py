"""Is there anything in the features? How many directions they use, and whether all samples look alike.

Pre-training can fail without a sign in its loss: an encoder that answers the same vector to everything, or moves
along a few directions only. Both show in a handful of samples and need no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

ALIKE = 0.99999
"""Mean cosine similarity between samples from which on they count as the same: they differ by less than 0.5 % of their
length. A common part as large as that of 0.999 is no fault, since probes and heads take the mean away."""
NARROW = 1.5
"""Effective rank below which nearly everything lies on one line."""


@dataclass(frozen=True)
class Spread:
    """How spread out features are.

    Attributes:
        rank: effective rank of the centered features, in [1, min(n - 1, d)]; 0 where all rows are equal.
        similarity: mean cosine similarity between different samples, in [-1, 1]; 1 where all rows are equal. Features
            of masked autoencoders have a large common part, so that even 0.999 is no fault.
        dead: share of the dimensions that do not vary, in [0, 1].
        samples: rows that were looked at.
    """

    rank: float
    similarity: float
    dead: float
    samples: int


def effective_rank(values: Float[np.ndarray, "n d"], *, centered: bool = True) -> float:
    """How many directions the rows use: the exponential of the entropy of the singular values, as shares of their sum.

    Garrido et al. (2023, RankMe) after Roy and Vetterli (2007); they do not center. With ``centered``, the default, the
    mean of the rows is taken away first: it is the same for every sample, so it tells nothing apart.

    Returns:
        At least 1 and at most ``min(n, d)``; 0 where the rows are all equal (not centered: all zero).
    """
    rows = values.astype(np.float64)
    size = float(np.abs(rows).max(initial=0.0))
    if centered:
        rows = rows - rows.mean(0)
    singular = np.linalg.svd(rows, compute_uv=False)
    if not len(singular) or singular[0] <= 1e-6 * size * np.sqrt(rows.size):  # what rounding of float32 leaves
        return 0.0
    share = singular / singular.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(values: Float[np.ndarray, "n d"]) -> Spread:
    """Rank, similarity and dead dimensions of at least two rows.

    Raises:
        ValueError: fewer than two rows, or values that are not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} row(s): at least two are needed, and all values must be finite")
    rows = values.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    n = len(rows)
    total = np.square(unit.sum(0)).sum() - np.square(unit).sum()
    similarity = 1.0 if bool((length == 0).all()) else float(total / (n * (n - 1)))
    scale = np.abs(rows).max(0)
    dead = float((rows.std(0) <= 1e-6 * np.maximum(scale, 1e-30)).mean())
    return Spread(effective_rank(values), min(1.0, similarity), dead, n)


def collapsed(found: Spread) -> str | None:
    """A warning where the features cannot tell samples apart, or None."""
    where = f"{found.samples} samples: effective rank {found.rank:.2f}, mean cosine similarity {found.similarity:.6f}, "
    where += f"{found.dead:.0%} of the dimensions constant"
    if found.rank == 0 or found.similarity >= ALIKE:
        return f"the features are (nearly) the same for every sample: the encoder has collapsed ({where})"
    if found.samples > 4 and found.rank < NARROW:
        return f"the features of all samples lie nearly on one line: the encoder has nearly collapsed ({where})"
    if found.dead > 0.5:
        return f"most dimensions of the features never change ({where})"
    return None
