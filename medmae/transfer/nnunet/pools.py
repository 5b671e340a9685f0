"""How many processes nnU-Net may use, and none at all where that is wanted.

nnU-Net prepares, validates and exports in pools of spawned processes. Each of them imports torch anew (seconds, a
gigabyte), and each runs the caller's script again up to its ``__main__`` guard, so a script without one hangs. With
``workers=0`` nnU-Net's pools are threads of this process instead: right for notebooks, small data and tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any

_POOLED = (
    "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor",
    "nnunetv2.training.dataloading.utils",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.inference.predict_from_raw_data",
)
_AUGMENT, _PROCESSES = "nnUNet_n_proc_DA", "nnUNet_def_n_proc"


@contextmanager
def workers(count: int, *, augment: int | None = None) -> Iterator[None]:
    """Let nnU-Net use ``count`` processes while the block runs.

    Args:
        count: processes for preparing, validating and exporting; 0 works in threads of this process.
        augment: processes that draw training batches. None: as ``count``. Planning must not be told 0.
    """
    before = {name: os.environ.get(name) for name in (_AUGMENT, _PROCESSES)}
    os.environ[_PROCESSES] = str(max(1, count))
    os.environ[_AUGMENT] = str(count if augment is None else augment)
    numbers = [(module, vars(module)["default_num_processes"]) for module in _imported("default_num_processes")]
    for module, _ in numbers:
        module.default_num_processes = max(1, count)  # copied by name when they were imported
    pooled = _in_threads() if count == 0 else []
    try:
        yield
    finally:
        for module, real in pooled:
            module.multiprocessing = real
        for module, number in numbers:
            module.default_num_processes = number
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _imported(attribute: str) -> list[Any]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "nnunetv2" and attribute in vars(module)
    ]


def _in_threads() -> list[tuple[Any, Any]]:
    """Give nnU-Net's modules pools of one thread; returns what has to be put back."""
    import importlib
    import multiprocessing

    context = SimpleNamespace(Pool=lambda *_: ThreadPool(1), Manager=multiprocessing.Manager)
    stand_in = SimpleNamespace(
        get_context=lambda *_: context,
        TimeoutError=multiprocessing.TimeoutError,
        Pool=context.Pool,
        cpu_count=lambda: 1,
    )
    replaced = []
    for name in _POOLED:
        module: Any = importlib.import_module(name)
        replaced.append((module, module.multiprocessing))
        module.multiprocessing = stand_in
    return replaced
