"""Cohorts: splits by subject, tables, requirements, and names that try to be something else."""

from __future__ import annotations

import pickle

import pytest

from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import find_cohort, list_cohort, open_cohort, safe_stem
from medmae.data.spec import parse_spec

HOSTILE = [
    "<script>alert(1)</script>".replace("/", "\\"),
    "a\nb",
    "$(touch pwned)",
    "; rm -rf ~",
    "..",
    "&quot;\"'",
    "\x1b[31mred",
    "-rf",
    "{case}",
    "ü" * 60,
    "not \udcff utf-8",
]


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def spec(root, **more):
    values = {"medmae": 1, "name": "x", "root": str(root), "pattern": "{case}/{seq}.nii", "sequences": ["t1n", "t2f"]}
    return parse_spec({**values, **more})


def cohort_of(root, **more):
    result = list_cohort(spec(root, **more))
    assert result.faults == ()
    return result.cohort


@pytest.fixture
def visits(tmp_path):
    """Twenty patients with one to three visits."""
    for patient in range(20):
        for visit in range(1 + patient % 3):
            touch(tmp_path, f"P{patient:02d}-{visit}/t1.nii", f"P{patient:02d}-{visit}/flair.nii")
    return tmp_path


def test_split_keeps_subjects_together(visits):
    cohort = cohort_of(visits, subject=r"^(P\d+)-", split={"val": 0.2, "test": 0.3})
    parts = cohort.split()
    people = {part: {case.subject for case in cases} for part, cases in parts.items()}
    assert {part: len(names) for part, names in people.items()} == {"train": 10, "val": 4, "test": 6}
    assert not people["train"] & people["val"]
    assert not people["train"] & people["test"]
    assert not people["val"] & people["test"]
    assert sum(map(len, parts.values())) == len(cohort.cases)


def test_split_is_a_function_of_seed_and_names(visits):
    one = cohort_of(visits, subject=r"^(P\d+)-").split()
    two = cohort_of(visits, subject=r"^(P\d+)-", split={"seed": 1}).split()
    again = cohort_of(visits, subject=r"^(P\d+)-").split()
    assert one == again
    assert one["test"] != two["test"]
    alone = cohort_of(visits, split={"by": "case", "val": 0, "test": 0}).split()
    assert alone["val"] == alone["test"] == ()


def test_a_tiny_cohort_keeps_something_to_train_on(tmp_path):
    touch(tmp_path, "a/t1.nii")
    assert {part: len(cases) for part, cases in cohort_of(tmp_path).split().items()} == {
        "train": 1,
        "val": 0,
        "test": 0,
    }
    touch(tmp_path, "b/t1.nii", "c/t1.nii")
    assert {part: len(cases) for part, cases in cohort_of(tmp_path).split().items()} == {
        "train": 1,
        "val": 1,
        "test": 1,
    }


def test_fixed_parts_that_separate_a_subject_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("case,subject,split,t1\na,s,train,a.nii\nb,s,test,b.nii\n")
    with pytest.raises(DataError, match="subject s is in both train and test"):
        open_cohort(tmp_path / "a.csv").split()


def test_require(tmp_path):
    touch(tmp_path, "a/t1.nii", "b/t1.nii", "b/flair.nii")
    assert [case.key for case in cohort_of(tmp_path).cases] == ["a", "b"]
    assert [case.key for case in cohort_of(tmp_path, require=2).cases] == ["b"]
    assert [case.key for case in list_cohort(spec(tmp_path), require=2).cohort.cases] == ["b"]
    with pytest.raises(UsageError, match="between 1 and 2"):
        list_cohort(spec(tmp_path), require=3)
    with pytest.raises(UsageError, match="between 1 and 2"):
        list_cohort(spec(tmp_path), require=0)


def test_cases_expression_and_companions(tmp_path):
    touch(tmp_path, "a1/t1.nii", "a2/t1.nii", "b/t1.nii", "a1/seg.nii", "a2/mask.nii")
    cohort = cohort_of(
        tmp_path,
        cases="^a",
        label={"file": "{case}/seg.nii", "classes": {"background": 0}},
        mask={"file": "{case}/mask.nii"},
    )
    assert [case.key for case in cohort.cases] == ["a1", "a2"]
    assert [case.label is None for case in cohort.cases] == [False, True]
    assert [case.mask is None for case in cohort.cases] == [True, False]


