"""Makes the small cohorts beside these tests importable, and nnU-Net's folders temporary ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medmae.transfer.nnunet.folders import KINDS, Folders, variable
from medmae.transfer.nnunet.settings import CHECKPOINT_VARIABLE

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    for name in (*map(variable, KINDS), "nnUNet_extTrainer", CHECKPOINT_VARIABLE):
        monkeypatch.setenv(name, "")
    return Folders.use(tmp_path)
