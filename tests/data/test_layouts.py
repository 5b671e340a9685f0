"""Layouts: every arrangement of files leads to the same cases, and names from data lead nowhere else."""

from __future__ import annotations

import json

import pytest

from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import find_cohort, list_cohort, open_cohort
from medmae.data.initialize import guess_spec, spec_text
from medmae.data.layouts import fill, inside, printable
from medmae.data.spec import load_spec, parse_spec


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(cohort):
    return {case.key: sorted(case.images) for case in cohort.cases}


def spec(root, **more):
    return parse_spec({"medmae": 1, "name": "x", "root": str(root), "sequences": ["t1n", "t1c", "t2w", "t2f"], **more})


WANTED = {"p1": ["t1c", "t1n", "t2f"], "p2": ["t2f"]}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (
            "{case}/{case}-{seq}.nii.gz",
            ["p1/p1-t1n.nii.gz", "p1/p1-t1c.nii.gz", "p1/p1-t2f.nii.gz", "p2/p2-t2f.nii.gz"],
        ),
        ("{case}/{seq}.nii.gz", ["p1/T1.nii.gz", "p1/t1ce.nii.gz", "p1/FLAIR.nii.gz", "p2/flair.nii.gz"]),
        ("{case}_{seq}.nii.gz", ["p1_t1.nii.gz", "p1_t1_ce.nii.gz", "p1_t2_flair.nii.gz", "p2_t2-flair.nii.gz"]),
        ("*/{case}/x?_{seq}.nii", ["a/p1/x1_t1.nii", "b/p1/x2_t1c.nii", "a/p1/x3_t2f.nii", "c/p2/xx_t2f.nii"]),
        ("{seq}/{case}.mha", ["T1/p1.mha", "T1C/p1.mha", "flair/p1.mha", "flair/p2.mha"]),
    ],
)
def test_pattern(tmp_path, pattern, names):
    touch(tmp_path, *names, "p1/p1-seg.nii.gz", "readme.txt", ".hidden/p9/p9-t1n.nii.gz")
    cohort = list_cohort(spec(tmp_path, pattern=pattern)).cohort
    assert found(cohort) == WANTED
    assert any("->" in note for note in cohort.notes)


def test_files_with_another_ending_are_counted(tmp_path):
    names = ["p1/t1.nii.gz", "p1/t1.nii", "p1/t1ce.nii", "p2/t1.nii.gz", "p2/flair.nii", "p2/t2.mha", "p3/t1.nrrd"]
    touch(tmp_path, *names, "p1/other.nii", "p1/seg.nii", "p1/t1.json")
    cohort = list_cohort(spec(tmp_path, pattern="{case}/{seq}.nii.gz")).cohort
    assert found(cohort) == {"p1": ["t1n"], "p2": ["t1n"]}
    notes = [note for note in cohort.notes if "end in" in note]
    assert [note.split(" that")[0] for note in notes] == [f"left aside: {count} file(s)" for count in (1, 2, 1)]
    assert [note.split("end in ")[1].split(". ")[0] for note in notes] == [".mha", ".nii", ".nrrd"]
    open_ended = list_cohort(spec(tmp_path, pattern="{case}/t1{seq}*")).cohort
    assert not [note for note in open_ended.notes if "end in" in note]


def test_pattern_with_subject_and_session(tmp_path):
    touch(tmp_path, "a/1/t1.nii", "a/2/t1.nii", "b/1/t1.nii")
    cohort = list_cohort(spec(tmp_path, pattern="{subject}/{session}/{seq}.nii")).cohort
    assert [(case.key, case.subject) for case in cohort.cases] == [("a_1", "a"), ("a_2", "a"), ("b_1", "b")]


def test_pattern_case_must_repeat(tmp_path):
    touch(tmp_path, "p1/p1-t1n.nii.gz", "p1/p2-t1c.nii.gz")
    assert found(list_cohort(spec(tmp_path, pattern="{case}/{case}-{seq}.nii.gz")).cohort) == {"p1": ["t1n"]}


def test_pattern_that_matches_nothing(tmp_path):
    touch(tmp_path, "p1/mt0.nii.gz")
    with pytest.raises(DataError, match="1 matched but for the sequence name"):
        open_cohort(write_spec(tmp_path, "pattern: '{case}/{seq}.nii.gz'"))


