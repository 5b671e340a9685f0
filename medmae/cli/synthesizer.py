"""A synthesis model, or several of them, as ``predict`` and ``evaluate`` see it.

It looks like a pre-trained model that completes cases, so what is measured, written and told about the two is one code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, UsageError

from .completion import explained
from .task_model import TaskModel, open_task

if TYPE_CHECKING:
    import numpy as np

KIND = "synthesize"


@dataclass(frozen=True)
class Synthesizer:
    """Models made ready to synthesize; with several, their mean.

    Attributes:
        members: the models, of the same sequences and preprocessing.
        overlap: share of a window that the next one covers again, per axis.
    """

    members: tuple[TaskModel, ...]
    overlap: float

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences they know."""
        return self.members[0].sequences

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the first one's folder, with the task for a method."""
        return {**self.members[0].loaded.config, "method": KIND}

    @property
    def data(self) -> Mapping[str, Any]:
        """What the first one remembers of its training data."""
        return self.members[0].loaded.data

    @property
    def seen(self) -> tuple[Mapping[str, Any], ...]:
        """Whom they were trained on: pre-training counts, where the targets themselves were seen."""
        pretrained = [(member.task.get("pretrained") or {}).get("data") or {} for member in self.members]
        return (*(member.loaded.data for member in self.members), *(data for data in pretrained if data))

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """How a case is brought to their grid and scale."""
        return self.members[0].preprocess

    @property
    def weights(self) -> str:
        """SHA-256 of the weights."""
        return "+".join(member.weights.removeprefix("sha256:") for member in self.members)

    @property
    def precision(self) -> str:
        """ "fp32" or "bf16"."""
        return self.members[0].precision

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
        given = {name: image for name, image in images.items() if name in self.sequences and name not in targets}
        found = [self._volumes(member, given, foreground, spacing, batch=member.batch) for member in self.members]
        mean = sum(found[1:], found[0]) / len(found)
        return {name: mean[self.sequences.index(name)] for name in targets}

    def spread(
        self,
        images: Mapping[str, np.ndarray],
        foreground: np.ndarray,
        *,
        spacing: Sequence[float],
        targets: Sequence[str],
        passes: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Mean and standard deviation of the targets over ``passes`` with dropout through each of the models.

        A pass drops the same channels in all windows of a volume, as one network would that lacks them.

        Raises:
            UsageError: one model without dropout, or a single pass: there is no deviation.
        """
        import numpy as np
        import torch

        self.check_passes(passes)
        given = {name: image for name, image in images.items() if name in self.sequences and name not in targets}
        rows = [self.sequences.index(name) for name in targets]
        found: list[np.ndarray] = []
        with torch.random.fork_rng():
            for member in self.members:
                with _dropping(member):
                    for seed in range(passes):
                        one = self._volumes(member, given, foreground, spacing, batch=1, seed=seed)
                        found.append(one[rows])
        mean, deviation = np.mean(found, 0), np.std(found, 0, ddof=1)
        return (
            {name: mean[i].astype(np.float32) for i, name in enumerate(targets)},
            {name: deviation[i].astype(np.float32) for i, name in enumerate(targets)},
        )

    def check_passes(self, passes: int) -> None:
        """Raises UsageError where so many passes give no deviation."""
        rates = [_rate(member) for member in self.members]
        if passes < 1 or passes * len(self.members) < 2:
            raise UsageError(f"--uncertainty {passes}: a deviation needs two passes at least; 10 or more are better")
        if passes > 1 and not all(rates):
            raise UsageError(
                "--uncertainty needs a model with dropout, and this one has none: all passes would be the same. "
                "Fine-tune with --dropout 0.1, or give several --checkpoint and --uncertainty 1"
            )

    def _volumes(
        self,
        member: TaskModel,
        given: Mapping[str, np.ndarray],
        foreground: np.ndarray,
        spacing: Sequence[float],
        *,
        batch: int,
        seed: int | None = None,
    ) -> np.ndarray:
        import torch

        from medmae.transfer.dense_windows import dense_over_windows

        method = member.method
        device = next(method.parameters()).device

        def run(windows: Any) -> Any:
            if seed is not None:
                torch.manual_seed(seed)
            return method.predict(windows)["volumes"]

        with explained(batch), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = dense_over_windows(
                run,
                {name: torch.from_numpy(image) for name, image in given.items()},
                torch.from_numpy(foreground),
                names=self.sequences,
                size=method.backbone.tokenizer.grid.size,
                spacing=spacing,
                device=device,
                batch_size=batch,
                overlap=self.overlap,
            )
        return found.numpy()


def open_synthesizer(
    checkpoints: Sequence[Path],
    *,
    device: str = "auto",
    overlap: float = 0.5,
    batch: int = 1,
    precision: str = "fp32",
) -> Synthesizer:
    """Load the folders of synthesis models.

    Raises:
        CheckpointError: one is none, or they do not belong together.
        UsageError: options that cannot be meant.
    """
    return synthesizer_of(
        [open_task(path, kind=KIND, device=device, batch=batch, precision=precision) for path in checkpoints],
        overlap=overlap,
    )


def synthesizer_of(members: Sequence[TaskModel], *, overlap: float = 0.5) -> Synthesizer:
    """Models that were opened already, as one.

    Raises:
        CheckpointError: one is fine-tuned to something else, or they do not belong together.
        UsageError: an overlap that cannot be meant.
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"--overlap must be at least 0 and below 1, not {overlap}")
    for member in members:
        if member.task.get("kind") != KIND:
            raise CheckpointError(f"the model is fine-tuned to {member.task.get('kind')}; it cannot {KIND}")
        if member.sequences != members[0].sequences or member.preprocess != members[0].preprocess:
            raise CheckpointError("the models of an ensemble must know the same sequences, prepared in the same way")
    return Synthesizer(tuple(members), overlap)


def _rate(member: TaskModel) -> float:
    return float(member.task["recipe"]["head"].get("dropout") or 0)


@contextmanager
def _dropping(member: TaskModel) -> Iterator[None]:
    """Dropout of the head, and of nothing else, works as in training."""
    from torch import nn

    layers = [m for m in member.method.head.modules() if isinstance(m, nn.Dropout | nn.Dropout3d)]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
