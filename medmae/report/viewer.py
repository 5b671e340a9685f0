"""The slice viewer: volumes as PNG mosaics inside the page, drawn on canvases by a few lines of script.

Differences are computed in the page from the two volumes, so an error costs no bytes. The page holds 8-bit values
only: a report shows, it is not where numbers are taken from.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np

from medmae.report.png import data_uri, gray_png, mosaic, to_gray
from medmae.report.values import Viewer, Volume


def viewer_html(viewer: Viewer, *, number: int, budget: int) -> str:
    """The viewer as HTML: its data, and the places the script fills.

    Args:
        viewer: what to show.
        number: tells the viewers of a page apart.
        budget: bytes its volumes may take; they are halved in size until they fit.
    """
    volumes = _packed(viewer, budget)
    data: dict[str, Any] = {
        "choices": [{"name": choice.name, "options": list(choice.options)} for choice in viewer.choices],
        "scenes": [
            {
                "options": list(scene.options),
                "caption": scene.caption,
                "place": [float(share) for share in scene.place],
                "panes": [
                    {"title": p.title, "name": p.name, "minus": p.minus, "inside": p.inside, "note": p.note}
                    for p in scene.panes
                ],
            }
            for scene in viewer.scenes
        ],
        "volumes": volumes,
    }
    note = f'<p class="note">{escape(viewer.note)}</p>' if viewer.note else ""
    return (
        f'<section class="card viewer" data-source="viewer-data-{number}" '
        f'aria-label="{escape(viewer.title, quote=True)}"><h3>{escape(viewer.title)}</h3>{note}'
        '<div class="controls"></div><p class="caption" aria-live="polite"></p><div class="panes"></div>'
        "<noscript><p>The slice viewer needs JavaScript; nothing is loaded from the network.</p></noscript>"
        f'<script type="application/json" id="viewer-data-{number}">{json_for_script(data)}</script></section>'
    )


def json_for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment or an entity there."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(viewer: Viewer, budget: int) -> dict[str, Any]:
    """Every volume as a mosaic; all of them reduced by the same factor until they fit into ``budget`` bytes."""
    shrink = 1
    while True:
        packed = {name: _pack(volume, shrink) for name, volume in viewer.volumes.items()}
        size = sum(len(entry["png"]) for entry in packed.values())
        if size <= budget or all(max(entry["shape"]) <= 8 for entry in packed.values()):
            return packed
        shrink *= 2


def _pack(volume: Volume, shrink: int) -> dict[str, Any]:
    values = _reduced(np.asarray(volume.values, np.float32), shrink)
    image, per_row = mosaic(to_gray(values, low=volume.low, high=volume.high))
    return {
        "shape": list(values.shape),
        "spacing": [float(s) * shrink for s in volume.spacing],
        "perRow": per_row,
        "low": float(volume.low),
        "high": float(volume.high),
        "png": data_uri(gray_png(image)),
    }


def _reduced(values: np.ndarray, factor: int) -> np.ndarray:
    """Means of cubes of ``factor`` voxels; a remainder at the end of an axis is left out."""
    if factor == 1:
        return values
    parts = [max(1, n // factor) for n in values.shape]
    steps = [factor if n >= factor else n for n in values.shape]
    cut = values[tuple(slice(0, p * s) for p, s in zip(parts, steps, strict=True))]
    shape = [x for p, s in zip(parts, steps, strict=True) for x in (p, s)]
    return cut.reshape(shape).mean((1, 3, 5))
