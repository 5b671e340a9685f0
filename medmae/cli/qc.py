"""What pre-training shows of itself while it runs: pictures of fixed samples, and the trivial baseline beside the
model.

The samples and their masks are those of the first validation batch and never change, so the pictures of two steps can
be laid on top of one another. Windows and the mean that is guessed come from training samples, never from what is
hidden.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmae.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medmae.engine.source import Source
    from medmae.report.pictures import Window

QUALITY = "quality.jsonl"
_TRAINING_SAMPLES = 16  # that windows and means are taken from
_VOXELS = 20_000  # of each of them, evenly spread: enough for percentiles


def make_on_picture(
    source: Source, method: nn.Module, folder: str | Path, *, seed: int = 0, samples: int = 2
) -> Callable[[int, nn.Module], None] | None:
    """The callback ``on_picture(step, method)`` for :func:`medmae.engine.trainer.pretrain`.

    It writes ``qc/step_000100_1.png`` (one picture per sample: truth, visible, reconstruction, error for each
    sequence) and appends to ``qc/quality.jsonl`` the mean absolute error of hidden foreground next to that of
    guessing the training mean. None for methods that predict no voxels of a 3-D grid, which cannot be shown this way.

    Args:
        source: where the samples come from; a training batch stands in where nothing is validated.
        method: the method to be trained.
        folder: the run folder.
        seed: of the samples' masks; that of the training.
        samples: how many samples are drawn.
    """
    from medmae.cli.qc_views import plain_volumes
    from medmae.core.autoencoder import Autoencoder

    grid = getattr(getattr(method, "tokenizer", None), "grid", None)
    orientation = str((source.describe().get("preprocess") or {}).get("orientation", "RAS"))
    if grid is None or len(grid.size) != 3 or grid.channels != 1:
        return None
    if not isinstance(method, Autoencoder) and not plain_volumes(method):
        return None
    state: dict[str, Any] = {}

    def on_picture(step: int, trained: nn.Module) -> None:
        device = next(trained.parameters()).device
        if not state:
            state["batch"] = fixed_batch(source, device=device, seed=seed, samples=samples)
            state["known"] = _training_values(source, device=device, seed=seed)
        draw(step, trained, state["batch"], state["known"], folder=Path(folder) / "qc", orientation=orientation)

    return on_picture


def sample_pictures(
    source: Source,
    folder: str | Path,
    drawn: Callable[[nn.Module, Any, str], Iterable[bytes | None]],
    *,
    seed: int,
    samples: int,
) -> Callable[[int, nn.Module], None]:
    """A callback ``on_picture(step, method)`` that writes ``qc/step_000100_1.png``, one picture per sample.

    ``drawn(method, batch, title)`` gives them in the order of the batch, which is the same at every step; None where
    there is nothing to see. The title has ``{}`` where the number of the sample belongs.
    """
    batch: list[dict[str, Tensor]] = []

    def on_picture(step: int, trained: nn.Module) -> None:
        if not batch:
            device = next(trained.parameters()).device
            batch.append(fixed_batch(source, device=device, seed=seed, samples=samples))
        place = Path(folder) / "qc"
        place.mkdir(parents=True, exist_ok=True)
        for i, png in enumerate(drawn(trained, batch[0], f"step {step}, validation sample {{}}"), 1):
            if png is not None:
                write_bytes(place / f"step_{step:06d}_{i}.png", png)

    return on_picture


def fixed_batch(source: Source, *, device: Any, seed: int, samples: int) -> dict[str, Tensor]:
    """The samples that every picture of a run shows, ready for the method: the first that are validated, else trained
    on."""
    batch = next(iter(source.validation(batch=samples, rank=0, world=1, seed=seed)), None)
    if batch is None:
        batch = next(iter(source.train(start=0, batch=samples, rank=0, world=1, seed=seed)))
    return dict(source.finish(batch, device=device, training=False))


def _training_values(source: Source, *, device: Any, seed: int) -> Mapping[str, tuple[Window, float]]:
    """Window and mean of every sequence in the foreground of some training samples."""
    import torch

    from medmae.report.pictures import Window

    values: dict[str, list[np.ndarray]] = {name: [] for name in source.sequences}
    stream = source.train(start=0, batch=2, rank=0, world=1, seed=seed)
    for _ in range(max(1, min(_TRAINING_SAMPLES, source.size) // 2)):
        batch = source.finish(next(stream), device=torch.device("cpu"), training=False)
        present = batch.get("present")
        for column, name in enumerate(source.sequences):
            for i, image in enumerate(batch[name]):
                if present is None or bool(present[i, column]):
                    inside = batch["foreground"][i] > 0 if "foreground" in batch else torch.ones_like(image[:1]) > 0
                    found = image[inside.expand_as(image)].numpy()
                    values[name].append(found[:: max(1, len(found) // _VOXELS)].copy())
    known = {}
    for name, parts in values.items():
        joined = np.concatenate(parts) if parts else np.zeros(0)
        known[name] = (Window.of(joined), float(joined.mean())) if joined.size else (Window(-3.0, 3.0), 0.0)
    return known


def draw(
    step: int,
    method: Any,
    batch: Mapping[str, Tensor],
    known: Mapping[str, tuple[Window, float]],
    *,
    folder: Path,
    orientation: str = "RAS",
) -> None:
    """One picture per sample of ``batch`` and one row of numbers, into ``folder``.

    ``orientation`` are the axis codes of the arrays; pictures are drawn upright whatever they are.
    """
    from medmae.cli.qc_views import plain_volumes
    from medmae.report.pictures import Strip, busiest, montage
    from medmae.volume.complete import preview

    seen = preview(method, batch)
    normalized = seen.normalized and not plain_volumes(method)
    foreground = batch.get("foreground")
    present = batch.get("present")
    folder.mkdir(parents=True, exist_ok=True)
    totals: dict[str, list[float]] = {}
    for i in range(len(next(iter(seen.truth.values())))):
        strips = []
        for column, name in enumerate(method.sequences):
            if present is not None and not bool(present[i, column]):
                continue
            truth, shown, pasted, asked = (
                _upright(part[name][i, 0].float().cpu().numpy(), orientation)
                for part in (seen.truth, seen.visible, seen.pasted, seen.asked)
            )
            inside = np.ones(truth.shape, bool)
            if foreground is not None:
                inside = _upright(foreground[i, 0].cpu().numpy(), orientation) > 0
            hidden = inside & (asked > 0)
            window, mean = known[name]
            if hidden.any() and not normalized:
                sums = totals.setdefault(name, [0.0, 0.0, 0.0])
                sums[0] += float(np.abs(pasted - truth)[hidden].sum())
                sums[1] += float(np.abs(mean - truth)[hidden].sum())
                sums[2] += float(hidden.sum())
            black = window.low
            visible = np.where(inside & (asked == 0), shown, black)
            images = {"truth": np.where(inside, truth, black), "visible": visible,
                      "reconstruction": np.where(inside, pasted, black)}  # fmt: skip
            share = f"{100 * float((asked > 0)[inside].mean() if inside.any() else 0):.0f} % hidden"
            strips.append(Strip(name, images, window, ("reconstruction", "truth"), hidden, share))
        if strips:
            place = {"axial": busiest(inside, "axial")}
            png = montage(strips, title=f"step {step}, validation sample {i + 1}", place=place)
            write_bytes(folder / f"step_{step:06d}_{i + 1}.png", png)
    if totals:
        _append(folder / QUALITY, _row(step, totals))


def _upright(volume: np.ndarray, orientation: str) -> np.ndarray:
    """The volume with its axes pointing right, forward and up, as the pictures take them."""
    order = [next(i for i, code in enumerate(orientation) if code in pair) for pair in ("RL", "AP", "SI")]
    backward = tuple(axis for axis, i in enumerate(order) if orientation[i] in "LPI")
    return np.flip(volume.transpose(order), backward)


def _row(step: int, totals: Mapping[str, list[float]]) -> dict[str, Any]:
    each = {name: {"mae": s[0] / s[2], "mae_mean": s[1] / s[2], "voxels": int(s[2])} for name, s in totals.items()}
    count = sum(s[2] for s in totals.values())
    whole = {key: sum(s[k] for s in totals.values()) / count for k, key in enumerate(("mae", "mae_mean"))}
    return {"step": step, **whole, "sequences": each}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row in the order of steps; rows of this and later steps, left by a run that was resumed, are replaced."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = [found for line in lines if line.strip() and (found := json.loads(line))["step"] < row["step"]]
    write_text(path, "".join(json.dumps(r) + "\n" for r in [*rows, row]))
