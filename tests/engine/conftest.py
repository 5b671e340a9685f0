"""Lets the engine's tests import the toy, and start it in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def launch() -> Callable[..., subprocess.Popen[str]]:
    """``launch("-m", "torch.distributed.run", ...)``: a Python process that finds medmae and the toy."""

    def start(*arguments: Any) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    return start
