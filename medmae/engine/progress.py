"""The bar of a running training: step, loss, throughput, time left. Silent where nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """A rich progress bar on stderr; does nothing when ``show`` is False or stderr is not a terminal."""

    def __init__(self, *, total: int, done: int = 0, show: bool = True) -> None:
        """``total`` optimizer steps, of which ``done`` are behind us."""
        self._bar: Any = None
        self._total, self._done = total, done
        self._show = show and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        """Draw the bar."""
        if self._show:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[words]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("pretrain", total=self._total, completed=self._done, words="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int) -> None:
        """Move to ``done`` optimizer steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def words(self, *, loss: float, rate: float) -> None:
        """Show the latest loss and the throughput in samples per second."""
        if self._bar is not None:
            self._bar.update(self._task, words=f"loss {loss:.4f}  {rate:.1f} samples/s")