def write_spec(root, line):
    path = root / "spec.yaml"
    path.write_text(f"medmae: 1\nname: x\nroot: .\nsequences: [t1n, t1c, t2w, t2f]\n{line}\n")
    return path


def test_two_files_for_one_sequence_are_a_fault(tmp_path):
    touch(tmp_path, "p1/t1.nii.gz", "p1/t1n.nii.gz", "p1/t2.nii.gz")
    result = list_cohort(spec(tmp_path, pattern="{case}/{seq}.nii.gz"))
    assert len(result.faults) == 1
    assert "two files for t1n" in result.faults[0]
    assert result.cohort.cases[0].images["t1n"].name == "t1n.nii.gz"
    mapped = spec(tmp_path, pattern="{case}/{seq}.nii.gz", sequences={"t1n": "t1n", "t1_raw": "t1"})
    assert found(list_cohort(mapped).cohort) == {"p1": ["t1_raw", "t1n"]}


def test_unknown_names_and_their_suggestion(tmp_path):
    touch(tmp_path, "p1/flaire.nii.gz", "p1/t1n.nii.gz", "p1/mt0.nii.gz")
    cohort = list_cohort(spec(tmp_path, pattern="{case}/{seq}.nii.gz", sequences=["t1n", "mt0", "flair"])).cohort
    assert found(cohort) == {"p1": ["mt0", "t1n"]}
    assert any("'flaire'" in note for note in cohort.notes)


@pytest.mark.parametrize(
    "names",
    [
        ["p1/T1.nii.gz", "p1/t1ce.nii.gz", "p1/FLAIR.nii.gz", "p2/flair.nii.gz"],
        ["p1_t1.nii.gz", "p1_t1ce.nii.gz", "p1_T2_FLAIR.nii.gz", "p2_flair.nii"],
        ["p1/p1_t1.nii", "p1/p1-t1_post.nii.gz", "p1/p1 flair.nrrd", "p2/p2_flair.mha"],
    ],
)
def test_plain_folder(tmp_path, names):
    touch(tmp_path, *names)
    assert found(open_cohort(tmp_path)) == WANTED


def test_plain_folder_with_dicom_series(tmp_path):
    for name in ("p1/T1_POST", "p1/flair", "p2/FLAIR"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0001.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert found(open_cohort(tmp_path)) == {"p1": ["t1c", "t2f"], "p2": ["t2f"]}


def test_plain_folder_labels_masks_and_equal_names_in_two_folders(tmp_path):
    touch(tmp_path, "s1/a_t1.nii.gz", "s2/a_t1.nii.gz", "s1/a_seg.nii.gz", "s1/a_brain_mask.nii.gz")
    result = list_cohort(spec(tmp_path, layout="folder", label={"classes": {"background": 0}})).cohort
    assert found(result) == {"s1_a": ["t1n"], "s2_a": ["t1n"]}
    assert result.cases[0].label == tmp_path / "s1/a_seg.nii.gz"
    assert result.cases[0].mask == tmp_path / "s1/a_brain_mask.nii.gz"
    assert result.cases[1].label is None


def nnunet(root, **about):
    touch(root, "imagesTr/p1_0000.nii.gz", "imagesTr/p1_0001.nii.gz", "imagesTr/p2_0001.nii.gz", "labelsTr/p1.nii.gz")
    touch(root, "imagesTs/q_0000.nii.gz")
    about = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "a": 1},
        "file_ending": ".nii.gz",
    } | about
    (root / "dataset.json").write_text(json.dumps(about))


def test_nnunet(tmp_path):
    nnunet(tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]})
    cohort = open_cohort(tmp_path)
    assert found(cohort) == {"p1": ["t1n", "t2f"], "p2": ["t2f"]}
    assert cohort.cases[0].label == tmp_path / "labelsTr/p1.nii.gz"
    assert cohort.spec.label is not None
    assert cohort.spec.label.regions == {"whole": (1, 2), "core": (2,)}
    assert cohort.spec.label.file_values == {0, 1, 2}
    assert any("imagesTs: 1" in note for note in cohort.notes)
    assert open_cohort(tmp_path / "dataset.json") == cohort


