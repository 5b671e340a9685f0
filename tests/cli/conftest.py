"""Fixtures of the command line's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from medmae.checkpoint import load_model
from medmae.core.tokens import take

sys.path.insert(0, str(Path(__file__).parent))

from copiers import blob, save, save_copier


@pytest.fixture(autouse=True)
def _load_copiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the answer of models that are marked as copiers."""

    def load(folder: Path, **options: object):
        loaded = load_model(folder, **options)
        if (loaded.config.get("data") or {}).get("copier"):
            n, first = loaded.method.tokenizer.grid.length, loaded.method.sequences.index("t1n")
            loaded.method.guess = lambda tokens, plan: take(tokens.content, plan.target % n + first * n)
        return loaded

    monkeypatch.setattr("medmae.checkpoint.load_model", load)


@pytest.fixture(scope="session")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    statistics = {"t1c": {"mean": 500.0, "std": 90.0}}
    return save_copier(tmp_path_factory.mktemp("copier"), about={"statistics": statistics})


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Path]:
    image, inside = blob()
    other, _ = blob(seed=1)
    return {
        "t1n": save(tmp_path / "doe_t1n.nii.gz", image, np.eye(4)),
        "t2w": save(tmp_path / "doe_t2w.nii.gz", other * inside, np.eye(4)),
        "mask": save(tmp_path / "doe_mask.nii.gz", inside.astype(np.uint8), np.eye(4)),
    }
