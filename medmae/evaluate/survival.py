"""Harrell's concordance: in which share of the pairs that can be compared the one at higher risk came first.

A pair can be compared when the earlier of the two times is an event; at equal times, when one is an event and the other
is censored, who outlived it. Equal risks count half (Harrell et al., 1982).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def comparable(time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, "n n"]:
    """[i, j]: the event of i came before whatever happened to j."""
    sooner = time[:, None] < time[None]
    tied = (time[:, None] == time[None]) & ~event[None]
    return event[:, None] & (sooner | tied)


def concordance(
    score: Float[np.ndarray, " n"],
    pairs: Bool[np.ndarray, "n n"],
    weights: Float[np.ndarray, "r n"] | None = None,
) -> Float[np.ndarray, " r"]:
    """Share of ``pairs`` (i before j) in which i has the higher score; ties count half; NaN without pairs.

    Args:
        score: larger means that i should come first.
        pairs: which ordered pairs count. Positive before negative gives the area under the ROC curve.
        weights: how often each case counts, one row per resampling; None counts each once (r = 1).
    """
    if weights is None:
        weights = np.ones((1, len(score)))
    good = pairs * ((score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None]))
    above = ((weights @ good) * weights).sum(1)
    below = ((weights @ pairs.astype(float)) * weights).sum(1)
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)


def harrell(risk: Float[np.ndarray, " n"], time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"]) -> float:
    """The concordance index; 0.5 is chance, 1 a perfect order, NaN where no pair can be compared."""
    return float(concordance(risk, comparable(time, event))[0])
