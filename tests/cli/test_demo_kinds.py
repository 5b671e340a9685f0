"""The demo of each kind on toys, very small; and clips that are broken, through the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medmae.cli import main
from medmae.cli.demo_samples import examples, toy_demo
from medmae.core.errors import UsageError
from medmae.demo import TOY_DEMOS

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "kinds"))

from clips import damage, numbered, write_film

TINY = {
    "image": {"size": [64, 64], "patch": [16, 16]},
    "video": {"size": [8, 32, 32], "patch": [2, 16, 16]},
    "points": {"groups": 16, "group_size": 8, "hidden": [16, 16, 16], "decoder_depth": 1},
    "audio": {"size": [64, 32], "patch": [16, 8]},
}
NARROW = {"width": 24, "depth": 1, "heads": 2, "decoder_heads": 2}


def test_a_kind_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--kind", "smell", "--out", str(tmp_path / "demo")]) == 2
    assert "volume, image, video, points, audio" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="at least 60 samples"):
        replace(TOY_DEMOS["image"], samples=10)


@pytest.mark.parametrize("kind", sorted(TOY_DEMOS))
def test_recipes_of_the_demo_can_be_built(kind: str) -> None:
    """And the kind can fill them."""
    from medmae.data.kinds import kind_of
    from medmae.find import find

    settings = TOY_DEMOS[kind]
    found = find(settings.method)
    assert found.card.kind == kind
    kind_of(kind, found.recipe(**settings.recipe), settings.reading)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(TOY_DEMOS))
def test_the_whole_demo(kind: str, tmp_path: Path) -> None:
    """Every stage leaves what it should; run again, everything is reused; other settings redo it."""
    pytest.importorskip("soundfile" if kind == "audio" else "numpy")
    whole = TOY_DEMOS[kind]
    recipe = {**whole.recipe, **NARROW, **TINY[kind]}
    if "decoder_width" in recipe:
        recipe |= {"decoder_width": 16, "decoder_depth": 1}
    settings = replace(whole, recipe=recipe, samples=72, steps=3, batch=8)
    said: list[str] = []
    folder = tmp_path / "demo"
    result = toy_demo(folder, settings, say=said.append)
    for name in ("run/model/model.safetensors", "run/report.html", "picture.png", "probe.json", "report.html"):
        assert (folder / name).is_file()
    found = result.found
    assert sum(found["samples"].values()) == 72
    assert set(found["scores"]) == {"pre-trained", "random weights"}
    assert "chance" in result.table
    text = result.report.read_text("utf-8")
    assert "Linear probe" in text
    assert str(tmp_path) not in text

    said.clear()
    assert toy_demo(folder, settings, say=said.append).table == result.table
    assert said == ["[pretrain] reused", "[probe] reused", "[report] reused"]
    said.clear()
    toy_demo(folder, replace(settings, steps=4), say=said.append)
    assert not any("reused" in line for line in said)


def test_pictures_of_the_toys() -> None:
    for kind in TOY_DEMOS:
        assert examples(kind).startswith(b"\x89PNG")


# ---------------------------------------------------------------- broken clips


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    for i in range(8):
        write_film(tmp_path / "clips" / f"film{i}.mp4", numbered(20))
    np.save(tmp_path / "clips" / "array.npy", numbered(20))
    return tmp_path / "clips"


def pretrain(data: Path, out: Path, *more: str) -> int:
    return main([
        "pretrain", "--method", "videomae", "--scale", "test", "--data", str(data), "--out", str(out), "--steps", "2",
        "--set", "train.workers=0", "--set", "train.device=cpu", *more,
    ])  # fmt: skip


def test_a_broken_clip_is_named_and_stops_the_run(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(clips / "film3.mp4")
    (clips / "film5.mp4").write_bytes(b"")
    assert pretrain(clips, tmp_path / "run") == 3
    said = capsys.readouterr().err
    assert "film3.mp4" in said
    assert "film5.mp4: an empty file" in said.replace("\n", "")
    assert "film4.mp4" not in said
    assert "data.on_error=skip" in said.replace("\n", "")
    assert not (tmp_path / "run").exists()
    assert main(["data", "check", "--data", str(clips)]) == 3
    assert "film3.mp4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_broken_clip_is_named_and_skipped(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(clips / "film3.mp4")
    assert pretrain(clips, tmp_path / "run", "--set", "data.on_error=skip") == 0
    said = capsys.readouterr().err
    assert "1 sample(s) left out" in said
    assert "film3.mp4" in said
    about = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text("utf-8"))
    assert sum(about["cases"].values()) + 1 <= 9
    assert not any("film3" in name for names in about["split"].values() for name in names)


@pytest.mark.parametrize(
    ("setting", "code", "word"),
    [
        ("data.reading.stride=0", 2, "stride"),
        ("data.reading.speed=2", 2, "speed"),
        ("data.reading.short=error", 3, "needs 29"),
        ("method.size=[8,30,32]", 2, "size"),
        ("method.channels=5", 3, "channel"),
    ],
)
def test_settings_and_clips_that_do_not_fit(
    setting: str, code: int, word: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(clips, tmp_path / "run", "--set", setting) == code
    assert word in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()
