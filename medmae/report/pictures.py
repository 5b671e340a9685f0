"""Pictures of what a model saw, was asked for and answered.

Gray windows are never taken from what was hidden: they come from training statistics or from visible voxels, so that a
picture cannot flatter a reconstruction by rescaling it to the answer. All panels of a sequence share one window.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from medmae.core.errors import UsageError

Image = Float[np.ndarray, "x y z"]
PLANES = ("axial", "coronal", "sagittal")
_AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True)
class Window:
    """Values shown as black (``low``) and white (``high``)."""

    low: int | float
    high: int | float

    @classmethod
    def of(cls, values: Shaped[np.ndarray, "*any"], *, share: float = 0.5) -> Window:
        """From visible or training values: the percentiles ``share`` and 100 - ``share``, and a little room.

        Raises UsageError where there is no finite value.
        """
        known = np.asarray(values, np.float64).ravel()
        known = known[np.isfinite(known)]
        if not len(known):
            raise UsageError("a window needs at least one finite visible value")
        low, high = (float(v) for v in np.percentile(known, [share, 100 - share]))
        room = 0.02 * (high - low) or 0.5
        return cls(low - room, high + room)


@dataclass(frozen=True, eq=False)
class Strip:
    """One row of a montage: volumes of one sequence, side by side in one window.

    Attributes:
        name: what the row shows.
        images: title -> volume.
        window: the common window.
        error: titles (guess, truth) of the two images whose absolute difference is the last panel; None for none.
        inside: where the difference is shown; None shows it everywhere.
        note: small print beside the name.
    """

    name: str
    images: Mapping[str, Image]
    window: Window
    error: tuple[str, str] | None = None
    inside: Bool[np.ndarray, "x y z"] | None = None
    note: str = ""


def slice_of(volume: Shaped[np.ndarray, "x y z"], plane: str, place: float = 0.5) -> Shaped[np.ndarray, "rows columns"]:
    """A slice as it is looked at: anterior or superior up, the patient's right on the left (RAS in).

    Args:
        volume: the array.
        plane: axial, coronal or sagittal.
        place: which slice, as a share of the axis in [0, 1].
    """
    if plane not in _AXES:
        raise UsageError(f"there is no plane {plane!r}; there are {', '.join(PLANES)}")
    axis = _AXES[plane]
    index = min(volume.shape[axis] - 1, max(0, int(place * volume.shape[axis])))
    flat = volume.take(index, axis=axis).T[::-1]
    return flat if plane == "sagittal" else flat[:, ::-1]


def busiest(mask: Shaped[np.ndarray, "x y z"], plane: str) -> float:
    """The place of the slice with the most of ``mask``, for :func:`slice_of`; the middle where there is none."""
    axis = _AXES[plane]
    counts = np.asarray(mask, bool).sum(tuple(i for i in range(3) if i != axis))
    return float((counts.argmax() + 0.5) / len(counts)) if counts.any() else 0.5


def montage(
    strips: Sequence[Strip],
    *,
    title: str = "",
    planes: Sequence[str] = ("axial",),
    place: Mapping[str, float] | None = None,
) -> bytes:
    """Rows of panels as a PNG: every image of a strip in every plane, then the error.

    Args:
        strips: the rows; all with the same titles.
        title: one line above.
        planes: which slices of every volume.
        place: plane -> share of the axis; the middle where it is left out.
    """
    if not strips:
        raise UsageError("a montage needs at least one strip")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = list(strips[0].images)
    panels = [(name, plane) for plane in planes for name in (*titles, *(("error",) if strips[0].error else ()))]
    figure = Figure(figsize=(0.5 + 1.9 * len(panels), 0.45 + 1.95 * len(strips)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(strips), len(panels), squeeze=False)
    for row, strip in zip(axes, strips, strict=True):
        for ax, (name, plane) in zip(row, panels, strict=True):
            where = (place or {}).get(plane, 0.5)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if name == "error":
                _draw_error(ax, strip, plane, where)
            else:
                window = strip.window
                ax.imshow(slice_of(strip.images[name], plane, where), cmap="gray", vmin=window.low, vmax=window.high)
            if strip is strips[0]:
                ax.set_title(name if len(planes) == 1 else f"{name}, {plane}", fontsize=9)
        row[0].set_ylabel(_literal(strip.name + (f"\n{strip.note}" if strip.note else "")), fontsize=9)
    if title:
        figure.suptitle(_literal(title), fontsize=10)
    return _png(figure)


def _draw_error(ax: object, strip: Strip, plane: str, place: float) -> None:
    guess, truth = strip.error or ("", "")
    apart = np.abs(strip.images[guess] - strip.images[truth])
    if strip.inside is not None:
        apart = np.where(strip.inside, apart, 0)
    half = (strip.window.high - strip.window.low) / 2
    ax.imshow(slice_of(apart, plane, place), cmap="inferno", vmin=0, vmax=half)  # type: ignore[attr-defined]


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str = "", log: bool = False
) -> bytes:
    """Curves as a PNG: name -> (steps, values)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for name, (steps, values) in curves.items():
        ax.plot(steps, values, label=_literal(name), lw=1.4)
    ax.set_yscale("log" if log else "linear")
    ax.set_xlabel("step")
    ax.grid(color="0.9")
    if curves:
        ax.legend(frameon=False)
    if title:
        ax.set_title(_literal(title), fontsize=10)
    return _png(figure)


def _literal(text: str) -> str:
    """Text that is not read as a formula."""
    return text.replace("$", r"\$")


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # type: ignore[attr-defined]
    return buffer.getvalue()
