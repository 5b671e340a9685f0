"""A fine-tuned model as the commands see it: from the files of a case to what the model says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .console import say

if TYPE_CHECKING:
    import numpy as np

    from medmae.data.inference import InferenceCase
    from medmae.transfer.finetuned import Finetuned
    from medmae.transfer.task_folder import LoadedTask

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TaskModel:
    """A fine-tuned model made ready to predict.

    Attributes:
        loaded: the model, on its device, and its config.
        weights: SHA-256 of its weights.
        batch: windows per forward pass.
        precision: "fp32" or "bf16".
    """

    loaded: LoadedTask
    weights: str
    batch: int
    precision: str

    @property
    def method(self) -> Finetuned:
        """With its weights, in evaluation mode."""
        return self.loaded.method

    @property
    def task(self) -> Mapping[str, Any]:
        """What it does; see ``medmae.transfer.task_folder.save_task``."""
        return self.loaded.task

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences it knows."""
        return self.method.sequences

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """How a case is brought to its grid and scale."""
        return self.loaded.data.get("preprocess") or {}

    def load(self, images: Mapping[str, Path], *, mask: Path | None, name: str) -> InferenceCase:
        """Read and prepare those of ``images`` that the model knows; one with a single value is not among them.

        Raises:
            DataError: none of the images is of a known sequence, or none can be used.
        """
        from medmae.data.inference import load_case

        known = {sequence: path for sequence, path in images.items() if sequence in self.sequences}
        if not known:
            raise DataError(
                f"{name}: it has {', '.join(images) or 'no images'}, and the model knows {', '.join(self.sequences)}"
            )
        case = load_case(known, self.preprocess, mask=mask)
        if not case.images:
            raise DataError(f"{name}: none of its images can be used ({'; '.join(case.odd.values())})")
        return case

    def predict(self, case: InferenceCase) -> dict[str, np.ndarray]:
        """What the model says of one case: by name, without a batch axis.

        The raw numbers of the windows that cover the foreground are averaged, then read.
        """
        import torch

        from medmae.transfer.windows import over_windows

        device = next(self.method.parameters()).device

        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            raw = over_windows(
                lambda batch: self.method.answer(batch).float(),
                {sequence: torch.from_numpy(image) for sequence, image in case.images.items()},
                torch.from_numpy(case.foreground),
                names=self.sequences,
                size=self.method.backbone.tokenizer.grid.size,
                spacing=case.spacing,
                device=device,
                batch_size=self.batch,
            )
            found = self.method.objective.read(raw[None].to(device))
        return {key: value[0].double().cpu().numpy() for key, value in found.items()}

    def columns(self) -> list[str]:
        """Names of the numbers of :meth:`values`."""
        if self.task["kind"] == "classify":
            return ["prediction", *(f"probability_{name}" for name in self.task["classes"])]
        if self.task["kind"] == "regress":
            return ["value"]
        edges = getattr(self.method.objective, "edges", None)
        if edges is None:
            return ["risk"]
        return ["risk", "expected", *(f"survival_{edge:g}" for edge in edges.tolist())]

    def values(self, found: Mapping[str, np.ndarray]) -> list[object]:
        """A prediction as the cells of a table."""
        if self.task["kind"] == "classify":
            probability = found["probability"].tolist()
            return [self.task["classes"][int(found["probability"].argmax())], *probability]
        if self.task["kind"] == "regress":
            return [float(found["value"])]
        survival = found["survival"].tolist() if "survival" in found else []
        return [float(found[name]) for name in ("risk", "expected") if name in found] + survival


def open_task(
    checkpoint: Path, *, kind: str | None = None, device: str = "auto", batch: int = 1, precision: str = "fp32"
) -> TaskModel:
    """Load the folder of a fine-tuned model.

    Raises:
        CheckpointError: it is none, or one for another task.
        UsageError: options that cannot be meant.
    """
    from medmae.checkpoint import WEIGHTS, file_hash, model_folder
    from medmae.transfer.task_folder import load_task

    from .completion import pick_device

    if batch < 1:
        raise UsageError("--batch must be at least 1")
    if precision not in PRECISIONS:
        raise UsageError(f"--precision must be {' or '.join(PRECISIONS)}, not {precision!r}")
    loaded = load_task(checkpoint, kind=kind)
    loaded.method.to(pick_device(device))
    return TaskModel(loaded, f"sha256:{file_hash(model_folder(checkpoint) / WEIGHTS)}", batch, precision)


def usable(cases: Sequence[Any], model: TaskModel, *, where: str) -> list[Any]:
    """The cases that have a sequence of the model; the others are said.

    Raises:
        DataError: there is none.
    """
    found = [case for case in cases if set(case.images) & set(model.sequences)]
    if not found:
        raise DataError(f"no case {where} has any of the model's sequences ({', '.join(model.sequences)})")
    if lacking := len(cases) - len(found):
        say(f"{lacking} case(s) left aside: without any of {', '.join(model.sequences)}", style="yellow")
    return found
