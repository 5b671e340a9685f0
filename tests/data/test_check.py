"""``data check``: every planted fault of every case is named in one pass, and a file that kills its worker is too."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest

from medmae.core.errors import DataError
from medmae.data.check import check_cohort
from medmae.data.check_report import html_report
from medmae.data.cohort import find_cohort, list_cohort
from medmae.data.facts import examine
from medmae.data.initialize import guess_spec
from medmae.data.readers import read
from medmae.data.spec import load_spec

SPEC = """medmae: 1
name: planted
root: data
pattern: "{case}/{seq}.nii.gz"
sequences: [t1n, t1c, t2w, t2f]
label: {file: "{case}/seg.nii.gz", classes: {background: 0, tumor: 1}, remap: {4: 1}}
mask: {file: "{case}/mask.nii.gz"}
"""


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def noise(seed, shape=(8, 9, 10)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def planted(tmp_path):
    """A cohort with one fault of every kind, and what ``check`` must say about each."""
    root = tmp_path / "data"
    (tmp_path / "spec.yaml").write_text(SPEC)
    for case in range(12):
        for index, name in enumerate(("t1n", "t1c", "t2w")):
            save(root / f"c{case:02d}" / f"{name}.nii.gz", noise(100 * case + index))
    save(root / "c00" / "seg.nii.gz", np.pad(np.full((2, 2, 2), 4, np.uint8), ((0, 6), (0, 7), (0, 8))))
    bad = noise(1)
    bad[0, 0, :3] = np.nan
    save(root / "c01" / "t1n.nii.gz", bad)
    bad = noise(2)
    bad[0, 0, :2] = np.inf
    save(root / "c02" / "t1n.nii.gz", bad)
    save(root / "c03" / "t1c.nii.gz", np.full((8, 9, 10), -7, np.int16))
    cut = root / "c04" / "t2w.nii.gz"
    cut.write_bytes(cut.read_bytes()[:1500])
    save(root / "c05" / "seg.nii.gz", np.full((8, 9, 10), 3, np.uint8))
    (root / "c06" / "t1c.nii.gz").write_bytes((root / "c00" / "t1n.nii.gz").read_bytes())
    save(root / "c07" / "t2w.nii.gz", noise(5, (8, 9, 11)))
    save(root / "c07" / "seg.nii.gz", np.zeros((8, 9, 9), np.uint8))
    moved = np.eye(4)
    moved[2, 3] = 1.0
    save(root / "c08" / "t1c.nii.gz", noise(6), moved)
    save(root / "c09" / "mask.nii.gz", np.zeros((8, 9, 10), np.uint8))
    (root / "c10" / "t1n.nii.gz").write_bytes(b"")
    save(root / "c11" / "seg.nii.gz", noise(9))
    save(root / "c11" / "t1n.nii.gz", noise(9, (8, 9, 10, 2)))
    return tmp_path


WANTED = {
    ("c01", "t1n", "NaN"),
    ("c02", "t1n", "infinite"),
    ("c03", "t1c", "constant"),
    ("c04", "t2w", "truncated"),
    ("c05", "label", "label values"),
    ("c06", "t1c", "duplicate"),
    ("c07", "t2w", "geometry"),
    ("c07", "label", "label geometry"),
    ("c08", "t1c", "geometry"),
    ("c09", "mask", "empty mask"),
    ("c10", "t1n", "empty file"),
    ("c11", "label", "label values"),
    ("c11", "t1n", "4-D"),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fault_of_every_case_in_one_pass(planted, workers):
    steps = []
    found = list_cohort(load_spec(planted / "spec.yaml"))
    checked = check_cohort(found, workers=workers, tick=lambda done, total: steps.append((done, total)))
    assert {(item.case, item.role, item.kind) for item in checked.findings if item.error} == WANTED
    assert checked.errors == len(WANTED)
    assert steps[-1] == (len(checked.facts), len(checked.facts))
    assert "c04" in checked.faulty
    texts = {(item.case, item.role): item.text() for item in checked.findings}
    assert "the same as c00 t1n" in texts["c06", "t1c"]
    assert "value(s) 3 are in neither classes nor remap (0, 1, 4)" in texts["c05", "label"]
    assert "voxels lie up to 1 mm" in texts["c08", "t1c"]
    assert "every voxel is -7" in texts["c03", "t1c"]
    json.dumps(checked.as_json())


def test_a_sound_cohort_has_no_fault(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    for case in range(3):
        save(tmp_path / "data" / f"c{case}" / "t1n.nii.gz", noise(case))
    checked = check_cohort(list_cohort(load_spec(tmp_path / "spec.yaml")), workers=0)
    assert checked.errors == 0
    assert checked.findings == ()
    assert "No fault found" in html_report(checked)


def test_a_header_that_does_not_say_how_it_lies_is_a_warning(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    for case, codes in enumerate(((0, 0), (1, 0), (0, 1))):
        path = tmp_path / "data" / f"c{case}" / "t1n.nii.gz"
        path.parent.mkdir(parents=True)
        image = nib.Nifti1Image(noise(case), np.eye(4))
        image.set_qform(np.eye(4), codes[0])
        image.set_sform(np.eye(4), codes[1])
        nib.save(image, path)
    checked = check_cohort(list_cohort(load_spec(tmp_path / "spec.yaml")), workers=0)
    (found,) = checked.findings
    assert (found.case, found.role, found.kind, found.error) == ("c0", "t1n", "no orientation", False)
    assert "is a guess" in found.problem
    assert checked.errors == 0


def test_geometry_policy_makes_a_warning(planted):
    (planted / "spec.yaml").write_text(SPEC + "geometry: {on_mismatch: resample}\n")
    checked = check_cohort(list_cohort(load_spec(planted / "spec.yaml")), workers=0)
    mismatches = [item for item in checked.findings if "geometry" in item.kind]
    assert len(mismatches) == 3
    assert not any(item.error for item in mismatches)
    assert "will be resampled" in mismatches[0].problem


KILLER = """
import os, signal
from medmae.data.facts import examine

