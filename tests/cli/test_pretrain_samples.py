"""``medmae pretrain`` and ``medmae data check`` on images: from a folder to a model, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmae.cli import main

COMMON = ("--scale", "test", "--steps", 3, "--batch", 4, "--workers", 0, "--device", "cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAE_CACHE", str(tmp_path_factory.getbasetemp() / "medmae-cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, gray and colored."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(12):
        place = root / ("cat", "dog")[number % 2]
        place.mkdir(exist_ok=True)
        shape = (40, 50) if number == 5 else (40 + number, 50, 3)
        Image.fromarray(draw.integers(0, 255, shape).astype(np.uint8)).save(place / f"{number}.png")
    return root


def pretrain(data: Any, out: Path, *more: Any, method: str = "mae") -> int:
    return main([str(word) for word in ("pretrain", "--method", method, "--data", data, "--out", out, *COMMON, *more)])


def weights(out: Path) -> dict[str, torch.Tensor]:
    from medmae.checkpoint import load_model

    return load_model(out / "model").method.state_dict()


@pytest.mark.slow
def test_a_toy_becomes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medmae.checkpoint import load_model

    out = tmp_path / "run"
    assert pretrain("toy-image:40", out) == 0
    said = capsys.readouterr().err
    assert "Pre-training mae on toy-image" in said
    assert "samples   40: 32 to train, 4 to validate, 4 held out" in said
    assert sorted(path.name for path in (out / "qc").iterdir())[:1] == ["step_000003_1.png"]
    for name in ("report.html", "config.yaml", "DONE", "data/manifest.json", "model/model.safetensors"):
        assert (out / name).exists()
    report = (out / "report.html").read_text()
    assert "toy-image" in report
    loaded = load_model(out / "model")
    data = loaded.config["data"]
    assert data["kind"] == "image"
    assert len(data["subjects"]) == 32
    assert data["reading"]["size"] == [32, 32]
    manifest = json.loads((out / "data" / "manifest.json").read_text())
    assert len(manifest["split"]["test"]) == 4


def test_a_folder_with_its_config_and_settings(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "run", tmp_path / "mine.yaml"
    config.write_text(f"method: {{name: mae, scale: test}}\ndata: {{path: {folder}, split: {{test: 0.25}}}}\n")
    more = ("--config", config, "--out", out, "--set", "data.reading.flip=0", "--set", "data.repeat=2", "--json")
    assert main([str(w) for w in ("pretrain", *COMMON, *more)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 3
    assert "12 image sample(s) of 12 subject(s), 2 class(es): cat, dog" in said.err
    assert "samples   12: 8 to train, 1 to validate, 3 held out" in said.err
    data = json.loads((out / "model" / "config.json").read_text())["data"]
    assert data["options"] == {"flip": 0}
    assert data["reading"]["flip"] == 0
    assert data["repeat"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("fcmae", ()),
        ("ca_mae", ("--set", "method.sequences=[red,green,blue]")),
        ("multimae", ("--set", "method.sequences=[rgb]")),
        ("satmae", ("--set", "method.groups=[[0,1],[2]]")),
    ],
)
def test_every_method_for_images(tmp_path: Path, folder: Path, method: str, more: tuple[Any, ...]) -> None:
    data = tmp_path / "colored"
    data.mkdir()
    for path in folder.rglob("*.png"):
        if path.name != "5.png":  # gray fills the colors of one image, not of named channels
            (data / path.name).symlink_to(path)
    assert pretrain(data, tmp_path / "run", *more, method=method) == 0
    assert (tmp_path / "run" / "DONE").exists()


def commands() -> list[str]:
    """What the shipped configs name to try."""
    texts = [path.read_text() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]
    return [line for text in texts for line in re.findall(r"# Try it small:\n#   medmae (.*)", text)]


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_what_the_configs_name_to_try(tmp_path: Path, command: str) -> None:
    words = [f"{word}:24" if word.startswith("toy-") else word for word in shlex.split(command)]
    assert "toy-" in command
    assert main([*words, "--steps", "2", "--workers", "0", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "DONE").exists()


@pytest.mark.slow
def test_broken_files_are_refused_or_skipped(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for path in folder.rglob("*.png"):
        (data / path.name).write_bytes(path.read_bytes())
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:2000])
    assert pretrain(data, out) == 3
    said = capsys.readouterr().err
    assert "1 of 12 sample(s) cannot be used" in said
    assert f"{data / '3.png'}: cannot be read as an image" in said
    assert "data.on_error=skip" in said
    assert not out.exists()
    assert pretrain(data, out, "--set", "data.on_error=skip") == 0
    said = capsys.readouterr().err
    assert "1 sample(s) left out" in said
    assert "samples   11:" in said
    assert main(["data", "check", "--data", str(data)]) == 3


@pytest.mark.slow
def test_resuming_continues_where_it_stopped(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(folder, tmp_path / "whole", "--steps", 6, "--set", "train.schedule_unit=step") == 0
    part = ("--set", "train.checkpoint_every=3")
    out = tmp_path / "part"
    assert pretrain(folder, out, "--steps", 6, *part) == 0
    (out / "checkpoints").joinpath("step-000000006.pt").unlink()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000003.pt"]
    (out / "DONE").unlink()
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert "Resumed from step-000000003.pt: 3 of 6 steps are done." in capsys.readouterr().err
    one, two = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path, folder: Path) -> None:
    assert pretrain(folder, tmp_path / "alone") == 0
    assert pretrain(folder, tmp_path / "two", "--workers", 2) == 0
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def bad_channels(root: Path) -> Path:
    np.save(root / "five.npy", np.random.default_rng(0).random((5, 40, 40)))
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(root / "three.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(root / "trees.png")
    return root


def missing_file(root: Path) -> Path:
    (root / "table.csv").write_text("path,label\ngone.png,a\n")
    return root / "table.csv"


def odd_spec(root: Path) -> Path:
    (root / "data.yaml").write_text("kind: image\nroots: .\n")
    return root / "data.yaml"


@pytest.mark.parametrize(
    ("data", "more", "code", "words"),
    [
        (bad_channels, (), 3, r"five.npy: it has 5 channel(s), where ROOT/three.png has 3, and the method reads 3"),
        ("toy-image:20", ("--set", "method.size=[30,30]"), 2, "not a multiple of patch (8, 8)"),
        ("toy-image:20", ("--set", "method.size=[32,32,32]"), 2, "images have two axes"),
        ("toy-image:20", ("--set", "data.reading.flop=1"), 2, "data.reading has no flop"),
        ("toy-image:20", ("--set", "data.crop=[1,1,1]"), 2, "data.crop"),
        ("toy-image:20", ("--set", "data.on_error=pass"), 2, "data.on_error = 'pass' is not fail or skip"),
        ("toy-image:20", ("--set", "data.split.val=2"), 2, "data.split.val"),
        ("toy-imagine", (), 2, "there is no toy called 'toy-imagine'"),
        ("toy-video", (), 2, "toy-video makes video data, and image data is wanted"),
        (lambda root: root, (), 3, "no image files in it or below"),
        (lambda root: root / "gone", (), 2, "no such file or folder"),
        (missing_file, (), 3, "table.csv:2: ROOT/gone.png: no such file"),
        (odd_spec, (), 2, "data.yaml:2: unknown key 'roots'. Did you mean 'root'"),
    ],
)
def test_refusals_leave_nothing_behind(
    tmp_path: Path, data: Any, more: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    given = data if isinstance(data, str) else data(root)
    assert pretrain(given, tmp_path / "run", *more) == code
    assert words.replace("ROOT", str(root)) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_volume_method_says_that_a_toy_is_no_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain("toy-image", tmp_path / "run", method="bm_mae") == 2
    assert "bm_mae reads 3-D cohorts, and toy-image is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "data", "words"),
    [
        ("bm_mae", "folder", "holds image data. `medmae methods` lists what reads it"),
        ("bm_mae", "spec", "bm_mae reads 3-D cohorts, and"),
        ("audio_mae", "cohort", "audio_mae is a method for audio data, and --data names a 3-D cohort"),
        ("audio_mae", "folder", "no audio files in it or below"),
        ("mae", "spec", "describes audio data, and image data is wanted"),
        ("mae", None, "There is no data: --data FOLDER"),
        ("mae", "~nobody-is-called-so/x", "no such file or folder"),
        ("multimae", "toy-image:8", "--set 'method.sequences=[rgb]'"),
        ("satmae", "toy-image:8", "the method reads 6, the bands 0 to 5 of method.groups: name there"),
        ("fcmae", "bands", "it has 5 channel(s), and the method reads 3 (--set method.channels=5)"),
    ],
)
def test_method_and_data_must_be_of_one_kind(
    tmp_path: Path, folder: Path, method: str, data: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text("kind: audio\n")
    (tmp_path / "bands").mkdir()
    for i in range(3):
        np.save(tmp_path / "bands" / f"{i}.npy", np.random.default_rng(i).normal(size=(5, 40, 40)))
    (tmp_path / "cohort.yaml").write_text("medmae: 1\nname: x\nsequences: [t1n]\n")
    given = {"folder": folder, "spec": tmp_path / "spec.yaml", "cohort": tmp_path / "cohort.yaml",
             "bands": tmp_path / "bands"}.get(str(data), data)  # fmt: skip
    what = [] if given is None else ["--data", given]
    line = ["pretrain", "--method", method, *what, "--out", tmp_path / "run", *COMMON]
    assert main([str(word) for word in line]) in (2, 3)
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_data_check_tells_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--data", str(folder)]) == 0
    said = capsys.readouterr().err
    for words in ("12 image sample(s)", "channels     3 (11), 1 (1)", "uint8", "class        dog: 6", "No fault found"):
        assert words in said
    assert main(["data", "check", "--data", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert (told["kind"], told["classes"]) == ("image", {"cat": 6, "dog": 6})
    assert told["cases"][0]["facts"]["size"] == [40, 50]


def test_data_check_names_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_channels(tmp_path)
    (tmp_path / "zero.png").write_bytes(b"")
    report = tmp_path / "report.html"
    assert main(["data", "check", "--data", str(tmp_path), "--json", "--report", str(report)]) == 3
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert not told["ok"]
    assert {finding["case"] for finding in told["findings"]} == {"zero.png", "five.npy"}
    assert "2 of 4 image sample(s) cannot be used" in said.err
    page = report.read_text()
    assert "sample 4" in page
    assert "zero.png" not in page
    assert main(["data", "check", "--data", str(tmp_path), "--quiet"]) == 3
    assert "zero.png" in capsys.readouterr().err
    assert main(["data", "check", "--data", str(tmp_path), "--kind", "smell"]) == 2


def test_pictures_show_original_visible_and_guess(folder: Path) -> None:
    from medmae.cli.qc_views import views
    from medmae.find import find

    method = find("mae").build(scale="test")
    batch = {"image": torch.randn(2, 3, 32, 32), "key": torch.arange(2)}
    (view,) = views(method, batch)
    truth, visible, pasted = view.truth, view.visible, view.pasted
    torch.testing.assert_close(truth, batch["image"])
    hidden = visible.isnan()
    assert 0.7 < float(hidden.float().mean()) < 0.8
    assert torch.equal(truth[~hidden], visible[~hidden])
    assert torch.equal(truth[~hidden], pasted[~hidden])
    assert pasted.isfinite().all()
    assert not torch.equal(truth[hidden], pasted[hidden])
