"""Where weights may come from, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_unets import architecture, dataset_of, network, plans_of

from medmae.checkpoint import save_model
from medmae.core.errors import CheckpointError, UsageError
from medmae.find import find
from medmae.transfer.nnunet.adapt import adapt
from medmae.transfer.nnunet.weights import read_source

SMALL = {"size": (16, 16, 16), "block": (4, 4, 4), "features": (4, 6, 8), "blocks": (1, 2, 2)}


def model(folder: Path, name: str = "resenc_mae", *, orientation: str | None = None, **changes: Any) -> Path:
    sizes = SMALL if name != "mae" else {}
    recipe = find(name).recipe(scale="test", **{**sizes, **changes})
    about = {"data": {"preprocess": {"orientation": orientation}}} if orientation else {}
    return save_model(folder, find(name).build(**recipe), name=name, recipe=recipe, about=about)


def test_a_model_folder_fits_the_stock_network_whole(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", sequences=("t1n", "t2w"), orientation="LPS")
    source = read_source(folder)
    assert (source.kind, source.channels, source.orientation, source.whole) == ("cnn", ("t1n", "t2w"), "LPS", True)
    assert read_source(tmp_path).sha256 == source.sha256  # a run folder holds model/
    other = network(seed=3)
    report = adapt(source, other, channels=("T1", "T2"), orientation="RAS")
    assert (report.share, report.inflated) == (1.0, ())


def test_stems_per_sequence_are_joined(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", sequences=("t1n", "t1c", "t2w"), stem="per_modality")
    report = adapt(read_source(folder), network(), channels=("T2", "T1"), orientation="SAR")
    assert report.share == 1.0
    assert any("3 stems stacked" in line and "channels 3 -> 2" in line for line in report.inflated)


@pytest.mark.parametrize(("name", "scope"), [("spark3d", "network"), ("simclr", "encoder"), ("byol", "encoder")])
def test_other_methods_of_the_same_network(tmp_path: Path, name: str, scope: str) -> None:
    recipe = find(name).recipe(scale="test", sequences=("t1n", "t2w"))
    folder = save_model(tmp_path, find(name).build(**recipe), name=name, recipe=recipe)
    described = architecture(features=recipe["features"], blocks=recipe["blocks"])
    report = adapt(read_source(folder), network(described), channels=("T1", "T2"), orientation="SAR")
    assert (report.share, report.scope) == (1.0, scope)


def test_a_checkpoint_of_nnunet_says_its_channels(tmp_path: Path) -> None:
    """As training writes them: numbers of numpy in the log, a device, plans and dataset.json."""
    net = network()
    plans = {**plans_of(architecture()), "transpose_forward": [2, 0, 1]}
    checkpoint = {
        "network_weights": net.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "n": np.int64(3), "ok": np.bool_(True)},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": dataset_of(("T1", "FLAIR")),
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    path = tmp_path / "checkpoint_final.pth"
    torch.save(checkpoint, path)
    source = read_source(path)
    assert (source.channels, source.orientation) == (("T1", "FLAIR"), "RSA")
    other = network(seed=1)
    report = adapt(source, other, channels=("FLAIR", "T1"), orientation="RSA")
    assert report.share == 1.0
    assert torch.equal(
        other.state_dict()["encoder.stem.convs.0.conv.weight"][:, 0],
        net.state_dict()["encoder.stem.convs.0.conv.weight"][:, 1],
    )


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_source(tmp_path / "none")
    flat = model(tmp_path / "mae", "mae")
    with pytest.raises(CheckpointError, match="mae, a method for image data"):
        read_source(flat)
    torch.save({"network_weights": {"a.weight": torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no U-Net encoder"):
        read_source(tmp_path / "a.pth")
    torch.save({"network_weights": {"eva.blocks.0.norm1.weight": torch.ones(2)}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="medmae convert nnssl"):
        read_source(tmp_path / "b.pth")
    torch.save({"network_weights": {"encoder.stages.0.x": torch.tensor([float("nan")])}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="NaN"):
        read_source(tmp_path / "c.pth")
    torch.save({"network_weights": 3}, tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match="network_weights"):
        read_source(tmp_path / "d.pth")


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"network_weights": network().state_dict(), "init_args": Bomb(trace)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="refused"):
        read_source(tmp_path / "bad.pth")
    assert not trace.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)  # the plant itself works
    assert trace.exists()


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_source(folder)
    with pytest.raises((CheckpointError, UsageError)):
        read_source(tmp_path / "model" / "config.json")