TABLE = {"file": "t.csv", "key": "id", "columns": {"idh": "class", "days": "time", "died": "event", "age": "number"}}


def test_table_by_case_and_by_subject(tmp_path):
    touch(tmp_path, "P1-0/t1.nii", "P1-1/t1.nii", "P2-0/t1.nii")
    (tmp_path / "t.csv").write_text("id,idh,days,died,age\nP1,mutant,10.5,1,60\nP2-0,NA,,yes,\nP9,x,1,0,1\n")
    cohort = cohort_of(tmp_path, subject=r"^(P\d)-", table=TABLE)
    assert cohort.cases[0].table == cohort.cases[1].table == {"idh": "mutant", "days": 10.5, "died": 1.0, "age": 60.0}
    assert cohort.cases[2].table == {"idh": None, "days": None, "died": 1.0, "age": None}
    assert "2 of 3 table row(s) belong to a case" in cohort.notes


def test_table_faults_are_collected(tmp_path):
    touch(tmp_path, "a/t1.nii")
    (tmp_path / "t.csv").write_text("id,idh,days,died,age\na,x,soon,2,old\na,x,1,1,1\nb,x,-1,0,inf\n")
    faults = list_cohort(spec(tmp_path, table=TABLE)).faults
    assert len(faults) == 6
    assert all("t.csv:" in text for text in faults)
    (tmp_path / "t.csv").write_text("id,idh\na,x\n")
    assert "no column days, died, age" in list_cohort(spec(tmp_path, table=TABLE)).faults[0]
    assert "leads outside root" in list_cohort(spec(tmp_path, table={**TABLE, "file": "../t.csv"})).faults[0]
    assert "t.csv" in list_cohort(spec(tmp_path / "a", table=TABLE, pattern="{case}{seq}.nii")).faults[-1]


def test_missing_root(tmp_path):
    result = list_cohort(spec(tmp_path / "absent"))
    assert "is no folder" in result.faults[0]


def test_hostile_folder_names(tmp_path):
    names = [name for name in HOSTILE if name != ".."]
    touch(tmp_path, *(f"{name}/t1.nii" for name in names))
    cohort = cohort_of(tmp_path, mask={"file": "{case}/mask.nii"}, label={"file": "{case}/s.nii", "classes": {"b": 0}})
    assert sorted(case.key for case in cohort.cases) == sorted(names)
    stems = [case.file_stem for case in cohort.cases]
    assert len(set(stems)) == len(names)


@pytest.mark.parametrize("name", [*HOSTILE, "../../etc/passwd", "/etc/passwd", "", ".", "a/b", "CON\0"])
def test_safe_stem(name):
    stem = safe_stem(name)
    assert stem
    assert stem[0] not in ".-"
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert len(stem) < 100
    assert safe_stem("BraTS-GLI-00001-000") == "BraTS-GLI-00001-000"
    assert safe_stem("a/b") != safe_stem("a_b")


def test_hostile_keys_in_a_table_lead_nowhere(tmp_path):
    touch(tmp_path / "data", "x/t1.nii")
    touch(tmp_path, "secret/mask.nii")
    (tmp_path / "data" / "a.csv").write_text("case,t1\n../secret,x/t1.nii\n")
    values = {"layout": "csv", "file": "a.csv", "mask": {"file": "{case}/mask.nii"}, "pattern": None}
    result = list_cohort(spec(tmp_path / "data", **values))
    assert "leads outside root" in result.faults[0]
    assert result.cohort.cases[0].mask is None


def test_pickles(visits):
    cohort = cohort_of(visits)
    again = pickle.loads(pickle.dumps(cohort))
    assert again == cohort


def test_real_small_spec(real_data, monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("MEDMAE_REAL_DATA", str(real_data))
    found = find_cohort(Path(__file__).resolve().parents[2] / "data_specs" / "real_small.yaml")
    assert found.faults == ()
    assert len(found.cohort.cases) == 4
    assert [len(case.images) for case in found.cohort.cases] == [4, 4, 2, 2]
    assert all(case.mask is not None for case in found.cohort.cases)
