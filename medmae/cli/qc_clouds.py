"""Pictures of clouds while a method trains on them: the cloud, the groups that were visible, these with the guesses.

A cloud has no window and no frame, only places. What helps the eye is to see it from the same side every time, near
points strong and far ones pale, in one scale for all three drawings: that of the cloud, never of the guesses, so that
pictures of two steps can be laid on one another.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from torch import nn

    from medmae.core.tokens import Batch
    from medmae.engine.source import Source

Points = Float[np.ndarray, "n 3"]

# Where one looks from, in degrees: a little from above and past a corner, as most figures of clouds are drawn.
_AROUND, _ABOVE = -60.0, 22.0
# Colors of near and far points: what is known, and what the method says of the rest.
_KNOWN = ((0.10, 0.22, 0.36), (0.76, 0.82, 0.88))
_SAID = ((0.82, 0.29, 0.02), (0.98, 0.80, 0.66))
_MARGIN = 1.1  # half a side of a drawing, in units of the farthest point of the cloud from the middle


def make_on_picture(
    source: Source, method: nn.Module, folder: str | Path, *, seed: int = 0, samples: int = 3
) -> Callable[[int, nn.Module], None] | None:
    """The callback ``on_picture(step, method)`` for :func:`medmae.engine.trainer.pretrain`.

    It writes ``qc/step_000100_1.png``, one picture per sample. None for methods that do not predict the points of
    groups. The arguments are those of :func:`medmae.cli.qc.make_on_picture`.
    """
    from medmae.cli.qc import sample_pictures

    if not draws_points(method):
        return None

    def drawn(trained: nn.Module, batch: Batch, title: str) -> Iterator[bytes | None]:
        for i, scene in enumerate(scenes(trained, batch), 1):
            yield draw(scene, title=title.format(i)) if len(scene.cloud) else None

    return sample_pictures(source, folder, drawn, seed=seed, samples=samples)


@dataclass(frozen=True)
class Scene:
    """One cloud and what was made of it, in the units of the batch.

    Attributes:
        cloud: all its points; none where the sample has no cloud.
        visible: the points of visible groups; a point in several groups comes several times.
        predicted: the points that the method put in place of the groups it was asked for.
        hidden: how many groups it was asked for.
        groups: how many groups there are.
    """

    cloud: Points
    visible: Points
    predicted: Points
    hidden: int
    groups: int


def draws_points(method: nn.Module) -> bool:
    """Whether the guesses of a method are the points of groups, relative to their centers."""
    from medmae.core.autoencoder import Autoencoder
    from medmae.core.points import PointGroups
    from medmae.core.target import Content

    if not isinstance(method, Autoencoder):
        return False
    return isinstance(method.tokenizer, PointGroups) and type(method.target) is Content


def scenes(method: Any, batch: Batch) -> list[Scene]:
    """Every cloud of a batch under the plan that the method draws for it, as it is in evaluation."""
    import torch

    from medmae.cli.qc_views import answered

    tokens, plan, guess = answered(method, batch)
    ragged = tokens.layout.ragged or plan.ragged
    seen, asked = tokens.at(plan.visible, ragged=ragged), tokens.layout.at(plan.target, ragged=ragged)
    known = seen.content + seen.layout.coords[:, :, None]
    said = guess.reshape(*guess.shape[:2], -1, 3) + asked.coords[:, :, None]
    clouds = batch[method.tokenizer.names[0]]
    there = batch.get("valid", torch.ones_like(clouds[..., 0], dtype=torch.bool))
    if "present" in batch:
        there = there & batch["present"][:, :1]
    found = []
    for i in range(len(clouds)):
        cloud, visible, predicted = (
            part.reshape(-1, 3).float().cpu().numpy()
            for part in (clouds[i][there[i]], known[i][seen.layout.exists[i]], said[i][asked.exists[i]])
        )
        hidden, groups = int(asked.exists[i].sum()), int(tokens.layout.exists[i].sum())
        found.append(Scene(cloud, visible, predicted, hidden, groups))
    return found


def draw(scene: Scene, *, title: str) -> bytes:
    """The three drawings side by side as a PNG; ``title`` and how much was hidden are the line above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.95), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.08, wspace=0.04)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(1, 3)
    cloud = seen_from(scene.cloud)
    middle = (cloud.min(0) + cloud.max(0)) / 2
    half = _MARGIN * (float(np.abs(cloud - middle)[:, :2].max()) or 1.0)
    depth = (float(cloud[:, 2].min()), float(np.ptp(cloud[:, 2])) or 1.0)
    size = float(np.clip(6000 / len(cloud), 2.0, 16.0))
    panels = {
        "cloud": [(scene.cloud, _KNOWN)],
        "visible groups": [(scene.visible, _KNOWN)],
        "visible + predicted groups": [(scene.visible, _KNOWN), (scene.predicted, _SAID)],
    }
    for ax, (name, parts) in zip(axes, panels.items(), strict=True):
        places = np.concatenate([seen_from(points) for points, _ in parts])
        near = np.clip((places[:, 2] - depth[0]) / depth[1], 0, 1)[:, None]
        ends = [np.repeat(np.array([colors]), len(points), 0) for points, colors in parts]
        strong, pale = np.moveaxis(np.concatenate(ends), 1, 0)
        order = places[:, 2].argsort()  # near points over far ones
        colors, sizes = near * strong + (1 - near) * pale, size * (0.6 + 0.8 * near[:, 0])
        ax.scatter(*places[order, :2].T, s=sizes[order], c=colors[order], linewidths=0)
        ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
        ax.set_axis_off()
        ax.set_title(name, fontsize=8)
    figure.suptitle(f"{title}: {scene.hidden} of {scene.groups} groups hidden, predictions in orange", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def seen_from(points: Points) -> Points:
    """Points as they are looked at, without perspective: to the right, upward, toward the eye. The third axis is up."""
    around, above = np.deg2rad(_AROUND), np.deg2rad(_ABOVE)
    sine, cosine, high, flat = np.sin(around), np.cos(around), np.sin(above), np.cos(above)
    right = (-sine, cosine, 0.0)
    up = (-high * cosine, -high * sine, flat)
    toward = (flat * cosine, flat * sine, high)
    return np.asarray(points @ np.array([right, up, toward]).T)
