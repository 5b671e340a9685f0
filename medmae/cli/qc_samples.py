"""Pictures of images and clips while a method trains on them: the original, what was visible, the reconstruction.

Volumes have pictures of their own (``qc.py``), with windows, planes and a baseline; these are photographs and frames,
looked at as they are. A method that predicts patches normalized by their own mean and deviation says nothing of
brightness and contrast: its guesses are shown with those of the true patch, and the caption says so.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmae.atomic import write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medmae.engine.source import Source

_FRAMES = 4  # of a clip that are shown, one row each
_HIDDEN = 0.5  # gray of what the method did not see


def make_on_picture(
    source: Source, method: nn.Module, folder: str | Path, *, seed: int = 0, samples: int = 3
) -> Callable[[int, nn.Module], None] | None:
    """The callback ``on_picture(step, method)`` for :func:`medmae.engine.trainer.pretrain`.

    It writes ``qc/step_000100_1.png``, one picture per sample. None for methods that do not predict the patches of one
    image or clip, which cannot be shown this way. The arguments are those of :func:`medmae.cli.qc.make_on_picture`.
    """
    from medmae.core.autoencoder import Autoencoder
    from medmae.core.grid import ModalityGrid
    from medmae.core.target import Content, Normalized

    tokenizer = getattr(method, "tokenizer", None)
    if (
        not isinstance(method, Autoencoder)
        or type(tokenizer) is not ModalityGrid
        or type(method.target) not in (Content, Normalized)
        or len(tokenizer.names) != 1
        or len(tokenizer.grid.size) not in (2, 3)
    ):
        return None
    state: dict[str, Any] = {}

    def on_picture(step: int, trained: nn.Module) -> None:
        if "batch" not in state:
            batch = next(iter(source.validation(batch=samples, rank=0, world=1, seed=seed)), None)
            if batch is None:
                batch = next(iter(source.train(start=0, batch=samples, rank=0, world=1, seed=seed)))
            state["batch"] = source.finish(batch, device=next(trained.parameters()).device, training=False)
        truth, visible, pasted = preview(trained, state["batch"])
        place = Path(folder) / "qc"
        place.mkdir(parents=True, exist_ok=True)
        for i, panels in enumerate(zip(truth, visible, pasted, strict=True)):
            title = f"step {step}, validation sample {i + 1}"
            write_bytes(place / f"step_{step:06d}_{i + 1}.png", montage([p.float().cpu().numpy() for p in panels],
                        title=title, scaled=isinstance(method.target, Normalized)))  # fmt: skip

    return on_picture


def preview(method: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The images, what was visible of them (NaN elsewhere), and the same with guesses filled in: [b c *size] each."""
    import torch

    from medmae.core.target import Normalized
    from medmae.core.tokens import Tokens, take

    was = method.training
    method.eval()
    with torch.no_grad():
        tokens = method.tokenizer(batch)
        plan = method.plan(batch)
        guess = method.guess(tokens, plan).to(tokens.content.dtype)
        if isinstance(method.target, Normalized):
            mean, divisor = method.target.scale(tokens.content)
            parts = guess.unflatten(-1, (-1, method.target.channels))
            guess = (parts * take(divisor, plan.target) + take(mean, plan.target)).flatten(-2)
    method.train(was)
    layout, grid = tokens.layout, method.tokenizer.grid
    nothing = torch.full((), torch.nan, dtype=tokens.content.dtype, device=tokens.content.device)
    seen = tokens.at(plan.visible).onto(layout, nothing).content
    answers = Tokens(layout.at(plan.target), guess).onto(layout, nothing).content
    pasted = torch.where(answers.isnan(), seen, answers)
    truth, visible, filled = (grid.unpatchify(content) for content in (tokens.content, seen, pasted))
    return truth, visible, filled


def montage(panels: list[np.ndarray], *, title: str, scaled: bool = False) -> bytes:
    """Original, visible and reconstruction side by side as a PNG; of a clip, some frames below one another.

    Args:
        panels: three arrays [c *size]; NaN is shown gray. The range of the first is that of all.
        title: one line above.
        scaled: the reconstruction has the brightness and contrast of the true patches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = panels[0]
    low, high = (float(v) for v in np.percentile(known, [0.5, 99.5]))
    scale = (high - low) or 1.0
    frames = [None]
    if known.ndim == 4:
        frames = list(np.linspace(0, known.shape[1] - 1, min(_FRAMES, known.shape[1])).round().astype(int))
    figure = Figure(figsize=(6.6, 0.5 + 2.2 * len(frames)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(frames), len(panels), squeeze=False)
    note = "reconstruction\n(mean and contrast of true patches)" if scaled else "reconstruction"
    for number, (row, frame) in enumerate(zip(axes, frames, strict=True)):
        for ax, panel, name in zip(row, panels, ("original", "visible", note), strict=True):
            flat = panel if frame is None else panel[:, frame]
            # Three channels are colors; of any other number the first is shown.
            flat = flat.transpose(1, 2, 0) if len(flat) == 3 else flat[0]
            shown = np.clip(np.nan_to_num((flat - low) / scale, nan=_HIDDEN), 0, 1)
            ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
            if number == 0:
                ax.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
