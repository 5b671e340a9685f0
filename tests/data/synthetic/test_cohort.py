"""A cohort on disk: complete or resumable, described by a valid spec, never mixed with another."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest

pytest.importorskip("nilearn", reason="extra demo")

from medmae.core.errors import UsageError
from medmae.data.spec import load_spec
from medmae.data.synthetic import cohort
from medmae.data.synthetic.cohort import synthesize
from medmae.data.synthetic.signal import SEQUENCES

SPACING = 6.0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cohort"
    assert synthesize(folder, cases=5, spacing=SPACING, seed=7, missing=0.4, workers=1) == folder / "spec.yaml"
    return folder


def test_files(made: Path) -> None:
    assert not list(made.rglob(".*"))
    for index in range(5):
        folder = made / f"synth_{index:05d}"
        facts = json.loads((folder / "case.json").read_text())
        names = {path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")}
        assert names == {*facts["sequences"], "seg", "mask"}
        assert set(facts["sequences"]) <= set(SEQUENCES)
        for path in folder.glob("*.nii.gz"):
            image = nibabel.load(path)
            assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
            assert image.header.get_zooms() == (SPACING,) * 3
            assert image.header.get_xyzt_units()[0] == "mm"
            assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
            np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)


def test_spec_is_valid_and_finds_everything(made: Path) -> None:
    spec = load_spec(made / "spec.yaml")
    assert spec.sequences == SEQUENCES
    assert spec.label is not None
    assert spec.label.classes == {"background": 0, "ncr": 1, "ed": 2, "et": 3}
    assert spec.table is not None
    open_cohort = pytest.importorskip("medmae.data.cohort").open_cohort
    found = open_cohort(made / "spec.yaml")
    assert len(found.cases) == 5
    for case in found.cases:
        assert case.label is not None
        assert case.mask is not None
        assert set(case.images) == {path.stem.removesuffix(".nii") for path in case.label.parent.glob("t*.nii.gz")}
        assert case.table["idh"] in ("mutant", "wildtype")
        assert float(case.table["os_days"]) >= 1


def test_table(made: Path) -> None:
    rows = list(csv.DictReader((made / "clinical.csv").open()))
    assert [row["case"] for row in rows] == [f"synth_{index:05d}" for index in range(5)]
    for row in rows:
        facts = json.loads((made / row["case"] / "case.json").read_text())
        assert {key: str(value) for key, value in facts["patient"].items()} == {
            k: v for k, v in row.items() if k != "case"
        }
        assert row["os_event"] in ("0", "1")


def test_order_and_workers_do_not_matter(made: Path, tmp_path: Path) -> None:
    """Two processes, and the later cases after the earlier ones in a second call: the same bytes."""
    synthesize(tmp_path / "c", cases=3, spacing=SPACING, seed=7, missing=0.4, workers=2)
    synthesize(tmp_path / "c", cases=5, spacing=SPACING, seed=7, missing=0.4, workers=1)
    assert contents(tmp_path / "c") == contents(made)


def test_missing_does_not_change_what_is_there(made: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "c", cases=2, spacing=SPACING, seed=7, workers=1)
    complete = contents(tmp_path / "c")
    assert sum(name.count("/t") for name in complete) == 8
    for name, data in contents(made).items():
        if name.endswith(".nii.gz") and name[:11] in ("synth_00000", "synth_00001"):
            assert complete[name] == data


def test_resumes_after_an_interruption(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "c"
    shutil.copytree(made, folder)
    shutil.rmtree(folder / "synth_00002")
    half = folder / ".synth_00002.12345"
    half.mkdir()
    (half / "t1n.nii.gz").write_bytes(b"half")
    made_now: list[int] = []
    write = cohort.write_case
    monkeypatch.setattr(
        cohort, "write_case", lambda out, index, recipe: (made_now.append(index), write(out, index, recipe))
    )
    synthesize(folder, cases=5, spacing=SPACING, seed=7, missing=0.4, workers=1)
    assert made_now == [2]
    assert contents(folder) == contents(made)


def test_nothing_is_left_of_a_case_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(OSError, match="no space"):
        synthesize(tmp_path / "c", cases=1, spacing=SPACING, workers=1)
    assert not (tmp_path / "c" / "synth_00000").exists()
    monkeypatch.undo()
    synthesize(tmp_path / "c", cases=1, spacing=SPACING, workers=1)
    assert not list((tmp_path / "c").glob(".synth*"))


def test_a_case_another_run_finished_is_kept(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(made, folder)
    recipe = json.loads((folder / "cohort.json").read_text())
    cohort.write_case(folder, 0, recipe)
    assert contents(folder) == contents(made)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    """``kill -9`` of the main process: its workers end, only whole cases are left, and the next run makes the rest."""
    settings = f"cases=8, spacing={SPACING}, seed=7, missing=0.4, quiet=True"
    script = tmp_path / "make.py"
    script.write_text(
        "import sys\nfrom medmae.data.synthetic.cohort import synthesize\n"
        f"if __name__ == '__main__':\n    synthesize(sys.argv[1], workers=2, {settings})\n"
    )
    folder = tmp_path / "c"
    for _ in range(2):
        run = subprocess.Popen([sys.executable, str(script), str(folder)])
        before = len(list(folder.glob("synth_*")))
        deadline = time.monotonic() + 60
        while run.poll() is None and len(list(folder.glob("synth_*"))) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        run.kill()
        run.wait()
        assert not psutil.wait_procs(workers, timeout=20)[1]
        for case in folder.glob("synth_*"):
            assert {"case.json", "seg.nii.gz", "mask.nii.gz"} <= {path.name for path in case.iterdir()}
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    synthesize(tmp_path / "whole", cases=8, spacing=SPACING, seed=7, missing=0.4, workers=1)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"seed": 8}, {"spacing": 5.0}, {"missing": 0.1}, {"cases": 4}])
def test_another_recipe_is_refused(made: Path, change: dict[str, float]) -> None:
    settings = {"cases": 5, "spacing": SPACING, "seed": 7, "missing": 0.4, "workers": 1} | change
    before = contents(made)
    with pytest.raises(UsageError, match="--overwrite"):
        synthesize(made, **settings)  # type: ignore[arg-type]
    assert contents(made) == before


def test_overwrite_replaces_the_cohort_only(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    synthesize(folder, cases=2, spacing=SPACING, seed=1, workers=1)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        synthesize(folder, cases=1, spacing=SPACING, seed=2, workers=1, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    synthesize(folder, cases=1, spacing=SPACING, seed=2, workers=1, overwrite=True)
    assert [path.name for path in folder.glob("synth_*")] == ["synth_00000"]


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "patient.txt").write_text("data")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            synthesize(tmp_path, cases=1, spacing=SPACING, overwrite=overwrite)
    assert contents(tmp_path) == {"patient.txt": b"data"}


def test_every_impossible_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        synthesize(tmp_path / "c", cases=0, spacing=20, seed=-1, missing=1.0, workers=-2)
    for word in ("cases", "spacing", "seed", "missing", "workers"):
        assert f"{word} is" in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_command(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from medmae.data.synthetic.command import run_synthesize

    app = typer.Typer()
    app.command()(run_synthesize)
    words = ["--out", str(tmp_path / "c"), "--cases", "1", "--spacing", "6", "--seed", "2", "--workers", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "spec.yaml" in result.output.replace("\n", "")
    assert (tmp_path / "c" / "synth_00000" / "t2f.nii.gz").is_file()


@pytest.mark.slow
def test_class_and_survival_can_be_read_from_the_tumor() -> None:
    """Over many cases the table follows volumes and location, by more than chance."""
    from medmae.data.synthetic.case import make_case

    cases = [make_case(index, seed=11, spacing=SPACING) for index in range(150)]
    mutant = np.array([case.patient.idh == "mutant" for case in cases])
    share = np.array([case.volumes["et"] / max(sum(case.volumes.values()), 1e-6) for case in cases])
    edema = np.array([case.volumes["ed"] for case in cases])
    assert 0.2 < mutant.mean() < 0.6
    assert share[~mutant].mean() > share[mutant].mean()
    assert np.median(edema[~mutant]) > np.median(edema[mutant])
    size = np.array([case.volumes["et"] + case.volumes["ncr"] for case in cases])
    days, event = (np.array([getattr(case.patient, name) for case in cases]) for name in ("os_days", "os_event"))
    died = (event == 1) & ~mutant
    ranks = [np.argsort(np.argsort(values[died])) for values in (size, days)]
    assert np.corrcoef(*ranks)[0, 1] < -0.1
    assert 0.5 < event.mean() < 1
