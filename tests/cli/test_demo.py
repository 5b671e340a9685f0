"""The demo from beginning to end, very small, and again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmae.cli import main
from medmae.cli.demo_stages import demo
from medmae.core.errors import UsageError
from medmae.demo import DemoSettings, Stages


def test_a_folder_that_is_not_a_demo_is_left_alone(tmp_path: Path) -> None:
    """Also with --overwrite, which removes only what a demo made."""
    (tmp_path / "thesis.tex").write_text("text")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.tex"):
            Stages.open(tmp_path, overwrite=overwrite)
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_removes_what_the_demo_made_and_nothing_else(tmp_path: Path) -> None:
    """A file of the user's that came later stays."""
    stages = Stages.open(tmp_path / "demo", overwrite=False)
    stages.mark("cohort", "key", done=True, seconds=1.0)
    (tmp_path / "demo" / "cohort").mkdir()
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    again = Stages.open(tmp_path / "demo", overwrite=False)
    assert (again.state("cohort", "key"), again.state("cohort", "other"), again.state("run", "key")) == (
        "done",
        "new",
        "new",
    )
    Stages.open(tmp_path / "demo", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["demo.json", "notes.txt"]


def test_settings_that_cannot_be_meant() -> None:
    """Too few cases to split."""
    with pytest.raises(UsageError, match="at least 6 cases"):
        DemoSettings(cases=2)


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage leaves what it should; run again, everything is reused; other settings redo what they change."""
    pytest.importorskip("nilearn")
    settings = DemoSettings(cases=8, spacing=8.0, steps=4, size=(24, 24, 24), width=32, depth=1, shown=1, missing=0.1)
    folder, said = tmp_path / "demo", []
    result = demo(folder, settings, say=said.append, quiet=True)
    assert "reused" not in " ".join(said)
    text = result.report.read_text("utf-8")
    assert len(text) < 15_000_000
    assert "synth_0" not in text, "cases appear as hashes"
    assert str(tmp_path) not in text
    for name in ("run/model/model.safetensors", "run/report.html", "evaluation/summary.json", "picture.png"):
        assert (folder / name).is_file()
    assert list((folder / "reconstructed").glob("*.nii.gz"))
    assert set(result.beaten) == {"mean", "best single", "linear"}
    assert "linear regression" in result.table

    said.clear()
    stamp = result.report.stat().st_mtime_ns
    assert demo(folder, settings, say=said.append, quiet=True).table == result.table
    assert [line for line in said if "reused" not in line] == []
    assert result.report.stat().st_mtime_ns == stamp

    said.clear()
    other = DemoSettings(**{**vars(settings), "steps": 6})
    demo(folder, other, say=said.append, quiet=True)
    assert "[cohort] reused" in said
    assert sum("reused" in line for line in said) == 1
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert max(row["step"] for row in rows) == 6
    capsys.readouterr()
