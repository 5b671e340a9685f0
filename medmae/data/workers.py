"""Work on many files in processes that may die.

A crash inside a C library, or the kernel reclaiming memory, breaks a whole process pool and every job in it. Here the
jobs that were under way are then tried one at a time in a process of their own: the culprit is known by name, the rest
goes on. Workers come from a clean server process, because forking one in which torch already runs threads can hang,
and they end with the process that started them, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of one job: its ``value``, or the ``error`` it raised, or ``died`` with its process."""

    value: Any = None
    error: Exception | None = None
    died: bool = False


def each(
    work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], *, workers: int, preload: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Outcome]]:
    """(job, outcome) of ``work(*job)`` for every job, in the order of completion; ``workers=0`` works in this process.

    ``work`` and the jobs must be picklable. Jobs are handed out two per worker at a time, so that few are suspected
    when a process dies. ``preload``: modules that the server imports once for all workers.
    """
    if workers <= 0:
        yield from ((job, _here(work, job)) for job in jobs)
        return
    waiting = deque(jobs)
    while waiting:
        under_way: dict[Future[Any], tuple[Any, ...]] = {}
        pool = _pool(min(workers, len(waiting)), preload)
        try:
            while waiting or under_way:
                while waiting and len(under_way) < 2 * workers:
                    under_way[pool.submit(work, *waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    outcome = _outcome(future)
                    yield under_way.pop(future), outcome
        except BrokenProcessPool:
            pool.shutdown(wait=True, cancel_futures=True)
            for future, job in under_way.items():
                ended = (
                    future.done() and not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool)
                )
                yield job, _outcome(future) if ended else _alone(work, job, preload)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _here(work: Callable[..., Any], job: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(work(*job))
    except Exception as error:  # noqa: BLE001 - handed to the caller, who knows the job
        return Outcome(error=error)


def _outcome(future: Future[Any]) -> Outcome:
    try:
        return Outcome(future.result())
    except BrokenProcessPool:
        raise
    except Exception as error:  # noqa: BLE001 - handed to the caller, who knows the job
        return Outcome(error=error)


def _alone(work: Callable[..., Any], job: tuple[Any, ...], preload: tuple[str, ...]) -> Outcome:
    """The outcome of one suspect in a process of its own."""
    pool = _pool(1, preload)
    try:
        return _outcome(pool.submit(work, *job))
    except BrokenProcessPool:
        return Outcome(died=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int, preload: tuple[str, ...]) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return ProcessPoolExecutor(max_workers=workers, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """In a worker: stop at once when the main process is killed, rather than wait for work that never comes."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch(sentinel: int = parent.sentinel) -> None:
            wait_for_any([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
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