def test_nnunet_unlabeled(tmp_path):
    nnunet(tmp_path)
    touch(tmp_path, "imagesTs/p2_0000.nii.gz", "labelsTr/q.nii.gz")
    cohort = list_cohort(spec(tmp_path, layout="nnunet", sequences=["t1n", "t2f"], unlabeled=True)).cohort
    assert found(cohort) == {"p1": ["t1n", "t2f"], "p2": ["t2f"], "q": ["t1n"], "imagesTs_p2": ["t1n"]}
    assert {case.key for case in cohort.cases if case.label is not None} == {"p1"}
    assert not any("imagesTs:" in note for note in cohort.notes)


def test_nnunet_channels_of_one_name(tmp_path):
    nnunet(tmp_path, channel_names={"0": "MRI", "1": "MRI"})
    assert found(open_cohort(tmp_path)) == {"p1": ["mri_0", "mri_1"], "p2": ["mri_1"]}


def test_nnunet_channels_by_number(tmp_path):
    nnunet(tmp_path, channel_names={"0": "noNorm", "1": "zscore"})
    mapped = spec(tmp_path, layout="nnunet", aliases={"0000": "t1n", "0001": "flair"})
    assert found(list_cohort(mapped).cohort) == {"p1": ["t1n", "t2f"], "p2": ["t2f"]}
    nnunet(tmp_path, file_ending="/../../x.nii.gz")
    assert "file_ending" in list_cohort(mapped).faults[0]
    (tmp_path / "dataset.json").write_text("{")
    assert "not valid JSON" in list_cohort(mapped).faults[0]


