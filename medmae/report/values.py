"""What a report is made of, as frozen values.

Text in them is text: it may come from file names and tables of strangers, and is escaped where it becomes HTML.
Nothing here can carry markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medmae.core.errors import UsageError

Tone = Literal["plain", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Tile:
    """One number worth a glance: ``label``, ``value``, and a line of ``detail``."""

    label: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, a smaller second line, and how it looks. ``best`` marks the winner of a row."""

    text: str
    detail: str = ""
    tone: Tone = "plain"
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one header row; the first column heads its rows. Rows listed in ``totals`` (by index) stand out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    note: str = ""
    totals: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise UsageError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Tabs:
    """Several views of one thing, one shown at a time: label -> tables side by side."""

    title: str
    panels: Mapping[str, tuple[Table, ...]]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """One line of a chart; values that are not finite leave a gap."""

    name: str
    x: tuple[int | float, ...]
    y: tuple[int | float, ...]
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise UsageError(f"curve {self.name!r} has {len(self.x)} positions and {len(self.y)} values")


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str = "step"
    y_label: str = ""
    log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG that is embedded as it is."""

    title: str
    png: bytes
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise UsageError(f"picture {self.title!r} is not a PNG")


@dataclass(frozen=True)
class FactList:
    """Names and values, such as settings or versions."""

    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D array [x y z] shown in gray between ``low`` and ``high``.

    The window is given and never computed from the volume: that of a reconstruction or of a hidden sequence must come
    from what was visible or from training statistics. ``spacing`` is millimeters per voxel, so that slices have
    their true proportions. The array is in RAS orientation where left and right are to be told apart.
    """

    values: np.ndarray
    low: int | float
    high: int | float
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not self.high > self.low:
            raise UsageError(
                f"a volume has 3 axes and a window from low to high, not shape {self.values.shape} and "
                f"[{self.low:g}, {self.high:g}]"
            )


@dataclass(frozen=True)
class Pane:
    """One picture of a scene: volume ``name``; with ``minus`` the absolute difference of the two, in colors.

    ``inside`` names a volume (a mask) outside which a difference is not shown.
    """

    title: str
    name: str
    minus: str = ""
    inside: str = ""
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """A selector of a viewer: its name and its options in order."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """What is shown for one combination of options (one per :class:`Choice`, in order).

    ``place`` is where the planes go through at first, as shares of the axes in [0, 1]; scenes that share it keep the
    place the reader chose.
    """

    options: tuple[str, ...]
    panes: tuple[Pane, ...]
    caption: str = ""
    place: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Viewer:
    """A slice viewer: volumes by name, selectors, and the scene of every combination that exists."""

    title: str
    volumes: Mapping[str, Volume]
    choices: tuple[Choice, ...]
    scenes: tuple[Scene, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.scenes:
            raise UsageError(f"viewer {self.title!r} has no scene")
        for scene in self.scenes:
            if len(scene.options) != len(self.choices):
                raise UsageError(
                    f"viewer {self.title!r}: a scene has {len(scene.options)} options for {len(self.choices)} choices"
                )
            for pane in scene.panes:
                for name in (pane.name, pane.minus, pane.inside):
                    if name and name not in self.volumes:
                        raise UsageError(f"viewer {self.title!r}: pane {pane.title!r} shows no known volume ({name!r})")


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything one HTML file shows, in this order; what is empty is left out."""

    title: str
    subtitle: str = ""
    headline: tuple[Tile, ...] = ()
    summary: tuple[str, ...] = ()
    tables: tuple[Table | Tabs, ...] = ()
    viewers: tuple[Viewer, ...] = ()
    curves: tuple[Chart, ...] = ()
    pictures: tuple[Picture, ...] = ()
    data_card: tuple[Table, ...] = ()
    facts: tuple[FactList, ...] = ()
    notes: tuple[str, ...] = ()
    footer: str = field(default="")
