"""Predicting: which model is meant, what is refused before nnU-Net opens it, and where the segmentations go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from raw_sets import NAME, put, raw_dataset
from small_unets import architecture, dataset_of, network, plans_of

pytest.importorskip("nnunetv2")

from medmae.core.errors import CheckpointError, UsageError
from medmae.transfer.nnunet.checkpoints import read_checkpoint
from medmae.transfer.nnunet.folders import Folders
from medmae.transfer.nnunet.prediction import find_model, predict
from medmae.transfer.nnunet.presence import Presence
from medmae.transfer.nnunet.run import TRAINER


def trained(folders: Folders, name: str = f"{TRAINER}__nnUNetPlans__3d_fullres", fold: str = "fold_0") -> Path:
    model = folders.results / NAME / name
    (model / fold).mkdir(parents=True)
    plans = plans_of(architecture(), foreground_intensity_properties_per_channel={"0": {}, "1": {}})
    plans["configurations"]["3d_fullres"] |= {
        "preprocessor_name": "DefaultPreprocessor",
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg"} for what in ("data", "seg", "probabilities")},
    }
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_of()))
    content = {
        "network_weights": network(classes=3).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "device": torch.device("cpu")},
        "logging": {"ema_fg_dice": [np.float64(0.5)], "dice": [np.float32(0.2)], "when": [1.5]},
    }
    torch.save(content, model / fold / "checkpoint_final.pth")
    return model


def test_the_only_model_needs_no_name(folders: Folders) -> None:
    model = trained(folders)
    assert find_model(901, folders=folders, configuration="3d_fullres") == model
    assert find_model(model, folders=folders, configuration="3d_fullres") == model
    with pytest.raises(UsageError, match=rf"no trained model \*__\*__2d .*there is {model.name}"):
        find_model(901, folders=folders, configuration="2d")
    with pytest.raises(UsageError, match="no trained model Mine__"):
        find_model(901, folders=folders, configuration="3d_fullres", trainer="Mine")
    trained(folders, "nnUNetTrainer__nnUNetPlans__3d_fullres")
    with pytest.raises(UsageError, match="several models"):
        find_model(901, folders=folders, configuration="3d_fullres")
    assert find_model(901, folders=folders, configuration="3d_fullres", trainer=TRAINER) == model


def test_something_else_in_place_of_a_model(folders: Folders, tmp_path: Path) -> None:
    (folders.raw / NAME).mkdir(parents=True)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.safetensors").touch()
    (tmp_path / "weights.pth").touch()
    with pytest.raises(CheckpointError, match="pre-trained model, which segments nothing yet"):
        find_model(tmp_path / "run", folders=folders, configuration="3d_fullres")
    for name in ("weights.pth", "nowhere"):
        with pytest.raises(CheckpointError, match=f"{name} is no model folder of nnU-Net"):
            find_model(tmp_path / name, folders=folders, configuration="3d_fullres")
    with pytest.raises(UsageError, match="no nnU-Net dataset '902'"):
        find_model("902", folders=folders, configuration="3d_fullres")


def test_weights_without_a_training_are_no_model(folders: Folders, tmp_path: Path) -> None:
    path = trained(folders) / "fold_0" / "checkpoint_final.pth"
    torch.save({"network_weights": network(classes=3).state_dict()}, path)
    with pytest.raises(CheckpointError, match="not how they were trained"):
        predict(901, folders=folders, images=tmp_path, out=tmp_path / "out", device="cpu")


def test_segmentations_need_a_folder_of_their_own(folders: Folders, tmp_path: Path) -> None:
    model, images = trained(folders), raw_dataset(folders) / "imagesTr"
    for out, words in ((images, "folder of the images"), (images.parent, "a data set or model"), (model, "or model")):
        with pytest.raises(UsageError, match=words):
            predict(model, folders=folders, images=images, out=out, device="cpu")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        predict(model, folders=folders, images=images, out=tmp_path / "file", device="cpu")


def test_a_fold_that_was_not_trained(folders: Folders, tmp_path: Path) -> None:
    model = trained(folders)
    (model / "fold_1").mkdir()
    with pytest.raises(UsageError, match=r"no checkpoint_final.pth of fold 1; there is 0; begun: 0, 1"):
        predict(901, folders=folders, images=tmp_path, out=tmp_path / "out", folds=[1])


def test_a_checkpoint_with_numbers_of_numpy_is_read(folders: Folders) -> None:
    found = read_checkpoint(trained(folders) / "fold_0" / "checkpoint_final.pth")
    assert found["logging"]["ema_fg_dice"] == [0.5]


class Evil:
    def __reduce__(self) -> tuple:
        return os.putenv, ("MEDMAE_WAS_HERE", "1")


def test_a_checkpoint_that_executes_something_is_refused(folders: Folders, tmp_path: Path) -> None:
    path = trained(folders) / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "extra": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"holds more than numbers.*nnUNetv2_predict"):
        predict(901, folders=folders, images=tmp_path, out=tmp_path / "out", device="cpu")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="no checkpoint of nnU-Net"):
        read_checkpoint(path)


def test_a_trainer_that_is_not_there(folders: Folders, tmp_path: Path) -> None:
    path = trained(folders) / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "Mine"}, path)
    with pytest.raises(CheckpointError, match="written by the trainer Mine, which nnU-Net does not find"):
        predict(901, folders=folders, images=tmp_path, out=tmp_path / "out", device="cpu")


def test_a_checkpoint_that_does_not_fit_its_plans(folders: Folders, tmp_path: Path) -> None:
    path = trained(folders) / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "network_weights": network(classes=5).state_dict()}, path)
    put(tmp_path / "images" / "a_0000.nii.gz", np.ones((16, 16, 16), np.float32))
    with pytest.raises(CheckpointError, match=r"does not fit the plans.*seg_layers"):
        predict(901, folders=folders, images=tmp_path / "images", out=tmp_path / "out", device="cpu")


def test_predicting_with_what_there_is(folders: Folders, tmp_path: Path) -> None:
    model, images, out = trained(folders), tmp_path / "images", tmp_path / "out"
    draw = np.random.default_rng(0)
    for name in ("a_0000", "a_0001", "b_0000"):
        put(images / f"{name}.nii.gz", draw.normal(100, 10, (16, 16, 16)).astype(np.float32))
    said: list[str] = []
    done = predict(model, folders=folders, images=images, out=out, device="cpu", mirror=False, say=said.append)
    assert [path.name for path in done.files] == ["a.nii.gz", "b.nii.gz"]
    assert all(nib.load(path).shape == (16, 16, 16) for path in done.files)
    assert said == ["b: without t2w"]
    assert json.loads((out / "presence.json").read_text())["cases"] == {"a": ["t1n", "t2w"], "b": ["t1n"]}
    assert sorted(path.name for path in images.iterdir()) == ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"]
    assert Presence.load(out) == done.presence
    assert done.presence.predicted
    with pytest.raises(UsageError, match=r"holds a\.nii\.gz, b\.nii\.gz already"):
        predict(model, folders=folders, images=images, out=out, device="cpu")
    only = predict(
        model, folders=folders, images=images, out=tmp_path / "t1n", device="cpu", mirror=False, keep=["t1n"]
    )
    assert set(only.presence.cases.values()) == {("t1n",)}
    same = [
        np.array_equal(nib.load(out / f"{c}.nii.gz").dataobj, nib.load(only.out / f"{c}.nii.gz").dataobj) for c in "ab"
    ]
    assert same == [False, True]
