"""What the command line says, and how loudly.

Talk goes to standard error and results to standard output, so that ``medmae ... --json | jq`` works. The flags hold for
every verb and may stand anywhere on the line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Flags:
    """The global flags."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    debug: bool = False


_flags = Flags()


def set_flags(flags: Flags) -> None:
    """Set by the command line once, before a verb runs."""
    global _flags
    _flags = flags


def flags() -> Flags:
    """The global flags of this call."""
    return _flags


def main_process() -> bool:
    """Whether this process may talk: true outside torchrun, and for its rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


@lru_cache(maxsize=1)
def console() -> Console:
    """The console for talk (standard error); silent under ``--quiet`` and on other ranks than 0."""
    from rich.console import Console

    return Console(stderr=True, quiet=_flags.quiet or not main_process(), highlight=False, soft_wrap=True)


def say(text: str, *, style: str | None = None) -> None:
    """Say a line of plain text; markup in it (a file name with brackets) is not interpreted."""
    console().print(text, style=style, markup=False)


def detail(text: str) -> None:
    """Say a line under ``--verbose`` only."""
    if _flags.verbose:
        say(text, style="dim")


def emit(text: str) -> None:
    """Write a result to standard output."""
    if main_process():
        print(text)


def emit_json(value: Any) -> None:
    """Write a result to standard output as JSON."""
    if main_process():
        json.dump(value, sys.stdout, indent=2, default=str)
        sys.stdout.write("\n")


@contextmanager
def chatter_aside(*, show: bool = True) -> Iterator[None]:
    """Keep what a library prints off standard output, which is for results.

    It goes to standard error where it is a log to follow (``show``) or under ``--verbose``; otherwise, and under
    ``--quiet``, nowhere.
    """
    with ExitStack() as stack:
        shown = (show or _flags.verbose) and not _flags.quiet
        aside = sys.stderr if shown else stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(aside))
        yield
