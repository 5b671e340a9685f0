"""A method and a source that are small enough to reason about, with the interfaces of the real ones."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmae.core.method import Method
from medmae.core.random import mix, uniform
from medmae.engine.settings import TrainSettings
from medmae.engine.source import Batch


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


class Toy(Method):
    """Predicts the sum of its input; ``dropout`` uses torch's generator on purpose."""

    sequences = ("a",)

    def __init__(self, *, width: int = 8, dropout: float = 0.0, poison: int = -1) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.token = nn.Parameter(torch.zeros(1, width))
        self.table = nn.Embedding(3, width)
        self.body = nn.ModuleList(Block(width) for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.unused = nn.Linear(2, 2)  # like the tokenizer of a sequence that nobody in the batch has
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.poison = poison
        self.epochs: list[int] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = (
            self.inner(batch["a"])
            + self.token
            + self.table(torch.zeros(1, dtype=torch.int64, device=batch["a"].device))
        )
        for block in self.body:
            x = self.drop(block(x))
        guess = self.head(x)[:, 0]
        error = (guess - batch["a"].sum(1)).square().mean()
        if self.poison >= 0 and self.training and int(self.steps) == self.poison:
            error = error * float("nan")
        return {"fit": error, "size": 1e-3 * guess.square().mean()}

    def after_step(self) -> None:
        self.steps += 1

    def after_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class ToySource:
    """Samples are functions of the seed and the ordinal."""

    sequences = ("a",)

    def __init__(self, *, size: int = 10, validation: int = 5, pause: float = 0.0) -> None:
        self.size, self.validation_size, self.pause = size, validation, pause

    def _samples(self, ordinals: range, seed: int) -> Batch:
        key = torch.tensor([mix(seed, o) for o in ordinals], dtype=torch.int64)
        return {"a": uniform(key, 4, stream=1), "key": key}

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[Batch]:
        while True:
            first = (start * world + rank) * batch
            time.sleep(self.pause)
            yield self._samples(range(first, first + batch), seed)
            start += 1

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[Batch]:
        mine = range(rank, self.validation_size, world)
        for first in range(0, len(mine), batch):
            yield self._samples(mine[first : first + batch], seed + 1)

    def finish(self, batch: Batch, *, device: torch.device, training: bool) -> Batch:
        return {k: v.to(device) for k, v in batch.items()}

    def describe(self) -> dict[str, Any]:
        return {"sequences": ["a"], "size": self.size}


def make_toy(**options: Any) -> Toy:
    torch.manual_seed(0)
    return Toy(**options)


def save_toy(path: Path, method: nn.Module, about: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    torch.save(method.state_dict(), path / "weights.pt")
    (path / "about.json").write_text(json.dumps(about))


def train_toy(
    folder: Path, *, method: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **more: Any
) -> tuple[Any, Toy]:
    """Run the engine on the toy; ``train=`` are settings, the rest goes to ``pretrain``."""
    from medmae.engine.trainer import pretrain

    toy = make_toy(**(method or {}))
    settings = TrainSettings(**({"steps": 12, "batch": 2, "device": "cpu", "lr": 0.01} | more.pop("train", {})))
    options = {
        "recipe": {"method": {"name": "toy", **(method or {})}},
        "save_model": save_toy,
        "say": lambda text: None,
    }
    result = pretrain(toy, ToySource(**(source or {})), settings, folder=folder, **(options | more))
    return result, toy


if __name__ == "__main__":  # for the tests that kill it: toy.py FOLDER '{"train": {...}, "resume": true}'
    torch.set_num_threads(1)
    from medmae.core.errors import MedmaeError
    from medmae.engine.distributed import leave

    try:
        train_toy(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    except MedmaeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    leave()
