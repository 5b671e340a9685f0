"""Pictures of sound while a method trains on it: spectrograms one above the other, so that the same time is in a line.

Drawn as one reads them: time to the right in seconds, frequency upward in Hertz, energy from dark to bright; gray is
what the method did not see.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from medmae.core.sound import Frontend, centers

if TYPE_CHECKING:
    from medmae.cli.qc_views import View

_HOP = 0.01  # seconds from frame to frame of a front end
_HERTZ = (100, 250, 500, 1000, 2000, 4000, 8000, 16000)  # marks of the frequency axis, those that fit
_APART = 10  # least bins from mark to mark, in a spectrogram of a hundred


def without_filling(view: View, sample: int) -> tuple[View, str]:
    """The view up to where a sample's sound ends, and what to say of the rest, "" where there is none.

    What short sounds are filled up with is one value, often a louder one than any of the sound: it would take all of
    the picture and all of its range.
    """
    truth = view.truth[sample]
    sounds = (truth != truth[:, -1:, -1:]).any(-1).any(0).nonzero()
    if not len(sounds) or (end := int(sounds.max()) + 1) == truth.shape[1]:
        return view, ""
    cut = replace(view, truth=view.truth[:, :, :end], visible=view.visible[:, :, :end], pasted=view.pasted[:, :, :end])
    return cut, f" (the sound ends after {end * _HOP:.1f} s; what fills it up is not shown)"


def montage(
    panels: Sequence[Float[np.ndarray, "frames bins"]], *, names: Sequence[str], frontend: Frontend, title: str
) -> bytes:
    """Spectrograms with values in 0 to 1 as a PNG, NaN where there is nothing to show; ``title`` is one line above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 0.7 + 1.3 * len(panels)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    frames, bins = panels[0].shape
    where, told = _marks(frontend, bins)
    for ax, panel, name in zip(axes, panels, names, strict=True):
        ax.set_facecolor("0.5")
        ax.imshow(
            np.ma.masked_invalid(panel).T, cmap="magma", vmin=0, vmax=1, origin="lower", aspect="auto",
            interpolation="nearest", extent=(0, frames * _HOP, -0.5, bins - 0.5),
        )  # fmt: skip
        ax.set_title(name, fontsize=8)
        ax.set_yticks(where, told)
        ax.tick_params(labelsize=7, length=2)
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes[len(panels) // 2].set_ylabel("frequency, Hz", fontsize=8)
    axes[-1].set_xlabel("time, s", fontsize=8)
    figure.suptitle(title, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _marks(frontend: Frontend, bins: int) -> tuple[list[float], list[str]]:
    """Bins, with fractions, and what stands beside them: round frequencies, from the highest down, not too dense."""
    known = centers(rate=frontend.rate, bins=bins).numpy()
    where: list[float] = []
    told: list[str] = []
    for hertz in reversed(_HERTZ):
        if not known[0] <= hertz <= known[-1]:
            continue
        at = float(np.interp(hertz, known, np.arange(bins)))
        if not where or where[-1] - at >= _APART * bins / 100:
            where.append(at)
            told.append(f"{hertz // 1000}k" if hertz >= 1000 else str(hertz))
    return where, told
