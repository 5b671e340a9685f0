"""Gaps of cases are closed with what the network sees as nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from cohorts import AFFINE, SIZE, make, put

from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import open_cohort
from medmae.transfer.nnunet.placeholders import fill_missing, fill_values, gaps, sequences_of, write_inputs
from medmae.transfer.nnunet.presence import Presence

DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "T1ce", "2": "FLAIR"},
    "labels": {"background": 0, "a": 1},
    "file_ending": ".nii.gz",
}
PLANS: dict[str, Any] = {
    "foreground_intensity_properties_per_channel": {"0": {"mean": 41.5, "std": 9.0}, "1": {"mean": 300.0}},
    "configurations": {
        "3d_fullres": {"normalization_schemes": ["CTNormalization", "ZScoreNormalization", "ZScoreNormalization"]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    },
}


def images(folder: Path, files: dict[str, np.ndarray | None]) -> Path:
    for name, array in files.items():
        put(folder / f"{name}.nii.gz", np.full(SIZE, 7.0, np.float32) if array is None else array)
    return folder


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_the_values_are_zero_after_normalization() -> None:
    assert sequences_of(DATASET) == ("ct", "t1c", "t2f")
    assert fill_values(PLANS, DATASET) == {"ct": 41.5, "t1c": 0.0, "t2f": 0.0}
    assert fill_values(PLANS, DATASET, name="3d_cascade_fullres")["ct"] == 41.5
    with pytest.raises(UsageError, match="no foreground mean"):
        fill_values({**PLANS, "foreground_intensity_properties_per_channel": {}}, DATASET)


def test_nnunet_normalizes_them_to_zero() -> None:
    pytest.importorskip("nnunetv2")
    from medmae.torchvision_guard import guard

    guard()
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ZScoreNormalization

    filled = fill_values(PLANS, DATASET)
    about = {"mean": 41.5, "std": 9.0, "percentile_00_5": 0.0, "percentile_99_5": 90.0}
    for scheme, value in ((CTNormalization, filled["ct"]), (ZScoreNormalization, filled["t1c"])):
        seen = scheme(use_mask_for_norm=False, intensityproperties=about).run(np.full(SIZE, value, np.float32), None)
        assert np.abs(seen).max() < 1e-5
    zeros = CTNormalization(False, about).run(np.zeros(SIZE, np.float32), None)
    assert np.abs(zeros).max() > 1  # why zeros will not do


def test_a_folder_is_completed(tmp_path: Path) -> None:
    source = images(tmp_path / "in", {"a_0000": None, "a_0001": None, "a_0002": None, "b_0001": None})
    presence = fill_missing(source, dataset=DATASET, plans=PLANS, out=tmp_path / "out")
    assert presence.cases == {"a": ("ct", "t1c", "t2f"), "b": ("t1c",)}
    assert presence.values == {"ct": 41.5, "t2f": 0.0}
    assert Presence.load(tmp_path / "out") == presence
    assert gaps(presence) == "placeholders for missing sequences in 1 of 2 case(s): t2f 1, ct 1"
    assert (tmp_path / "out" / "b_0001.nii.gz").is_symlink()
    for name, value in (("b_0000", 41.5), ("b_0002", 0.0)):
        path = tmp_path / "out" / f"{name}.nii.gz"
        assert (values(path) == value).all()
        assert np.allclose(nib.load(path).affine, AFFINE)
    again = fill_missing(tmp_path / "out", dataset=DATASET, plans=PLANS, out=tmp_path / "again")
    assert again == presence  # a placeholder is known for what it is


def test_sequences_can_be_left_out(tmp_path: Path) -> None:
    source = images(tmp_path / "in", {"a_0000": None, "a_0001": None, "a_0002": None})
    out = tmp_path / "out"
    fill_missing(source, dataset=DATASET, plans=PLANS, out=out)
    presence = fill_missing(source, dataset=DATASET, plans=PLANS, out=out, keep=["t2f"])
    assert presence.cases == {"a": ("t2f",)}
    assert not values(out / "a_0001.nii.gz").any()
    assert values(source / "a_0001.nii.gz").all()  # written over the link, not through it
    with pytest.raises(DataError, match="no channel of the sequences asked for"):
        fill_missing(images(tmp_path / "b", {"b_0000": None}), dataset=DATASET, plans=PLANS, out=out, keep=["t2f"])
    with pytest.raises(UsageError, match="knows no sequence pet"):
        fill_missing(source, dataset=DATASET, plans=PLANS, out=out, keep=["pet"])


def test_sequences_may_be_spelled_as_users_spell_them(tmp_path: Path) -> None:
    source = images(tmp_path / "in", {"a_0000": None, "a_0001": None, "a_0002": None})
    presence = fill_missing(source, dataset=DATASET, plans=PLANS, out=tmp_path / "out", keep=["CT", "T1Gd"])
    assert presence.cases == {"a": ("ct", "t1c")}
    odd = {**DATASET, "channel_names": {"0": "CT", "1": "+", "2": "FLAIR"}}
    assert sequences_of(odd) == ("ct", "+", "t2f")


def test_what_predictions_were_made_from_says_nothing_of_the_images(tmp_path: Path) -> None:
    source = images(tmp_path / "in" / "images", {"a_0000": None, "a_0001": None, "a_0002": None})
    fewer = Presence(("ct", "t1c", "t2f"), {"a": ("ct",)})
    fewer.save(tmp_path / "in")
    assert fill_missing(source, dataset=DATASET, plans=PLANS, out=tmp_path / "raw").cases == {"a": ("ct",)}
    replace(fewer, predicted=True).save(tmp_path / "in")  # `predict --sequences ct -o in`
    assert fill_missing(source, dataset=DATASET, plans=PLANS, out=tmp_path / "out").cases == {"a": ("ct", "t1c", "t2f")}


def test_a_file_in_another_format_is_not_taken_for_a_gap(tmp_path: Path) -> None:
    source = images(tmp_path / "in", {"a_0000": None, "a_0001": None})
    put(source / "a_0002.nii", np.ones(SIZE, np.float32))
    (source / "notes_2024.txt").touch()
    with pytest.raises(DataError, match=r"1 fault\(s\):\n.*a_0002.nii: the model reads files that end in .nii.gz"):
        fill_missing(source, dataset=DATASET, plans=PLANS, out=tmp_path / "out")


def test_every_fault_is_named(tmp_path: Path) -> None:
    files = {"a_0000": None, "a_0001": np.ones((5, 6, 7), np.float32), "b_0007": None, "c": None, "d_0001": None}
    source = images(tmp_path / "in", files)
    (source / "d_0002.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError) as error:
        fill_missing(source, dataset=DATASET, plans=PLANS, out=tmp_path / "out")
    said = str(error.value)
    for words in ("case a: t1c is not on the grid of ct", "b_0007", "no channel 0007", "no channel number", "d_0002"):
        assert words in said
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    source = images(tmp_path / "in", {"a_0000": None})
    with pytest.raises(UsageError, match="folder of its own"):
        fill_missing(source, dataset=DATASET, plans=PLANS, out=source)
    other = images(tmp_path / "other", {"z_0000": None})
    with pytest.raises(UsageError, match="not empty"):
        fill_missing(source, dataset=DATASET, plans=PLANS, out=other)
    assert (other / "z_0000.nii.gz").exists()
    with pytest.raises(UsageError, match="no such folder"):
        fill_missing(tmp_path / "nowhere", dataset=DATASET, plans=PLANS, out=tmp_path / "out")
    with pytest.raises(UsageError, match="no file such as"):
        fill_missing(images(tmp_path / "empty", {}) if (tmp_path / "empty").mkdir() is None else source,
                     dataset=DATASET, plans=PLANS, out=tmp_path / "out")  # fmt: skip


def test_other_formats_need_a_spec_only_where_something_is_missing(tmp_path: Path) -> None:
    import SimpleITK as sitk

    dataset = {**DATASET, "file_ending": ".mha"}
    (tmp_path / "in").mkdir()
    for i in range(3):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones(SIZE, np.float32)), tmp_path / "in" / f"a_000{i}.mha")
    fill_missing(tmp_path / "in", dataset=dataset, plans=PLANS, out=tmp_path / "out")
    (tmp_path / "in" / "a_0001.mha").unlink()
    with pytest.raises(UsageError, match="NIfTI only"):
        fill_missing(tmp_path / "in", dataset=dataset, plans=PLANS, out=tmp_path / "more")


def test_cases_of_a_cohort_become_input(tmp_path: Path) -> None:
    spec = make(tmp_path / "c", sequences=("t2f", "t1c"), missing={1: ("t2f",)}, cases=2)
    cases = open_cohort(spec).cases
    presence = write_inputs(cases, dataset=DATASET, plans=PLANS, out=tmp_path / "out")
    assert presence.cases == {"p0": ("t1c", "t2f"), "p1": ("t1c",)}
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 6
    assert (values(tmp_path / "out" / "p0_0000.nii.gz") == 41.5).all()
    with pytest.raises(DataError, match=r"p1: it has none of the sequences"):
        write_inputs(cases, dataset=DATASET, plans=PLANS, out=tmp_path / "out", keep=("t2f",))


def test_a_broken_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "presence.json").write_text("[]")
    with pytest.raises(DataError, match="no record"):
        Presence.load(tmp_path)
