"""Specs: the smallest legal one, the full one, and complaints with file, line and the nearest legal word."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from medmae.core.errors import UsageError
from medmae.data.schema import PATH, schema
from medmae.data.spec import load_spec, parse_spec

REPOSITORY = Path(__file__).resolve().parents[2]
SMALLEST = "medmae: 1\nname: x\nroot: .\npattern: '{case}/{seq}.nii.gz'\nsequences: [t1n, t1ce, FLAIR]\n"
FULL = """medmae: 1
name: brats-gli-2023
root: ${BRATS_ROOT:-./data}
pattern: "{case}/{case}-{seq}.nii.gz"        # layout: pattern
sequences: [t1n, t1c, t2w, t2f]
subject: "^(BraTS-GLI-\\\\d{5})-"
require: 1
label: {file: "{case}/{case}-seg.nii.gz", classes: {background: 0, ncr: 1, ed: 2, et: 3}, remap: {4: 3},
        regions: {whole_tumour: [1, 2, 3], tumour_core: [1, 3], enhancing: [3]}}
table: {file: clinical.csv, key: case, columns: {idh: class, os_days: time, os_event: event}}
geometry: {on_mismatch: error}
preprocess: {orientation: RAS, spacing: [1, 1, 1], crop: foreground, normalize: zscore_foreground}
split: {by: subject, seed: 0, val: 0.1, test: 0.1}
license: "BraTS data use agreement"
"""


def write(tmp_path, text):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return path


def complaints(tmp_path, text):
    with pytest.raises(UsageError) as caught:
        load_spec(write(tmp_path, text))
    return str(caught.value)


def test_smallest(tmp_path):
    spec = load_spec(write(tmp_path, SMALLEST))
    assert spec.sequences == ("t1n", "t1c", "t2f")
    assert spec.layout == "pattern"
    assert spec.folder == tmp_path
    assert spec.require == 1
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.folder == tmp_path


def test_full(tmp_path, monkeypatch):
    spec = load_spec(write(tmp_path, FULL))
    assert spec.folder == tmp_path / "data"
    assert spec.label is not None
    assert spec.label.file_values == {0, 1, 2, 3, 4}
    assert spec.table is not None
    assert spec.table.columns["os_event"] == "event"
    assert spec.preprocess.spacing == (1, 1, 1)
    monkeypatch.setenv("BRATS_ROOT", "/somewhere")
    assert spec.folder == Path("/somewhere")
    monkeypatch.setenv("BRATS_ROOT", "here")
    monkeypatch.chdir(tmp_path.parent)
    assert spec.folder == tmp_path.parent / "here"


def test_mapping_of_sequences(tmp_path):
    spec = load_spec(write(tmp_path, SMALLEST.replace("[t1n, t1ce, FLAIR]", "{t1c: post, t1n: pre}")))
    assert spec.sequences == ("t1c", "t1n")
    assert spec.aliases == {"post": "t1c", "pre": "t1n"}


def test_all_complaints_at_once_with_line_and_suggestion(tmp_path):
    text = complaints(
        tmp_path,
        SMALLEST
        + "spliit: {val: 0.1}\npreprocess:\n  spacng: [1, 1, 1]\n  crop: forground\nlabel:\n  classes: {a: 0, b: 0}\n",
    )
    where = tmp_path / "spec.yaml"
    assert f"{where}:6: unknown key 'spliit'. Did you mean 'split'?" in text
    assert f"{where}:8: unknown key 'preprocess.spacng'. Did you mean 'spacing'?" in text
    assert f"{where}:9: preprocess.crop cannot be 'forground'" in text
    assert "Did you mean 'foreground'?" in text
    assert f"{where}:10: label: two classes have the same value" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: x\n", ""), "'name' is missing"),
        (("medmae: 1", "medmae: 2"), ":1: medmae cannot be 2; it is one of 1"),
        (("[t1n, t1ce, FLAIR]", "[t1, t1w]"), ":5: sequences: t1 and t1w are both t1n"),
        (("[t1n, t1ce, FLAIR]", "[]"), "at least one sequence"),
        (("[t1n, t1ce, FLAIR]", "[label]"), "reserved word"),
        (("{seq}.nii.gz", "x.nii.gz"), ":4: pattern: has no {seq}"),
        (("{case}/{seq}", "../{case}/{seq}"), "may not climb out of root"),
        (("{case}/{seq}", "{cse}/{seq}"), "{cse} is no placeholder"),
        (("{case}/{seq}", "/{case}/{seq}"), "relative to root"),
        (("root: .", "root: ${NOT_SET_ANYWHERE}"), ":3: root '${NOT_SET_ANYWHERE}': the variable NOT_SET_ANYWHERE"),
        (("name: x", "name: x\nname: y"), ":3: 'name' is given twice (first on line 2)"),
        (("name: x", "name: [x"), "not valid YAML"),
        (("name: x", "name: x\nrequire: 4"), "require 4 is more than the 3 sequences"),
        (("name: x", "name: x\nsubject: '('"), ":3: subject: is no regular expression"),
        (("name: x", "name: x\nlayout: csv"), "a pattern means layout pattern"),
        (("name: x", "name: x\nsplit: {val: 0.6, test: 0.5}"), ":3: split: val 0.6 + test 0.5 leave nothing"),
        (("name: x", "name: x\npreprocess: {orientation: RRS}"), "are no axis codes"),
        (("name: x", "name: x\npreprocess: {spacing: [1, 0, 1]}"), "cannot be meant"),
        (("name: x", "name: x\npreprocess: {windows: {ct: [9, 1]}}"), "window of ct"),
        (("name: x", "name: x\nlabel: {classes: {a: 0}, remap: {4: 3}}"), "remap sends 4 to 3"),
        (("name: x", "name: x\nlabel: {classes: {a: 0}, regions: {r: [2]}}"), "region r uses [2]"),
    ],
)
def test_complaints(tmp_path, change, message):
    assert message in complaints(tmp_path, SMALLEST.replace(*change))


def test_not_a_mapping_and_binary(tmp_path):
    assert "a data spec is a mapping" in complaints(tmp_path, "- 1\n")
    (tmp_path / "spec.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        load_spec(tmp_path / "spec.yaml")
    with pytest.raises(UsageError, match=r"unknown key 'nme'. Did you mean 'name'"):
        parse_spec({"medmae": 1, "nme": "x", "sequences": ["t1n"]})


def test_schema_is_current():
    shipped = json.loads(PATH.read_text())
    assert shipped == json.loads(json.dumps(schema())), "run: python -m medmae.data.schema"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "data_specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_specs(path):
    assert load_spec(path).sequences == ("t1n", "t1c", "t2w", "t2f")


def test_needs_neither_torch_nor_image_libraries():
    code = (
        "import sys, time; t = time.perf_counter(); import medmae.data.spec, medmae.data.cohort; "
        "heavy = {'torch', 'numpy', 'nibabel', 'SimpleITK', 'monai'} & set(sys.modules); assert not heavy, heavy; "
        "print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert float(done.stdout) < 2
