"""A fine-tuned model that answers for every voxel, as the commands see it.

Files are read and prepared once; what the model is shown of them is chosen afterwards, so that every subset of a case's
sequences costs a forward pass and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, DataError, UsageError

from .task_model import TaskModel, open_task

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from medmae.data.inference import InferenceCase
    from medmae.transfer.label_map import LabelMap

OVERLAP = 0.5


@dataclass(frozen=True)
class Segmenter:
    """A segmentation model made ready to predict.

    Attributes:
        model: with its weights, on its device.
        meaning: of its outputs.
        overlap: share of a window that the next one covers again, per axis.
    """

    model: TaskModel
    meaning: LabelMap
    overlap: float = OVERLAP

    @classmethod
    def of(cls, model: TaskModel, *, overlap: float = OVERLAP) -> Segmenter:
        """From a model that :func:`open_task` opened.

        Raises:
            CheckpointError: it is fine-tuned to something else, or does not say what its outputs mean.
            UsageError: an overlap that cannot be meant.
        """
        from medmae.transfer.label_map import LabelMap

        if model.task.get("kind") != "segment":
            raise CheckpointError(f"the model is fine-tuned to {model.task.get('kind')}; it cannot segment")
        if not 0 <= overlap < 1:
            raise UsageError(f"--overlap must be at least 0 and below 1, not {overlap}")
        return cls(model, LabelMap.from_json(model.task.get("label") or {}), overlap)

    @property
    def tied(self) -> tuple[str, ...] | None:
        """The only subset of the sequences that the model can be shown; None where any will do."""
        found = self.model.task["recipe"]["head"].get("sequences")
        return None if found is None else tuple(found)

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences it knows."""
        return self.model.sequences if self.tied is None else self.tied

    def load(self, images: Mapping[str, Path], *, mask: Path | None, name: str) -> InferenceCase:
        """Read and prepare those of ``images`` that the model knows.

        Raises:
            DataError: none is of a known sequence, or none can be used, or the model needs others as well.
        """
        from medmae.data.inference import load_case

        known = {sequence: path for sequence, path in images.items() if sequence in self.sequences}
        if not known:
            raise DataError(
                f"{name}: it has {', '.join(images) or 'no images'}, and the model knows {', '.join(self.sequences)}"
            )
        if self.tied is not None and (lacking := [sequence for sequence in self.tied if sequence not in known]):
            raise DataError(
                f"{name}: it lacks {', '.join(lacking)}, and this model was made for {' + '.join(self.tied)} and "
                "nothing less (--preset published). Fine-tune without the preset for a model of every subset"
            )
        case = load_case(known, self.model.preprocess, mask=mask)
        if not case.images:
            raise DataError(f"{name}: none of its images can be used ({'; '.join(case.odd.values())})")
        return case

    def probability(self, case: InferenceCase, *, given: Sequence[str] | None = None) -> Tensor:
        """Probability of every name for every voxel of the model's grid, [names x y z], float32 on the CPU.

        The raw scores of overlapping windows are blended, then read.

        Args:
            case: of :meth:`load`.
            given: sequences that are shown; None is all there are.

        Raises:
            DataError: a sequence that the case does not have.
        """
        import torch

        from medmae.transfer.dense_windows import dense_over_windows

        shown = tuple(case.images) if given is None else tuple(given)
        if lacking := [name for name in shown if name not in case.images]:
            raise DataError(f"{', '.join(lacking)} cannot be shown: {'; '.join(case.odd.values()) or 'not given'}")
        method, precision = self.model.method, self.model.precision
        device = next(method.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            raw = dense_over_windows(
                method.answer,
                {name: torch.from_numpy(case.images[name]) for name in shown},
                torch.from_numpy(case.foreground),
                names=self.model.sequences,
                size=method.backbone.tokenizer.grid.size,
                spacing=case.spacing,
                device=device,
                batch_size=self.model.batch,
                overlap=self.overlap,
            )
            return method.objective.read(raw[None])["probability"][0]

    def labels(self, probability: Tensor, case: InferenceCase) -> np.ndarray:
        """Class values on the grid of the case's input (nearest); 0 outside the model's grid."""
        import numpy as np

        from medmae.data.inference import to_input_grid

        painted = self.meaning.painted(probability).numpy()
        kind: type[np.generic] = np.uint8 if max(self.meaning.paint) <= 255 else np.int16
        return to_input_grid(painted.astype(kind), case, order=0).astype(kind)

    def maps(self, probability: Tensor, case: InferenceCase) -> dict[str, np.ndarray]:
        """Probabilities on the grid of the case's input (linear), by name; 0 outside the model's grid."""
        from medmae.data.inference import to_input_grid

        pairs = zip(self.meaning.names, probability, strict=True)
        return {name: to_input_grid(part.numpy(), case, order=1).astype("float32") for name, part in pairs}


def open_segmenter(
    checkpoint: Path, *, device: str = "auto", batch: int = 4, precision: str = "fp32", overlap: float = OVERLAP
) -> Segmenter:
    """Load the folder of a segmentation model.

    Raises:
        CheckpointError: it is none.
        UsageError: options that cannot be meant.
    """
    return Segmenter.of(
        open_task(checkpoint, kind="segment", device=device, batch=batch, precision=precision), overlap=overlap
    )


def is_task_folder(path: Path) -> bool:
    """Whether this is a model folder of medmae (or of one of its runs), whatever it was trained to."""
    return (path / "config.json").is_file() or (path / "model" / "config.json").is_file()


def write_labels(path: Path, labels: np.ndarray, case: Any) -> None:
    """A label map on the grid of the case's input, whole or not at all."""
    from medmae.data.nifti import write_like

    path.parent.mkdir(parents=True, exist_ok=True)
    write_like(path, labels, case.header, dtype=labels.dtype, description="medmae: research only")
