"""What ``--overwrite`` and ``--resume`` may touch."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import train_toy

from medmae.core.errors import UsageError


@pytest.mark.parametrize("names", [("data",), ("data", "config.yaml"), ("data", "model", "config.yaml", "train.py")])
def test_a_project_with_the_names_of_a_run_is_left_alone(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_text("x") if "." in name else (tmp_path / name).mkdir()
    (tmp_path / "data" / "patient.nii.gz").write_text("x")
    for option in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="not a run"):
            train_toy(tmp_path, **option)
    assert (tmp_path / "data" / "patient.nii.gz").exists()