def test_decathlon(tmp_path):
    touch(tmp_path, "imagesTr/b1.nii.gz", "labelsTr/b1.nii.gz")
    about = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema"},
        "training": [{"image": "./imagesTr/b1.nii.gz", "label": "./labelsTr/b1.nii.gz"}],
        "test": ["./imagesTs/b2.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    cohort = open_cohort(tmp_path / "dataset.json")
    first = cohort.cases[0]
    assert (first.key, first.images["t1c"].name, first.split) == ("b1", "b1.nii.gz#2", None)
    assert first.label == tmp_path / "labelsTr/b1.nii.gz"
    assert (cohort.cases[1].key, cohort.cases[1].split) == ("b2", "test")


def test_decathlon_folder(tmp_path):
    touch(tmp_path, "imagesTr/b1.nii.gz")
    about = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background"},
        "training": [{"image": "imagesTr/b1.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert found(open_cohort(tmp_path)) == {"b1": ["adc", "t2w"]}


def test_monai_data_list(tmp_path):
    items = {
        "training": [
            {"t1c": "a/t1.nii", "flair": "a/f.nii", "case": "a"},
            {"image": ["b/1.nii", "b/2.nii"], "case": "b"},
        ],
        "validation": [{"flair": "c/f.nii", "subject": "s"}],
    }
    (tmp_path / "list.json").write_text(json.dumps(items))
    mapped = spec(tmp_path, layout="msd", file="list.json", sequences=["t1c", "t2f"])
    cohort = list_cohort(mapped).cohort
    assert found(cohort) == {"a": ["t1c", "t2f"], "b": ["t1c", "t2f"], "f": ["t2f"]}
    assert [case.split for case in cohort.cases] == ["train", "train", "val"]
    assert cohort.cases[2].subject == "s"
    items["training"] += [{"t1c": "../../etc/passwd", "case": "x"}, 7, {"t1c": "a.nii", "case": "a"}]
    (tmp_path / "list.json").write_text(json.dumps(items))
    faults = list_cohort(mapped).faults
    assert len(faults) == 3
    assert "leads outside root" in faults[0]
    assert "item 3 of train: neither" in faults[1]
    assert "a second case named a" in faults[2]


def test_bids(tmp_path):
    touch(
        tmp_path,
        "dataset_description.json",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_run-1_FLAIR.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_run-2_FLAIR.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "derivatives/x/sub-02/anat/sub-02_dseg.nii.gz",
    )
    cohort = open_cohort(tmp_path)
    assert found(cohort) == {"sub-01_ses-1": ["t1c", "t1n"], "sub-01_ses-2": ["t2f"], "sub-02": ["t2w"]}
    assert [case.subject for case in cohort.cases] == ["sub-01", "sub-01", "sub-02"]
    assert cohort.cases[1].images["t2f"].name == "sub-01_ses-2_run-1_FLAIR.nii.gz"
    assert any("further run" in note for note in cohort.notes)
    label = {"file": "derivatives/x/{subject}/{session}/anat/{case}_dseg.nii.gz", "classes": {"background": 0}}
    cohort = list_cohort(spec(tmp_path, layout="bids", label=label)).cohort
    assert [case.label is not None for case in cohort.cases] == [False, False, True]


def test_csv_wide_and_long(tmp_path):
    (tmp_path / "wide.csv").write_text(
        "case,patient,T1,FLAIR,label,split,subject\np1,x,a/1.nii,a/2.nii,a/s.nii,train,s1\np2,y,,b/2.nii,,test,s2\n"
    )
    cohort = open_cohort(tmp_path / "wide.csv")
    assert found(cohort) == {"p1": ["t1n", "t2f"], "p2": ["t2f"]}
    assert [(case.subject, case.split) for case in cohort.cases] == [("s1", "train"), ("s2", "test")]
    assert any("1 label file(s) left aside" in note for note in cohort.notes)
    (tmp_path / "long.tsv").write_text("case\tsequence\tpath\np1\tt1ce\ta.nii\np1\tflair\tb.nii\np2\tt1ce\tc.nii\n")
    assert found(open_cohort(tmp_path / "long.tsv")) == {"p1": ["t1c", "t2f"], "p2": ["t1c"]}


def test_csv_faults_are_collected(tmp_path):
    (tmp_path / "a.csv").write_text("case,t1\np1,../../etc/passwd\n,x.nii\np2,/etc/passwd\np3,ok.nii\np3,ok.nii\n")
    faults = find_cohort(tmp_path / "a.csv").faults
    assert [text.split(":")[1] for text in faults] == ["2", "3", "4", "6"]
    (tmp_path / "b.csv").write_text("case,t1\np1,a.nii,b.nii\n")
    with pytest.raises((DataError, UsageError), match="another number of cells"):
        open_cohort(tmp_path / "b.csv")


def test_paths_stay_inside(tmp_path):
    assert inside(tmp_path, "a/../b") == tmp_path / "b"
    for name in ("../x", "/etc/passwd", "a/../../x", "", "a\0b", str(tmp_path) + "-other/x"):
        with pytest.raises(ValueError, match=r"outside root|no file name"):
            inside(tmp_path, name)
    assert printable("a\x1b[31m\nb") == "a?[31m?b"


def test_templates_do_not_expand_names():
    from medmae.data.layouts import Entry

    assert fill("{subject}/{session}/{case}.nii", Entry("{subject}$(rm)", subject="s")) == "s/{subject}$(rm).nii"


@pytest.mark.parametrize(
    "names",
    [
        ["p1/t1.nii.gz", "p1/flair.nii.gz", "p2/t1.nii.gz"],
        ["BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz", "BraTS-GLI-00001-001/BraTS-GLI-00001-001-t2f.nii.gz"],
        ["a/b/c_t1.nii.gz", "a_t2.nii"],
    ],
)
def test_init_writes_a_spec_that_finds_the_same(tmp_path, names):
    touch(tmp_path / "data", *names)
    guess = guess_spec(tmp_path / "data")
    (tmp_path / "spec.yaml").write_text(spec_text(guess, root="data"))
    again = load_spec(tmp_path / "spec.yaml")
    assert found(list_cohort(again).cohort) == found(open_cohort(tmp_path / "data"))
    if "BraTS" in names[0]:
        assert again.pattern == "{case}/{case}-{seq}.nii.gz"
        assert {case.subject for case in list_cohort(again).cohort.cases} == {"BraTS-GLI-00001"}


def test_init_of_nnunet_keeps_labels(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "spec.yaml").write_text(spec_text(guess_spec(tmp_path), root="."))
    again = load_spec(tmp_path / "spec.yaml")
    assert again.layout == "nnunet"
    assert again.sequences == ("t1n", "t2f")
    assert again.label is not None
    assert again.label.classes == {"background": 0, "a": 1}


def test_nothing_to_propose(tmp_path):
    touch(tmp_path, "p1/scan.nii.gz")
    with pytest.raises(UsageError, match=r"found scan\.nii\.gz"):
        open_cohort(tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        open_cohort(tmp_path / "absent")
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="not a data source"):
        open_cohort(tmp_path / "a.png")
