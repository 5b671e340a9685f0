"""What every test has in common.

Shapes are checked while the tests run: every module of the rooms below is imported through jaxtyping's hook, which
checks each annotated argument, result and dataclass field with beartype. The rooms are named one by one because modules
that must import without torch may name types that only exist for the type checker.
"""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest
import torch

CHECKED_ROOMS = (
    "medmae.core",
    "medmae.nets",
    "medmae.volume",
    "medmae.image",
    "medmae.video",
    "medmae.points",
    "medmae.audio",
    "medmae.data",
    "medmae.engine",
    "medmae.evaluate",
    "medmae.transfer",
    "medmae.convert",
    "medmae.report",
)

_hook = jaxtyping.install_import_hook(CHECKED_ROOMS, "beartype.beartype")

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_random_state() -> None:
    """Start every test from the same generator state, so that the order of the tests does not matter."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, from ``MEDMAE_REAL_DATA``; the test is skipped where there is none."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("MEDMAE_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDMAE_REAL_DATA")
    return folder.resolve()
