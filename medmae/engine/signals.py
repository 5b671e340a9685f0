"""Signals become a wish that the loop reads at step boundaries, where stopping is safe.

SIGTERM and SIGUSR1 are what schedulers send before they take the machine away: checkpoint, then exit code 75 so that a
job script can queue itself again. torchrun passes SIGTERM on, waits 30 seconds for the checkpoint, and exits with its
own code 1: a job script for several processes looks for ``DONE`` instead of 75.

The first Ctrl-C asks for a checkpoint, the second stops at once. Workers that read data are started while the handlers
are in place and inherit them, so a signal to the whole group does not end them in the middle of a step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from medmae.core.errors import Requeue

GO_ON, REQUEUE, INTERRUPT = 0, 1, 2


class Signals:
    """``with Signals() as signals:`` and read ``signals.wish``; the earlier handlers come back at the end.

    Outside the main thread nothing is installed (Python forbids it), and the wish stays ``GO_ON``.
    """

    def __init__(self) -> None:
        """Nothing is installed yet."""
        self.wish = GO_ON
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.wish == INTERRUPT:
            raise KeyboardInterrupt
        self.wish = INTERRUPT if number == signal.SIGINT else max(self.wish, REQUEUE)


def stop(wish: int, *, step: int, total: int, say: Callable[[str], None]) -> NoReturn:
    """Leave a training whose checkpoint is complete: :class:`Requeue`, or ``KeyboardInterrupt`` after Ctrl-C."""
    told = f"Stopped after step {step} of {total}; the checkpoint is complete. Go on with --resume."
    say(told)
    if wish == INTERRUPT:
        raise KeyboardInterrupt(told)
    raise Requeue(told)
