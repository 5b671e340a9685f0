"""A process that measures one configuration, a word at a time.

Every configuration runs in a process of its own, because allocators are chosen when a process starts; the processes are
driven in turns, so that whatever else the machine does falls on all of them alike. A word on standard input is answered
by one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Worker:
    """A configuration at work.

    Args:
        setup: the configuration, handed on by whoever asks for the worker.
        command: arguments behind the Python interpreter.
        threads: of OpenMP.
        variables: further environment; allocator settings of the caller's shell are never passed on.
    """

    def __init__(
        self, setup: Any, command: Sequence[str], *, threads: int, variables: Mapping[str, str] | None = None
    ) -> None:
        ours = ("GLIBC_TUNABLES", "LD_PRELOAD")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ours}
        clean |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self.setup = setup
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=clean | dict(variables or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, word: str = "step") -> dict[str, float]:
        """What the worker measures for a word."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError(f"the worker of {self.setup} ended with exit code {self.process.wait()}; its error is above")
