"""Running many preparations at once, with a progress bar, surviving a worker that dies.

Workers are started from a clean server process: image libraries can crash on odd files, and forking a process in
which PyTorch already runs threads can hang. When a worker dies its pool is lost; the jobs not yet done are then run
one by one, each in a process of its own, so that the file to blame is named and all other cases are still prepared.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

Job = tuple[Any, ...]
Outcome = tuple[str, str]


def build_missing(
    work: Callable[..., Outcome], jobs: Sequence[Job], *, workers: int, quiet: bool, preload: tuple[str, ...] = ()
) -> Iterator[tuple[Job, Outcome]]:
    """Run ``work(*job)`` for every job; yields (job, outcome) as they finish. A dead worker's outcome is "bad".

    ``preload``: modules that the server imports once for all workers.
    """
    if not jobs:
        return
    with progress("preparing", len(jobs), quiet=quiet) as advance:
        if workers <= 1 or len(jobs) == 1:
            for job in jobs:
                outcome = work(*job)
                advance()
                yield job, outcome
            return
        left = dict(enumerate(jobs))
        for number, outcome in _pooled(work, left, min(workers, len(jobs)), preload):
            advance()
            yield left.pop(number), outcome
        for number, job in left.items():  # only after a crash
            results = list(_pooled(work, {number: job}, 1, preload))
            advance()
            yield (
                job,
                results[0][1] if results else ("bad", "the process reading it was killed (a damaged file, or memory)"),
            )


def _pooled(
    work: Callable[..., Outcome], jobs: dict[int, Job], workers: int, preload: tuple[str, ...]
) -> Iterator[tuple[int, Outcome]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(work, *job): number for number, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def progress(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, silent when that is not a terminal or there is little to do."""
    if quiet or total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
