"""Planning and training: what is found, what is refused and in which words, and what nnU-Net is shown."""

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
from raw_sets import NAME, raw_dataset
from small_unets import architecture, plans_of, write_dataset

pytest.importorskip("nnunetv2")

from medmae.checkpoint import save_model
from medmae.core.errors import CheckpointError, DataError, UsageError
from medmae.find import find
from medmae.transfer.nnunet.folders import Folders
from medmae.transfer.nnunet.own_plans import plans_for
from medmae.transfer.nnunet.planning import check_raw, ensure_splits
from medmae.transfer.nnunet.pools import workers
from medmae.transfer.nnunet.prediction import model_folder
from medmae.transfer.nnunet.run import EXTERNAL, SEARCHED_FIRST, TRAINER, _dice, find_plans, plan, register, shim, train
from medmae.transfer.nnunet.settings import Settings

# --- plans and prepared cases


def test_the_only_plans_need_no_name(folders: Folders) -> None:
    home = write_dataset(folders.raw.parent, architecture())
    assert find_plans(home, None) == "nnUNetPlans"
    copy = plans_of(architecture(), medmae={"kind": "vit"})
    (home / "nnUNetPlans_bm_mae_12345678.json").write_text(json.dumps(copy))
    assert find_plans(home, None) == "nnUNetPlans"  # those we wrote do not make a choice necessary
    assert find_plans(home, "nnUNetPlans_bm_mae_12345678.json") == "nnUNetPlans_bm_mae_12345678"
    (home / "medmae_planned.json").write_text("{}")
    assert find_plans(home, None) == "nnUNetPlans"  # nor does the record of `finetune segment`
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
    with pytest.raises(UsageError, match=r"no fold 3 of Dataset901_Tiny; it has 3, from 0 to 2"):
        train(901, folders=folders, fold="3")  # nnU-Net would draw another part of the cases
    (folders.preprocessed / NAME / "splits_final.json").write_text("[")
    with pytest.raises(DataError, match="these splits cannot be read"):
        train(901, folders=folders, fold=0)


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
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    with pytest.raises(UsageError, match="was interrupted: give --overwrite to replace it, --resume to go on with it"):
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
def test_faults_that_nobody_looked_for_are_not_called_a_bug(folders: Folders) -> None:
    (raw_dataset(folders) / "imagesTr" / "case1_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"could not prepare Dataset901_Tiny.*without --no-check says which files"):
        plan(901, folders=folders, check=False)


def test_plans_for_a_transformer_follow_the_axes_of_the_files(folders: Folders, tmp_path: Path) -> None:
    home = write_dataset(folders.raw.parent, architecture())
    plans = json.loads((home / "nnUNetPlans.json").read_text())
    (home / "nnUNetPlans.json").write_text(json.dumps({**plans, "image_reader_writer": "SimpleITKIO"}))
    found, told = find("bm_mae"), {"scale": "test", "sequences": ("t1n", "t2w")}
    save_model(tmp_path / "vit", found.build(**told), name="bm_mae", recipe=found.recipe(**told))
    for affine, axes in ((np.eye(4), [2, 1, 0]), (np.eye(4)[[2, 0, 1, 3]], [0, 2, 1])):
        path = folders.raw / NAME / "imagesTr" / "case0_0000.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), affine), path)
        ours = plans_for(tmp_path / "vit", home=home, raw=folders.raw / NAME, name="nnUNetPlans")
        made = json.loads((home / f"{ours}.json").read_text())
        assert made["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["axes"] == axes


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


def test_a_validation_without_anything_to_find_has_no_dice(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    for value, expected in (("NaN", None), ("0.5", 0.5)):
        (tmp_path / "validation" / "summary.json").write_text(f'{{"foreground_mean": {{"Dice": {value}}}}}')
        assert _dice(tmp_path) == expected


def test_a_start_from_random_weights_is_said(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(folders)
    said: list[str] = []
    for settings in (Settings(), Settings(from_scratch=True)):
        with pytest.raises(UsageError, match="--gpus"):
            train(901, folders=folders, device="cpu", gpus=2, settings=settings, say=said.append)
    assert [line for line in said if "weights" in line] == [
        "No weights are given (--checkpoint): the training starts from random ones"
    ]
    monkeypatch.setenv("MEDMAE_CHECKPOINT", "nowhere")
    with pytest.raises((CheckpointError, UsageError), match="nowhere"):
        train(901, folders=folders, device="cpu")
