"""What the caller hands to the loop: how to talk, how to save a model, how to draw. The loop knows no format."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

Say = Callable[[str], None]
SaveModel = Callable[[Path, nn.Module, dict[str, Any]], None]
OnPicture = Callable[[int, nn.Module], None]
OnProbe = Callable[[int, nn.Module], dict[str, float]]
OnEnd = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """What a run came to: steps done, the lowest validation loss (None without validation), and the folder."""

    steps: int
    best: float | None
    folder: Path


def careful(action: Callable[[], object], *, what: str, say: Say, note: Say) -> None:
    """Do something that is not worth a training: when it fails, warn, put the traceback in ``note``, and go on."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever it is, the weights matter more
        note(traceback.format_exc())
        say(f"Warning: {what} failed ({type(error).__name__}: {error}); see log.txt.")


def draw(on_picture: OnPicture, *, step: int, method: nn.Module, say: Say, note: Say, what: str = "pictures") -> None:
    """Call ``on_picture(step, method)`` in evaluation mode, carefully."""
    training = method.training
    method.eval()
    try:
        careful(lambda: on_picture(step, method), what=f"the {what} of step {step}", say=say, note=note)
    finally:
        method.train(training)
