"""From a case to its missing sequences: the one path that ``reconstruct`` and ``evaluate`` share.

What is measured must be what users get. So both ask for every sequence of the model that is not given, which is what
the model was trained on, and keep what was wanted: a target does not depend on which others were wanted with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medmae.core.errors import CheckpointError, MissingDependency, OutOfMemory, UsageError

from .console import say

if TYPE_CHECKING:
    import numpy as np
    import torch

    from medmae.core.autoencoder import Autoencoder


class Completes(Protocol):
    """What can be asked for the missing sequences of a case: a pre-trained model, or one that was fine-tuned to it."""

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences it knows."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Of its folder; ``method`` is what it is called."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What it remembers of its training data."""

    @property
    def seen(self) -> tuple[Mapping[str, Any], ...]:
        """All data it was ever trained on; see ``leakage.leaks``."""

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """How a case is brought to its grid and scale."""

    @property
    def weights(self) -> str:
        """SHA-256 of its weights."""

    @property
    def overlap(self) -> float:
        """Of its windows."""

    @property
    def precision(self) -> str:
        """ "fp32" or "bf16"."""

    def guess(
        self,
        images: Mapping[str, np.ndarray],
        foreground: np.ndarray,
        *,
        spacing: Sequence[float],
        targets: Sequence[str],
        on_windows: Any = None,
    ) -> dict[str, np.ndarray]:
        """The targets (x, y, z), normalized, from all of ``images`` that are not targets."""


@dataclass(frozen=True)
class Completer:
    """A model made ready to reconstruct.

    Attributes:
        method: with its weights, on its device, in evaluation mode.
        config: of its model folder.
        weights: SHA-256 of its weights.
        overlap: of the windows, see ``medmae.volume.complete.cover``.
        batch: windows per forward pass.
        precision: "fp32" or "bf16".
    """

    method: Autoencoder
    config: Mapping[str, Any]
    weights: str
    overlap: float
    batch: int
    precision: str

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences the model knows."""
        return self.method.sequences

    @property
    def data(self) -> Mapping[str, Any]:
        """What the model remembers of its training data."""
        return self.config.get("data") or {}

    @property
    def seen(self) -> tuple[Mapping[str, Any], ...]:
        """Whom it was trained on."""
        return (self.data,)

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """How a case is brought to the model's grid and scale."""
        return self.data.get("preprocess") or {}

    def guess(
        self,
        images: Mapping[str, np.ndarray],
        foreground: np.ndarray,
        *,
        spacing: Sequence[float],
        targets: Sequence[str],
        on_windows: Any = None,
    ) -> dict[str, np.ndarray]:
        """The targets (x, y, z), normalized, from all of ``images`` that are not targets; valid inside the
        foreground."""
        import torch

        from medmae.volume.complete import complete

        given = {name: image for name, image in images.items() if name in self.sequences and name not in targets}
        batch = {name: torch.from_numpy(image).float()[None, None] for name, image in given.items()}
        batch["foreground"] = torch.from_numpy(foreground)[None, None].float()
        batch["spacing"] = torch.tensor([list(spacing)], dtype=torch.float32)
        asked = [name for name in self.sequences if name not in given]
        device = next(self.method.parameters()).device
        with explained(self.batch), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = complete(
                self.method, batch, asked, overlap=self.overlap, batch_size=self.batch, on_windows=on_windows
            )
        return {name: found[name][0, 0].numpy() for name in targets}


def open_completer(
    checkpoint: str | Path, *, device: str = "auto", overlap: float = 0.5, batch: int = 1, precision: str = "fp32"
) -> Completer:
    """Load a model folder for reconstruction.

    Raises CheckpointError where it is no model of several sequences, UsageError for options that cannot be meant.
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"--overlap must be at least 0 and below 1, not {overlap}")
    if batch < 1:
        raise UsageError(f"--batch must be at least 1, not {batch}")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"--precision must be fp32 or bf16, not {precision!r}")
    from medmae.checkpoint import WEIGHTS, file_hash, load_model, model_folder
    from medmae.core.autoencoder import Autoencoder
    from medmae.core.grid import ModalityGrid
    from medmae.core.target import Content

    where = pick_device(device)
    loaded = load_model(checkpoint)
    method = loaded.method
    grid = getattr(method, "tokenizer", None)
    if not isinstance(method, Autoencoder) or not isinstance(grid, ModalityGrid) or len(grid.grid.size) != 3:
        raise CheckpointError(
            f"{checkpoint} holds {loaded.config['method']}, which cannot reconstruct sequences of a volume. "
            "Use a model that was pre-trained with --method bm_mae"
        )
    if len(method.sequences) < 2:
        raise CheckpointError(
            f"{checkpoint} knows one sequence only ({', '.join(method.sequences)}): "
            "there is nothing to reconstruct it from"
        )
    if not isinstance(method.target, Content):
        raise CheckpointError(
            f"{checkpoint} predicts patches of unknown scale (normalize_target); "
            "pre-train with normalize_target: false to reconstruct"
        )
    if not any(loaded.config["recipe"].get(key) for key in ("complete", "drop", "alpha")):
        say(
            f"Warning: this {loaded.config['method']} never had a sequence hidden whole in training, so it cannot know "
            "how to reconstruct one. Pre-train bm_mae, or this method with --set method.complete=0.25",
            style="yellow",
        )
    if not (loaded.config.get("data") or {}).get("preprocess"):
        say("the model folder states no preprocessing: images are only oriented to RAS and normalized", style="yellow")
    weights = file_hash(model_folder(checkpoint) / WEIGHTS)
    return Completer(method.to(where).eval(), loaded.config, weights, overlap, batch, precision)


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU or else the CPU. MissingDependency where a named device is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r} is no device; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise MissingDependency(
            f"--device {name}: torch sees {torch.cuda.device_count()} GPU(s) here. "
            "Use --device cpu, or install a CUDA build of torch"
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:1")
    return device


@contextmanager
def explained(batch: int) -> Iterator[None]:
    """What to do when memory runs out."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        smaller = f"--batch {max(1, batch // 2)}, " if batch > 1 else ""
        raise OutOfMemory(
            f"not enough memory for {batch} window(s) at once: {error}. Try {smaller}--precision bf16 or --device cpu"
        ) from error
