"""Pictures and the one HTML file that shows what a run or an evaluation came to.

This room works on plain values (arrays, mappings, the dataclasses of :mod:`medmae.report.values`): it reads no cohort,
loads no model, and whoever has numbers can use it.
"""

from medmae.report.html import render, write_report
from medmae.report.values import (
    Cell,
    Chart,
    Choice,
    Curve,
    FactList,
    Pane,
    Picture,
    Report,
    Scene,
    Table,
    Tabs,
    Tile,
    Viewer,
    Volume,
)

__all__ = [
    "Cell",
    "Chart",
    "Choice",
    "Curve",
    "FactList",
    "Pane",
    "Picture",
    "Report",
    "Scene",
    "Table",
    "Tabs",
    "Tile",
    "Viewer",
    "Volume",
    "render",
    "write_report",
]
