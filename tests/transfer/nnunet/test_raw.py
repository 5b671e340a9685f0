"""A cohort as nnU-Net's raw folder: links, placeholders, splits, and a second run that keeps what is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohorts import AFFINE, REGIONS, SIZE, label_of, make, put

from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import open_cohort
from medmae.transfer.nnunet.folders import Folders
from medmae.transfer.nnunet.presence import Presence
from medmae.transfer.nnunet.raw import dataset_name, write_raw
from medmae.transfer.nnunet.splits import subject_folds, write_splits


def convert(spec: Path, root: Path, **options) -> tuple[Path, list[str]]:
    folders, said = Folders.choose(root), []
    name = write_raw(open_cohort(spec), folders, dataset_id=7, name="toy", say=said.append, **options)
    return folders.raw / name, said


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_everything_is_linked_where_it_can_be(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", missing={1: ("t2w",), 2: ("t1n",)})
    folder, said = convert(spec, tmp_path / "n")
    assert folder.name == "Dataset007_toy"
    about = json.loads((folder / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "t1n", "1": "t2w"}
    assert about["labels"] == {"background": 0, "edema": 1, "core": 2}
    parts = open_cohort(spec).split()
    train = sorted(c.key for part in ("train", "val") for c in parts[part])
    assert about["numTraining"] == len(train)
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [
        f"{key}_000{i}.nii.gz" for key in train for i in (0, 1)
    ]
    assert sorted(p.name for p in (folder / "labelsTr").iterdir()) == [f"{key}.nii.gz" for key in train]
    assert {p.name[:2] for p in (folder / "imagesTs").iterdir()} == {c.key for c in parts["test"]}
    presence = Presence.load(folder)
    assert presence is not None
    for case, found in presence.cases.items():
        images = folder / ("imagesTr" if case in train else "imagesTs")
        for i, name in enumerate(("t1n", "t2w")):
            path = images / f"{case}_000{i}.nii.gz"
            assert path.is_symlink() == (name in found)
            if name in found:
                assert path.resolve() == (tmp_path / "c" / case / f"{name}.nii.gz").resolve()
            else:
                assert not values(path).any()
                assert np.allclose(nib.load(path).affine, AFFINE)
                assert nib.load(path).shape == SIZE
    assert presence.missing("p1") == ("t2w",)
    assert any("placeholders" in line and "t2w 1" in line for line in said)


def test_a_second_run_keeps_what_did_not_change(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", missing={1: ("t2w",)}, label=REGIONS, values=(2, 1, 4))
    folder, _ = convert(spec, tmp_path / "n")

    def stamps() -> dict[str, tuple[int, int]]:
        found = {}
        for part, _, names in os.walk(folder):
            for name in names:
                stat = os.lstat(Path(part) / name)
                found[name if "labels" not in part else f"label {name}"] = (stat.st_ino, stat.st_mtime_ns)
        return found

    before = stamps()
    assert "6 unchanged" in " ".join(convert(spec, tmp_path / "n")[1])
    assert stamps() == before
    os.utime(tmp_path / "c" / "p0" / "seg.nii.gz", (1, 1))
    convert(spec, tmp_path / "n")
    changed = {name for name, mark in stamps().items() if before[name] != mark}
    assert changed == {
        "p0_0000.nii.gz", "p0_0001.nii.gz", "label p0.nii.gz", "medmae.json", "dataset.json",
    }  # fmt: skip
    shutil.rmtree(tmp_path / "c" / "p5")
    convert(spec, tmp_path / "n")
    assert not [name for name in stamps() if "p5" in name]


def test_an_interrupted_run_is_never_taken_for_a_data_set(tmp_path: Path) -> None:
    spec = make(tmp_path / "c")
    folder, _ = convert(spec, tmp_path / "n")
    put(tmp_path / "c" / "p3" / "seg.nii.gz", label_of(values=(1, 9)))
    with pytest.raises(DataError, match="p3"):
        convert(spec, tmp_path / "n")
    assert not (folder / "dataset.json").exists()
    (folder / "imagesTr" / "left_0000.nii.gz").write_bytes(b"half")
    put(tmp_path / "c" / "p3" / "seg.nii.gz", label_of())
    convert(spec, tmp_path / "n")
    assert (folder / "dataset.json").exists()
    assert not (folder / "imagesTr" / "left_0000.nii.gz").exists()


def test_labels_are_renumbered_and_regions_kept(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", label=REGIONS, values=(2, 1, 4))
    folder, _ = convert(spec, tmp_path / "n", label="regions")
    about = json.loads((folder / "dataset.json").read_text())
    assert about["labels"]["whole"] == [1, 2, 3]
    assert about["regions_class_order"] == [2, 1, 3]
    path = next((folder / "labelsTr").iterdir())
    original = values(tmp_path / "c" / path.name.removesuffix(".nii.gz") / "seg.nii.gz")
    assert not path.is_symlink()
    assert (values(path) == np.where(original == 4, 3, original)).all()


def test_ct_gets_its_name_and_the_foreground_mean(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", sequences=("ct", "t2w"), missing={1: ("ct",)}, test=0.0)
    folder, _ = convert(spec, tmp_path / "n")
    about = json.loads((folder / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "CT", "1": "t2w"}
    assert about["medmae"]["sequences"] == ["ct", "t2w"]
    means = []
    for i in (0, 2, 3, 4, 5):
        image, label = (values(tmp_path / "c" / f"p{i}" / f"{n}.nii.gz") for n in ("ct", "seg"))
        means.append(image[label > 0].mean())
    gap = values(folder / "imagesTr" / "p1_0000.nii.gz")
    assert gap.min() == gap.max() == pytest.approx(np.mean(means), rel=1e-5)


def test_what_cannot_be_linked_is_converted(tmp_path: Path) -> None:
    spec = make(tmp_path / "c")
    image = values(tmp_path / "c" / "p0" / "t1n.nii.gz").copy()
    image[0, 0, 0] = np.nan
    put(tmp_path / "c" / "p0" / "t1n.nii.gz", image)
    turned = nib.load(tmp_path / "c" / "p1" / "t2w.nii.gz")
    before = turned.get_fdata()
    nib.save(turned.as_reoriented([[0, -1], [1, 1], [2, 1]]), tmp_path / "c" / "p1" / "t2w.nii.gz")
    with pytest.raises(DataError, match="p1") as error:
        convert(spec, tmp_path / "n")
    assert "on_mismatch" in str(error.value)
    spec.write_text(spec.read_text() + "geometry: {on_mismatch: resample}\n")
    folder, _ = convert(spec, tmp_path / "n")
    clean = values(next(folder.glob("images*/p0_0000.nii.gz")))
    assert np.isfinite(clean).all()
    assert clean[0, 0, 0] == 0
    assert np.array_equal(clean[1:], image[1:])
    path = next(folder.glob("images*/p1_0001.nii.gz"))
    assert not path.is_symlink()
    assert np.allclose(values(path), before, atol=1e-4)


def test_cases_of_one_orientation_each_are_read_alike(tmp_path: Path) -> None:
    spec = make(tmp_path / "c")
    for path in (tmp_path / "c" / "p0").glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(image.__class__(np.asarray(image.dataobj), np.diag([-1.0, 1, 2, 1])), path)
    folder, _ = convert(spec, tmp_path / "n")
    about = json.loads((folder / "dataset.json").read_text())
    assert about["overwrite_image_reader_writer"] == "NibabelIOWithReorient"


def test_cases_off_the_grid_may_be_skipped(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", more="geometry: {on_mismatch: skip}")
    put(tmp_path / "c" / "p0" / "seg.nii.gz", label_of()[:-2])
    folder, said = convert(spec, tmp_path / "n")
    assert not list(folder.glob("*/p0*"))
    assert any("p0 left out" in line for line in said)


@pytest.mark.parametrize(
    ("cases", "fault", "words"),
    [
        (6, lambda c: put(c / "p2" / "seg.nii.gz", label_of(values=(1, 7))), "value(s) 7 are no class"),
        (6, lambda c: put(c / "p2" / "seg.nii.gz", label_of()[:-2]), "label is not on the grid of t1n"),
        (6, lambda c: (c / "p2" / "t1n.nii.gz").write_bytes(b"no image"), "p2"),
        (6, lambda c: [put(p, np.zeros(SIZE, np.uint8)) for p in c.glob("*/seg.nii.gz")], "every label is empty"),
        (2, lambda c: (c / "p0" / "seg.nii.gz").unlink(), "at least 2 are needed"),
    ],
)  # fmt: skip
def test_faults_of_the_data(tmp_path: Path, cases: int, fault, words: str) -> None:
    spec = make(tmp_path / "c", cases=cases, test=0.0)
    fault(tmp_path / "c")
    with pytest.raises(DataError) as error:
        convert(spec, tmp_path / "n")
    assert words in str(error.value)
    assert not (tmp_path / "n" / "nnUNet_raw" / "Dataset007_toy" / "dataset.json").exists()


def test_few_and_unlabeled_cases_are_said(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", cases=5, test=0.0)
    (tmp_path / "c" / "p0" / "seg.nii.gz").unlink()
    put(tmp_path / "c" / "p1" / "seg.nii.gz", np.zeros(SIZE, np.uint8))
    folder, said = convert(spec, tmp_path / "n")
    words = " ".join(said)
    assert "1 case(s) without a label left out" in words
    assert "only 4 labeled case(s)" in words
    assert "empty label, such as p1" in words
    assert not list(folder.glob("imagesTr/p0*"))


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    spec = make(tmp_path / "c")
    other = tmp_path / "n" / "nnUNet_raw" / "Dataset007_other"
    other.mkdir(parents=True)
    with pytest.raises(UsageError, match="another --dataset-id"):
        convert(spec, tmp_path / "n")
    other.rename(other.with_name("Dataset007_toy"))
    (other.with_name("Dataset007_toy") / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not written from a data spec"):
        convert(spec, tmp_path / "n")
    bare = make(tmp_path / "b")
    bare.write_text("\n".join(line for line in bare.read_text().splitlines() if not line.startswith("label")))
    with pytest.raises(UsageError, match="no 'label'"):
        convert(bare, tmp_path / "m")
    with pytest.raises(UsageError, match="1 to 999"):
        dataset_name(1000, "x")
    assert dataset_name(5, "BraTS-GLI 2023") == "Dataset005_BraTS_GLI_2023"


def test_many_processes_give_the_same(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", missing={1: ("t2w",)})
    one, _ = convert(spec, tmp_path / "n")
    two, _ = convert(spec, tmp_path / "m", workers=1)
    assert (one / "dataset.json").read_text() == (two / "dataset.json").read_text()


def test_folds_never_separate_a_subject(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", cases=5, test=0.0)
    for name in list((tmp_path / "c").glob("p?")):  # a second examination of everybody
        shutil.copytree(name, name.with_name(f"{name.name}-b"))
    cohort = open_cohort(spec)
    folds = subject_folds(cohort, folds=3)
    assert len(folds) == 3
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(c.key for c in cohort.cases)
    for fold in [*folds, *subject_folds(cohort)]:
        assert not {n[:2] for n in fold["train"]} & {n[:2] for n in fold["val"]}
        assert len(fold["train"]) + len(fold["val"]) == 10
    with pytest.raises(DataError, match=r"5 labeled subject.*--folds 5"):
        subject_folds(cohort, folds=6)
    folders = Folders.choose(tmp_path / "n")
    name = write_raw(cohort, folders, dataset_id=7, name="toy")
    path = write_splits(cohort, folders, name, folds=3)
    assert path == folders.preprocessed / name / "splits_final.json"
    assert json.loads(path.read_text()) == folds


def test_a_split_without_validation_is_said(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", val=0.0)
    with pytest.raises(DataError, match="--folds"):
        subject_folds(open_cohort(spec))


def test_a_placeholder_is_no_image_to_those_who_open_the_folder_again(tmp_path: Path) -> None:
    from medmae.transfer.nnunet.planning import check_raw

    spec = make(tmp_path / "c", missing={1: ("t2w",)}, test=0.0)
    folder, _ = convert(spec, tmp_path / "n")
    again = {case.key: tuple(case.images) for case in open_cohort(folder).cases}
    assert again == {case.key: tuple(case.images) for case in open_cohort(spec).cases}
    check_raw(folder)
    (folder / "imagesTr" / "p0_0001.nii.gz").unlink()
    presence = Presence.load(folder)
    (folder / "presence.json").unlink()
    with pytest.raises(DataError, match="p0: no t2w"):
        check_raw(folder)
    assert presence is not None
    (folder / "presence.json").write_text("{}")
    with pytest.raises(DataError, match="no record of present sequences"):
        open_cohort(folder)
