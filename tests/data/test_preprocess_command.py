"""``medmae data preprocess``: what it says, and that it can be stopped at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from volumes import make_case, write

from medmae.cli import main
from medmae.data.cache import status

SPEC = """\
medmae: 1
name: toy
root: images
pattern: "{case}/{seq}.nii.gz"
sequences: [t1n, t2w]
"""


def cohort(folder: Path, *, cases: int, shape: tuple[int, int, int] = (24, 26, 20)) -> Path:
    for i in range(cases):
        make_case(folder / "images", f"c{i:02d}", shape=shape, seed=10 * i)
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def test_talk_and_notes_are_silent_under_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = cohort(tmp_path, cases=2)
    write(tmp_path / "images" / "c01" / "t2w.nii.gz", np.zeros((24, 26, 20), np.int16))
    cache = ["--cache", str(tmp_path / "cache")]
    verbs = (["preprocess", "--data", str(spec), *cache], ["cache", "status", *cache], ["cache", "clear", *cache])
    said = []
    for verb in verbs:
        assert main(["data", *verb]) == 0
        said.append(capsys.readouterr().err)
        if verb[-3] == "status":
            assert "2 prepared cases" in said[-1]
    assert "1 image(s) with one value only: taken as missing (c01)" in said[0]
    assert all(said)
    for verb in verbs:
        assert main(["data", *verb, "--quiet"]) == 0
        assert capsys.readouterr().err == ""


def test_a_foreign_hidden_folder_is_left_alone(tmp_path: Path) -> None:
    spec = cohort(tmp_path, cases=1)
    mine, left = tmp_path / "cache" / ".git", tmp_path / "cache" / ".0123abcd-x_1"
    mine.mkdir(parents=True)
    left.mkdir()
    assert main(["data", "preprocess", "--data", str(spec), "--cache", str(tmp_path / "cache"), "--quiet"]) == 0
    assert mine.exists()
    assert not left.exists()
    left.mkdir()
    assert main(["data", "cache", "clear", "--cache", str(tmp_path / "cache"), "--quiet"]) == 0
    assert mine.exists()
    assert not left.exists()


def _children(pid: int) -> list[int]:
    """Every process below ``pid``, as the system lists them."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found: list[int] = []
    for _ in range(4):
        found += [child for child, parent in pairs if parent in (pid, *found) and child not in found]
    return found


def _alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _until(ready: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopped_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Interrupted, killed, a worker killed: what is there is whole, nothing runs on, and the next run completes."""
    spec = cohort(tmp_path, cases=24, shape=(96, 96, 80))

    def start(cache: Path) -> subprocess.Popen[bytes]:
        line = ["data", "preprocess", "--data", spec, "--cache", cache, "--workers", 2]
        return subprocess.Popen(
            [sys.executable, "-m", "medmae", *map(str, line)],
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Whoever runs tests in the background of a shell hands on that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def entries(cache: Path) -> list[Path]:
        return [path for path in cache.glob("*") if path.is_dir() and not path.name.startswith(".")]

    for how in ("interrupt", "kill", "worker"):
        cache = tmp_path / how
        process = start(cache)
        _until(lambda cache=cache: len(entries(cache)) >= 2)
        below = _children(process.pid)
        assert below
        if how == "interrupt":
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: every process of the terminal gets it
        else:
            os.kill(process.pid if how == "kill" else max(below), signal.SIGKILL)
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == {"interrupt": 130, "kill": -signal.SIGKILL, "worker": 0}[how], said
        if how == "interrupt":
            assert said.strip().endswith("medmae: interrupted")
            assert "This is a bug" not in said
            assert not [path for path in cache.glob(".*") if path.is_dir()]
        _until(lambda below=below: not any(map(_alive, below)))
        there = entries(cache)
        found = status(cache)
        assert (found["entries"], found["damaged"]) == (len(there), 0)
        assert how == "worker" or len(there) < 24
        stamps = {path: path.stat().st_mtime_ns for path in there}
        process = start(cache)
        assert b"24 of 24 cases ready" in process.communicate(timeout=100)[1]
        assert process.returncode == 0
        assert {path: path.stat().st_mtime_ns for path in there} == stamps
        assert (status(cache)["entries"], status(cache)["damaged"]) == (24, 0)
        assert not [path for path in cache.glob(".*") if path.is_dir()]
