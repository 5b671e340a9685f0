"""What is said of folders that hold nothing of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmae.cli import main
from medmae.data.kinds.endings import nothing_in


def test_a_folder_of_texts_tells_which_files_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    (tmp_path / "b.log").write_text("b")
    assert main(["data", "check", "--data", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    said = " ".join(told.split())
    assert "no images, videos, clouds, sounds or volumes in it or below, but 2 other file(s)" in said
    assert "such as b.log" in said
    for words in ("volumes: .nii .nii.gz", "images: .png", "videos: .mp4", "clouds: .ply", "sounds: .wav .flac .ogg"):
        assert words in told
    assert "'kind: image'" in said


@pytest.mark.parametrize("name", ["a.png", "b/c.ply", "x.wav", "case/t1n.nii.gz", "dataset.json", "clip.MP4"])
def test_one_file_of_any_kind_is_something(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert nothing_in(tmp_path) is not None
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert nothing_in(tmp_path) is None


def test_an_empty_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    assert "an empty folder" in str(nothing_in(tmp_path))


def test_series_of_dicom_files_need_no_ending(tmp_path: Path) -> None:
    series = tmp_path / "case" / "t1n"
    series.mkdir(parents=True)
    (series / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert nothing_in(tmp_path) is None
