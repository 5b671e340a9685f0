"""Work in processes that may die: the culprit is named, the rest goes on, nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from medmae.data.workers import each


def square(number: int) -> int:
    if number == 2:
        os._exit(9)  # as a crash in an image library does
    if number == 3:
        raise ValueError("planted")
    return number * number


def test_in_this_process_errors_are_outcomes():
    found = {job[0]: outcome for job, outcome in each(square, [(1,), (3,), (4,)], workers=0)}
    assert found[1].value == 1
    assert found[4].value == 16
    assert isinstance(found[3].error, ValueError)


@pytest.mark.slow
def test_a_killed_worker_is_blamed_on_its_job_and_the_rest_goes_on():
    found = {job[0]: outcome for job, outcome in each(square, [(i,) for i in range(6)], workers=2)}
    assert {i for i, outcome in found.items() if outcome.died} == {2}
    assert {i: o.value for i, o in found.items() if o.value is not None} == {0: 0, 1: 1, 4: 16, 5: 25}
    assert isinstance(found[3].error, ValueError)


ENDLESS = """
import os, sys, time
sys.path.insert(0, {folder!r})
from endless import forever
from medmae.data.workers import each
if __name__ == "__main__":
    list(each(forever, [({folder!r}, i) for i in range(2)], workers=2))
"""


@pytest.mark.slow
def test_workers_end_when_the_main_process_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text(
        "import os, time\n"
        "def forever(folder, i):\n"
        "    open(f'{folder}/{os.getpid()}.pid', 'w').close()\n"
        "    time.sleep(600)\n"
    )
    script = tmp_path / "main.py"
    script.write_text(ENDLESS.format(folder=str(tmp_path)))
    main = subprocess.Popen([sys.executable, str(script)])
    try:
        assert _until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, seconds=60)
    finally:
        main.send_signal(signal.SIGKILL)
        main.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert _until(lambda: not any(_alive(pid) for pid in workers), seconds=30)


def _until(true, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(true())


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
