"""The shipped settings name arguments and knobs that exist, and build the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medmae.config import load_config
from medmae.engine.settings import train_settings
from medmae.find import find

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MILLIONS = {"fcmae": 88, "multimae": 87, "ca_mae": 85, "satmae": 86}
"""Parameters of the encoder."""


@pytest.mark.parametrize("name", MILLIONS)
def test_shipped_configs(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert set(config) == {"method", "train"}
    assert train_settings(config["train"]).schedule_unit == "epoch"
    options = dict(config["method"])
    with torch.device("meta"):
        method = find(options.pop("name")).build(**options)
    values = sum(parameter.numel() for parameter in method.encoder.parameters())
    assert round(values / 1e6) == MILLIONS[name]
