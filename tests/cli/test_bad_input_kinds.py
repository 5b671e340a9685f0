"""Data of other kinds that cannot be used: named by ``pretrain`` and ``data check``, with an exit code, no traceback.

What is fine beside it, such as names with spaces and letters of any language, is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmae.cli import main

DRAW = np.random.default_rng(0)
METHODS = {"image": "mae", "video": "videomae", "points": "point_mae", "audio": "audio_mae"}
COMMON = ("--scale", "test", "--steps", 1, "--batch", 2, "--workers", 0, "--device", "cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAE_CACHE", str(tmp_path_factory.getbasetemp() / "medmae-cache"))


def call(*words: Any) -> int:
    return main([str(word) for word in words])


def pretrain(data: Any, out: Path, *more: Any, method: str) -> int:
    return call("pretrain", "--method", method, "--data", data, "--out", out, *COMMON, *more)


def picture(path: Path, shape: tuple[int, ...] = (20, 24, 3)) -> None:
    Image.fromarray(DRAW.integers(0, 255, shape).astype(np.uint8)).save(path)


def film(path: Path, *, noise: bool = False) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(16):
            frame = av.VideoFrame.from_ndarray(DRAW.integers(0, 255, (32, 32, 3)).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if noise:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sound(path: Path, samples: int = 8000) -> None:
    import soundfile

    soundfile.write(path, 0.1 * DRAW.normal(size=(samples, 1)), 16000)


def cloud(path: Path, *, broken: bool = False) -> None:
    points = DRAW.normal(size=(300, 3)).astype(np.float32)
    points[5] = np.nan if broken else points[5]
    np.savez(path, points=points)


GOOD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "image": ("bild {} ä.png", picture),
    "video": ("clip {} ü.mp4", film),
    "points": ("wolke {}.npz", cloud),
    "audio": ("ton {} é.wav", sound),
}
CASES: dict[str, tuple[str, str, Callable[[Path], Any], str]] = {
    "text that is called a picture": ("image", "a.png", lambda p: p.write_text("hello"), "is it whole, and an image?"),
    "picture of 0 bytes": ("image", "a.jpg", lambda p: p.touch(), "an empty file (0 bytes)"),
    "link to nowhere": ("image", "a.png", lambda p: p.symlink_to("/no/such.png"), "a link to what is not there"),
    "other channels": ("image", "a.npy", lambda p: np.save(p, np.ones((20, 20, 5), np.float32)), "has 5 channel(s)"),
    "film that was cut off": ("video", "a.mp4", lambda p: film(p, noise=True), "is it whole?"),
    "film of 0 bytes": ("video", "a.mp4", lambda p: p.touch(), "an empty file (0 bytes)"),
    "NaN points": ("points", "a.npz", lambda p: cloud(p, broken=True), "1 of 300 points are NaN or infinite"),
    "text that is called a mesh": ("points", "a.ply", lambda p: p.write_text("hello"), "is it whole?"),
    "sound without a sample": ("audio", "a.wav", lambda p: sound(p, 0), "a recording without a single sample"),
    "sound of 0 bytes": ("audio", "a.flac", lambda p: p.touch(), "an empty file (0 bytes)"),
}


def folder_of(kind: str, root: Path, count: int = 3) -> Path:
    name, make = GOOD[kind]
    root.mkdir()
    for i in range(count):
        make(root / name.format(i))
    return root


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, name, make, words = CASES[case]
    data = folder_of(kind, tmp_path / "a place with spaces")
    make(data / name)
    for command in ("pretrain", "data check"):
        if command == "pretrain":
            assert pretrain(data, tmp_path / "run", method=METHODS[kind]) == 3
        else:
            assert call("data", "check", "--data", data, "--kind", kind, "--workers", 0) == 3
        said = capsys.readouterr().err
        assert str(data / name) in said.replace("\n", "")
        assert words in said.replace("\n", " ")
        assert "on_error=skip" in said.replace("\n", " ")
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", METHODS)
def test_a_folder_of_another_kind_is_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = "audio" if kind == "image" else "image"
    data = folder_of(other, tmp_path / "data")
    assert pretrain(data, tmp_path / "run", method=METHODS[kind]) == 3
    said = capsys.readouterr().err
    assert f"no {kind} files in it or below" in said
    assert f"It holds 3 {other} file(s); `medmae methods` lists what reads them" in said
    assert call("data", "check", "--data", data, "--kind", kind) == 3


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "check", "--data", tmp_path) == 2
    assert "an empty folder" in capsys.readouterr().err
    for method in METHODS.values():
        assert pretrain(tmp_path, tmp_path / "run", method=method) == 3
        assert "Give the folder that holds them" in capsys.readouterr().err


def test_arrays_may_be_of_several_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of("points", tmp_path / "data")
    assert call("data", "check", "--data", data) == 0
    assert "Taken as image; such files can also hold video or points: --kind says so." in capsys.readouterr().err
    assert call("data", "check", "--data", data, "--kind", "points") == 0
    said = capsys.readouterr().err
    assert "Taken as" not in said
    assert "points       300" in said


def test_sizes_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A patch that does not divide the image; a cloud that is smaller than a group."""
    pictures, clouds = folder_of("image", tmp_path / "pictures"), folder_of("points", tmp_path / "clouds")
    assert pretrain(pictures, tmp_path / "run", "--set", "method.size=[30,30]", method="mae") == 2
    assert "is not a multiple of patch (8, 8)" in capsys.readouterr().err
    np.savez(clouds / "few.npz", points=DRAW.normal(size=(7, 3)))
    assert pretrain(clouds, tmp_path / "run", method="point_mae") == 3
    assert "few.npz: 7 points, fewer than the 8 of one group" in capsys.readouterr().err


def test_dates_of_images_come_from_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", DRAW.normal(size=(2, 20, 24)).astype(np.float32))
        rows.append(f"{i}.npy,2016-0{i + 1}-03T10:20; 2017-11-30")
    table = tmp_path / "list.csv"
    table.write_text("path,time\n" + "\n".join(rows) + "\n")
    more = [f"--set=method.{told}" for told in ("stamps=3", "groups=[[0],[1]]", "code_width=24")]
    more.append("--set=method.decoder_code_width=12")
    assert pretrain(table, tmp_path / "run", *more, method="satmae") == 0
    assert len(list((tmp_path / "run" / "qc").glob("*.png"))) >= 1
    line = ("embed", "--checkpoint", tmp_path / "run", "--out", tmp_path / "e.csv", "--device", "cpu", "--data")
    assert call(*line, table) == 0
    capsys.readouterr()
    assert pretrain(tmp_path, tmp_path / "other", *more, method="satmae") == 3
    assert "nothing says when each group was seen" in capsys.readouterr().err
