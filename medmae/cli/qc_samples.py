"""Pictures of images, clips and sound while a method trains on them: the original, what was visible, the
reconstruction.

A method that knows several channels, tasks or groups of bands has a row for each of them, in the order of its tokens.

Volumes have pictures of their own (``qc.py``), with windows, planes and a baseline; these are photographs and frames,
looked at as they are. A method that predicts patches normalized by their own mean and deviation says nothing of
brightness and contrast: its guesses are shown with those of the true patch, and the caption says so.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from medmae.cli.qc_views import View
    from medmae.engine.source import Source

_FRAMES = 4  # of a clip that are shown, one row each; of several clips side by side only the middle one
_HIDDEN = 0.5  # gray of what the method did not see


def make_on_picture(
    source: Source, method: nn.Module, folder: str | Path, *, seed: int = 0, samples: int = 3
) -> Callable[[int, nn.Module], None] | None:
    """The callback ``on_picture(step, method)`` for :func:`medmae.engine.trainer.pretrain`.

    It writes ``qc/step_000100_1.png``, one picture per sample. None for methods that do not predict patches of images,
    clips or spectrograms, which cannot be shown this way. The arguments are those of
    :func:`medmae.cli.qc.make_on_picture`.
    """
    from medmae.cli import qc_sounds
    from medmae.cli.qc import sample_pictures
    from medmae.cli.qc_views import parts_of, views

    if not parts_of(method):
        return None

    def drawn(trained: nn.Module, batch: Any, title: str) -> Iterator[bytes]:
        seen = views(trained, batch)
        frontend: Any = getattr(trained, "frontend", None)
        for i in range(len(seen[0].truth)):
            if frontend is None:
                rows = [row for view in seen for row in rows_of(view, i, alone=len(seen) == 1)]
                yield montage(rows, title=title.format(i + 1))
            else:
                view, note = qc_sounds.without_filling(seen[0], i)
                row = rows_of(view, i, alone=True)[0]
                names = ("original", "visible", _named(row, " "))
                yield qc_sounds.montage(row.panels, names=names, frontend=frontend, title=title.format(i + 1) + note)

    return sample_pictures(source, folder, drawn, seed=seed, samples=samples)


@dataclass(frozen=True)
class Row:
    """One row of a picture.

    Attributes:
        name: what it shows; "" where there is nothing else to tell it from.
        panels: original, visible, reconstruction: [rows columns] or [rows columns 3] in 0 to 1, NaN where there is
            nothing to show.
        scaled: the reconstruction has the brightness and contrast of the true patches.
        labels: the values are classes and not brightness.
    """

    name: str
    panels: tuple[np.ndarray, ...]
    scaled: bool
    labels: bool


def rows_of(view: View, sample: int, *, alone: bool) -> list[Row]:
    """The rows that show one view of a sample: some frames of a clip or volume that is ``alone``, else the middle one.

    No rows where the sample has no such image. The range of the original is that of all.
    """
    if view.present is not None and not bool(view.present[sample]):
        return []
    arrays = [part[sample].float().cpu().numpy() for part in (view.truth, view.visible, view.pasted)]
    low, high = (float(v) for v in np.percentile(arrays[0], [0.5, 99.5]))
    if view.classes:
        low, high = 0.0, float(max(1, view.classes - 1))
    scale = (high - low) or 1.0
    frames: list[int | None] = [None]
    if arrays[0].ndim == 4:
        count = arrays[0].shape[1]
        frames = [count // 2]
        if alone:
            frames = [int(n) for n in np.linspace(0, count - 1, min(_FRAMES, count)).round()]
    rows = []
    for frame in frames:
        flat = [array if frame is None else array[:, frame] for array in arrays]
        # Three channels are colors; of any other number the first is shown.
        shown = [(f.transpose(1, 2, 0) if len(f) == 3 else f[0]) for f in flat]
        panels = tuple(np.clip((part - low) / scale, 0, 1) for part in shown)
        rows.append(Row("" if alone else view.name, panels, view.scaled, bool(view.classes)))
    return rows


def _named(row: Row, gap: str) -> str:
    """What stands above a reconstruction."""
    return "reconstruction" + (gap + "(mean and contrast of true patches)") * row.scaled


def montage(rows: Sequence[Row], *, title: str) -> bytes:
    """Original, visible and reconstruction side by side as a PNG, row by row; ``title`` is one line above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 0.5 + 2.2 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        for ax, panel, name in zip(line, row.panels, ("original", "visible", _named(row, "\n")), strict=True):
            if row.labels:  # gray must stay free for what was not seen
                image, colors = np.ma.masked_invalid(panel), "viridis"
                ax.set_facecolor((_HIDDEN,) * 3)
            else:
                image, colors = np.nan_to_num(panel, nan=_HIDDEN), "gray"
            ax.imshow(image, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[], frame_on=row.labels)
            if number == 0 or row.scaled != rows[number - 1].scaled:
                ax.set_title(name, fontsize=8)
        if row.name:
            line[0].set_ylabel(row.name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
