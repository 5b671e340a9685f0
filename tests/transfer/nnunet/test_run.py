"""Planning, training and predicting: what is found, what is refused and in which words, and what nnU-Net is shown."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from multiprocessing.pool import ThreadPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small_unets import architecture, dataset_of, network, plans_of, write_dataset

pytest.importorskip("nnunetv2")

from medmae.core.errors import CheckpointError, DataError, UsageError
from medmae.transfer.nnunet.checkpoints import read_checkpoint
from medmae.transfer.nnunet.folders import KINDS, Folders, variable
from medmae.transfer.nnunet.planning import check_raw, ensure_splits
from medmae.transfer.nnunet.pools import workers
from medmae.transfer.nnunet.prediction import find_model, model_folder, predict
from medmae.transfer.nnunet.run import EXTERNAL, SEARCHED_FIRST, TRAINER, find_plans, plan, register, shim, train
from medmae.transfer.nnunet.settings import Settings

NAME = "Dataset901_Tiny"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    for name in (*map(variable, KINDS), EXTERNAL):
        monkeypatch.setenv(name, "")
    return Folders.use(tmp_path)


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def raw_dataset(folders: Folders, cases: int = 3) -> Path:
    folder = folders.raw / NAME
    draw = np.random.default_rng(0)
    for i in range(cases):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:9, 5:9, 6:10], label[5, 6, 7] = 1, 2
        for k in range(2):
            image = draw.normal(100, 10, label.shape) + 50 * (label > 0)
            put(folder / "imagesTr" / f"case{i}_{k:04d}.nii.gz", image.astype(np.float32))
        put(folder / "labelsTr" / f"case{i}.nii.gz", label)
    (folder / "dataset.json").write_text(json.dumps(dataset_of()))
    return folder


# --- plans and prepared cases


def test_the_only_plans_need_no_name(folders: Folders) -> None:
    home = write_dataset(folders.raw.parent, architecture())
    assert find_plans(home, None) == "nnUNetPlans"
    copy = plans_of(architecture(), medmae={"kind": "vit"})
    (home / "nnUNetPlans_bm_mae_12345678.json").write_text(json.dumps(copy))
    assert find_plans(home, None) == "nnUNetPlans"  # those we wrote do not make a choice necessary
    assert find_plans(home, "nnUNetPlans_bm_mae_12345678.json") == "nnUNetPlans_bm_mae_12345678"
    (home / "other.json").write_text(json.dumps(plans_of(architecture())))
    with pytest.raises(UsageError, match=r"several plans: give --plans nnUNetPlans or .* or other"):
        find_plans(home, None)


def test_unknown_plans_list_what_there_is(folders: Folders) -> None:
    home = write_dataset(folders.raw.parent, architecture())
    with pytest.raises(UsageError, match="no plans 'nnUNetPlanz'; there is nnUNetPlans"):
        train(901, folders=folders, plans="nnUNetPlanz")
    with pytest.raises(UsageError, match=r"no configuration '2d'.*3d_fullres, bigger_batch"):
        train(901, folders=folders, configuration="2d")
    (home / "nnUNetPlans.json").unlink()
    with pytest.raises(DataError, match="run `medmae nnunet plan Dataset901_Tiny` first"):
        train(901, folders=folders)


def test_missing_preprocessed_data(folders: Folders) -> None:
    home = write_dataset(folders.raw.parent, architecture())
    with pytest.raises(DataError, match=r"holds no preprocessed case: run `medmae nnunet plan Dataset901_Tiny"):
        train(901, folders=folders)
    (home / "nnUNetPlans_3d_fullres").mkdir()
    with pytest.raises(DataError, match="holds no preprocessed case"):
        train(901, folders=folders)


def prepared(folders: Folders, cases: int = 3) -> Path:
    """A preprocessed folder that holds names only."""
    home = write_dataset(folders.raw.parent, architecture())
    for i in range(cases):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (home / "nnUNetPlans_3d_fullres" / f"case{i}{ending}").parent.mkdir(exist_ok=True)
            (home / "nnUNetPlans_3d_fullres" / f"case{i}{ending}").touch()
    return home


def test_a_fold_is_a_number_or_all(folders: Folders) -> None:
    prepared(folders)
    with pytest.raises(UsageError, match="fold 'first' is neither a number"):
        train(901, folders=folders, fold="first")


def test_resuming_nothing(folders: Folders) -> None:
    prepared(folders)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        train(901, folders=folders, resume=True, device="cpu")


def test_a_training_that_has_ended_is_not_replaced_by_accident(folders: Folders) -> None:
    prepared(folders)
    fold = model_folder(folders, NAME, trainer=TRAINER, plans="nnUNetPlans", configuration="3d_fullres") / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    with pytest.raises(UsageError, match="--overwrite to replace it, --resume to train it longer, or --results"):
        train(901, folders=folders, device="cpu")


def test_many_gpus_need_cuda(folders: Folders) -> None:
    prepared(folders)
    with pytest.raises(UsageError, match="--gpus 2 needs --device cuda"):
        train(901, folders=folders, device="cpu", gpus=2)


def test_unreadable_weights_end_before_the_training_begins(folders: Folders, tmp_path: Path) -> None:
    prepared(folders)
    with pytest.raises((CheckpointError, UsageError), match=r"nowhere"):
        train(901, folders=folders, device="cpu", settings=Settings(checkpoint=str(tmp_path / "nowhere")))
    assert not folders.results.exists()


# --- few cases


@pytest.mark.parametrize("count", [2, 4])
def test_few_cases_get_leave_one_out_folds(tmp_path: Path, count: int) -> None:
    cases = tuple(f"case{i}" for i in range(count))
    said = ensure_splits(tmp_path, cases)
    assert said is not None
    assert f"{count} cases are too few" in said
    splits = json.loads((tmp_path / "splits_final.json").read_text())
    assert [split["val"] for split in splits] == [[case] for case in cases]
    assert all(sorted(split["train"] + split["val"]) == sorted(cases) for split in splits)


def test_splits_are_left_to_the_user_and_to_nnunet(tmp_path: Path) -> None:
    assert ensure_splits(tmp_path, tuple("abcde")) is None
    assert not (tmp_path / "splits_final.json").exists()
    (tmp_path / "splits_final.json").write_text("[]")
    assert ensure_splits(tmp_path, ("a", "b")) is None
    assert (tmp_path / "splits_final.json").read_text() == "[]"


def test_one_case_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 training case\(s\), which cannot be split.*--fold all"):
        ensure_splits(tmp_path, ("a",))


# --- raw data


def test_every_fault_of_the_raw_data_is_named(folders: Folders) -> None:
    raw = raw_dataset(folders)
    check_raw(raw)
    truncated = raw / "imagesTr" / "case0_0000.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (raw / "imagesTr" / "case1_0001.nii.gz").unlink()
    (raw / "labelsTr" / "case2.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        plan(901, folders=folders)
    text = str(caught.value)
    assert "case0 t1n" in text
    assert "case1: no t2w; nnU-Net wants a file for every channel" in text
    assert "case2: no label in labelsTr" in text


def test_unknown_planner_and_dataset(folders: Folders) -> None:
    raw_dataset(folders)
    with pytest.raises(UsageError, match="no planner 'ResEncXXL'; there is default, ResEncM"):
        plan(901, folders=folders, planner="ResEncXXL")
    with pytest.raises(UsageError, match=f"no nnU-Net dataset '902'.*there is {NAME}"):
        plan(902, folders=folders)
    (folders.preprocessed / "Dataset903_Other").mkdir(parents=True)
    with pytest.raises(UsageError, match="planning needs the raw data"):
        plan(903, folders=folders)


@pytest.mark.slow
def test_planning_in_one_process(folders: Folders) -> None:
    raw_dataset(folders)
    said: list[str] = []
    done = plan(901, folders=folders, say=said.append)
    assert (done.dataset, done.name, done.cases) == (NAME, "nnUNetResEncUNetMPlans", 3)
    assert done.summary["3d_fullres"]["network"] == "ResidualEncoderUNet"
    assert any("too few for five folds" in text for text in said)
    assert multiprocessing.active_children() == []
    by_hand = json.loads(done.path.read_text())
    by_hand["configurations"]["3d_fullres"]["batch_size"] = 7
    done.path.write_text(json.dumps(by_hand))
    assert plan(901, folders=folders, check=False).summary["3d_fullres"]["batch"] == 7
    assert plan(901, folders=folders, check=False, overwrite=True).summary["3d_fullres"]["batch"] != 7
    named = plan(901, folders=folders, check=False, name="mine")
    assert named.path.name == "mine.json"
    found = json.loads((done.path.parent / "dataset_fingerprint.json").read_text())
    assert abs(found["foreground_intensity_properties_per_channel"]["0"]["mean"] - 150) < 5


# --- what nnU-Net is shown


def test_nnunet_finds_the_trainer_in_this_process(folders: Folders) -> None:
    from importlib import import_module

    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    ours = register()
    try:
        assert recursive_find_trainer_class_by_name(TRAINER) is ours
    finally:
        delattr(import_module(SEARCHED_FIRST), TRAINER)


def test_nnunet_finds_the_trainer_through_the_shim(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from medmae.torchvision_guard import guard

    guard()
    monkeypatch.setenv(EXTERNAL, str(shim()))
    found = recursive_find_trainer_class_by_name(TRAINER)
    assert found.__module__ == "medmae.transfer.nnunet.trainer"
    assert pickle.loads(pickle.dumps(found)) is found


def test_pools_are_threads_only_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import nnunetv2.inference.predict_from_raw_data as theirs

    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    before = theirs.default_num_processes
    with workers(0, augment=1):
        with theirs.multiprocessing.get_context("spawn").Pool(8) as pool:
            assert isinstance(pool, ThreadPool)
            assert pool.apply(os.getpid) == os.getpid()
        assert os.environ["nnUNet_n_proc_DA"] == "1"  # noqa: SIM112
        assert theirs.default_num_processes == 1
    assert theirs.multiprocessing is multiprocessing
    assert theirs.default_num_processes == before
    assert os.environ["nnUNet_n_proc_DA"] == "3"  # noqa: SIM112


# --- models and their checkpoints


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