def look(path, role):
    if "c03" in path and role == "t1c":
        os._exit(9)
    if "c05" in path and role == "t2w":
        os.kill(os.getpid(), signal.SIGSEGV)
    if "c06" in path and role == "t2w":
        raise RuntimeError("odd <b>")
    return examine(path, role)
"""


def test_a_killed_worker_is_named_and_the_rest_goes_on(planted, tmp_path, monkeypatch):
    (tmp_path / "killer_of_workers.py").write_text(KILLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    look = importlib.import_module("killer_of_workers").look
    checked = check_cohort(list_cohort(load_spec(planted / "spec.yaml")), workers=2, look=look)
    killed = {(item.case, item.role) for item in checked.findings if item.kind == "killed the worker"}
    assert killed == {("c03", "t1c"), ("c05", "t2w")}
    others = {(item.case, item.role, item.kind) for item in checked.findings if item.kind != "killed the worker"}
    assert others >= WANTED - {("c03", "t1c", "constant")}
    assert ("c06", "t2w", "unreadable") in others
    assert len(checked.facts) == sum(1 for _ in checked.facts)
    assert all(facts.fault or facts.digest for facts in checked.facts.values())


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.seen |= {name for name, _ in attrs}


def test_report_never_turns_names_into_markup(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC.replace("name: planted", "name: '<img src=x onerror=alert(1)>'"))
    evil = "<img src=x onerror=alert(1)>"
    save(tmp_path / "data" / evil / "t1n.nii.gz", noise(1))
    save(tmp_path / "data" / "sound" / "t1n.nii.gz", noise(1))
    save(tmp_path / "data" / "sound" / "seg.nii.gz", np.full((8, 9, 10), 9, np.uint8))
    checked = check_cohort(list_cohort(load_spec(tmp_path / "spec.yaml")), workers=0)
    for identify in (False, True):
        page = html_report(checked, identify=identify)
        tags = Tags()
        tags.feed(page)
        assert not tags.seen & {"img", "script", "onerror", "src", "href", "link"}
        assert "duplicate" in page
        assert ("sound" in page) == identify
    assert checked.code(evil) in html_report(checked)


def run(*arguments):
    code = "import sys; from medmae.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, encoding="utf-8")


def test_command_line(planted, tmp_path):
    spec, page = str(planted / "spec.yaml"), tmp_path / "out" / "check.html"
    done = run("data", "check", "--data", spec, "--report", str(page), "--workers", "1", "--json")
    assert done.returncode == 3, done.stderr
    for case, role, _ in WANTED:
        assert f"{case} {role}:" in done.stderr
    assert "13 fault(s) in 11 of 12 case(s)" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert len(answer["cases"]) == 12
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_command_line_with_hostile_names(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    for number, name in enumerate(("a\nb", "\x1b[31m", "[bold]x[nope]", "$(touch pwned)", "not \udcff utf-8", "<b>")):
        save(tmp_path / "data" / name / "t1n.nii.gz", noise(number))
        (tmp_path / "data" / name / "t1c.nii.gz").write_bytes(b"")
    page = tmp_path / "page.html"
    done = run(
        "data",
        "check",
        "--data",
        str(tmp_path / "spec.yaml"),
        "--report",
        str(page),
        "--identify",
        "--json",
        "--workers",
        "0",
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("an empty file") == 6
    assert "\x1b[31m" not in done.stderr
    assert "[bold]x[nope] t1c" in done.stderr
    assert len(json.loads(done.stdout)["cases"]) == 6
    assert "<b>/" not in page.read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("**/pwned"))


def test_command_line_init_then_check(tmp_path):
    for case in range(2):
        save(tmp_path / "data" / f"c{case}" / "T1.nii.gz", noise(case))
        save(tmp_path / "data" / f"c{case}" / "seg.nii.gz", np.arange(720).reshape(8, 9, 10).astype(np.uint8) % 3)
    out = tmp_path / "spec.yaml"
    done = run("data", "init", str(tmp_path / "data"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    spec = load_spec(out)
    assert spec.folder == tmp_path / "data"
    assert spec.label is not None
    assert spec.label.file_values == {0, 1, 2}
    assert run("data", "check", "--data", str(out), "--workers", "0").returncode == 0
    assert run("data", "init", str(tmp_path / "data"), "--out", str(out)).returncode == 2
    assert run("data", "check", "--data", str(tmp_path / "absent")).returncode == 2
    assert "medmae: 1" in run("data", "init", str(tmp_path / "data")).stdout


def test_listing_faults_are_part_of_the_outcome(tmp_path):
    save(tmp_path / "a.nii.gz", noise(0))
    (tmp_path / "list.csv").write_text("case,t1\na,a.nii.gz\nb,../b.nii.gz\nc,gone.nii.gz\nd,a.nii.gz\n")
    checked = check_cohort(find_cohort(tmp_path / "list.csv"), workers=0)
    assert len(checked.listing) == 1
    assert {(item.case, item.kind) for item in checked.findings} == {("c", "unreadable"), ("d", "duplicate")}
    assert "1 in the listing" in checked.summary()
    assert "gone" not in html_report(checked)


def test_real_data(real_data):
    found = find_cohort(real_data / "small")
    checked = check_cohort(found, workers=0)
    assert {item.case for item in checked.findings if item.error} == set()


def test_check_never_raises_for_a_file(tmp_path):
    assert examine(str(tmp_path / "absent.nii.gz"), "t1n").fault == "no such file"
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.nii.gz")


def test_two_forms_that_disagree_are_a_warning(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    image = nib.Nifti1Image(noise(0), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 5
    image.header.set_sform(np.eye(4), 1)
    image.header.set_qform(moved, 1)
    (tmp_path / "data" / "a").mkdir(parents=True)
    nib.save(image, tmp_path / "data" / "a" / "t1n.nii.gz")
    checked = check_cohort(list_cohort(load_spec(tmp_path / "spec.yaml")), workers=0)
    assert [(item.kind, item.error) for item in checked.findings] == [("two forms", False)]
    assert "disagree by 5 voxels" in checked.findings[0].problem


def test_mixed_voxel_sizes_are_remarked_and_init_proposes_one(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    for case, step in enumerate((1.0, 1.0, 3.0)):
        save(tmp_path / "data" / f"c{case}" / "t1n.nii.gz", noise(case), np.diag([step, 1, 1, 1]))
    checked = check_cohort(list_cohort(load_spec(tmp_path / "spec.yaml")), workers=0)
    assert "2 voxel sizes (1x1x1 mm in 2, 1x1x3 mm in 1)" in checked.remarks()[0]
    assert guess_spec(tmp_path / "data", labels=True).spec.preprocess.spacing == (1, 1, 1)
    assert guess_spec(tmp_path / "data").spec.preprocess.spacing is None
