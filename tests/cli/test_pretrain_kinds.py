"""``medmae pretrain`` with methods for images and clips: on volumes where they fit, refused with what to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medmae.cli import main

SIZE = ("--set", "method.size=[16,32,16]")
PATCH = ("--set", "method.patch=[8,16,8]")
SMALL = ("--set", "method.width=48", "--set", "method.depth=1", "--set", "method.heads=4",
         "--set", "method.decoder_width=48", "--set", "method.decoder_depth=1",
         "--set", "method.decoder_heads=4")  # fmt: skip
CONVOLUTIONS = ("--set", "method.widths=[12,24]", "--set", "method.depths=[1,1]", "--set", "method.kernel=3",
                "--set", "method.decoder_width=24")  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small cases; one lacks a sequence."""
    root = tmp_path_factory.mktemp("cohort")
    draw = np.random.default_rng(0)
    for number in range(6):
        folder = root / "images" / f"case{number}"
        folder.mkdir(parents=True)
        for name in ("t1n", "t2w")[number == 0 :]:
            image = (100 + 10 * draw.standard_normal((20, 32, 18))).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
    spec = root / "spec.yaml"
    spec.write_text(
        "medmae: 1\nname: six\nroot: images\npattern: '{case}/{seq}.nii.gz'\nsequences: [t1n, t2w]\n"
        "preprocess: {foreground: all}\nsplit: {val: 0.2, test: 0}\n"
    )
    return spec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAE_CACHE", str(tmp_path_factory.getbasetemp() / "medmae-cache"))


def run(cohort: Path, out: Path, method: str, *more: Any) -> int:
    given = ["pretrain", "--data", cohort, "--method", method, "--out", out, "--steps", 2, "--batch", 2,
             "--device", "cpu", "--workers", 0, *more]  # fmt: skip
    return main([str(word) for word in given])


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ca_mae", (*PATCH, *SMALL, "--set", "method.layer_scale=0.1")),
        ("multimae", (*PATCH, *SMALL)),
        ("fcmae", CONVOLUTIONS),
    ],
)
def test_methods_with_named_channels_take_incomplete_patients(
    cohort: Path, tmp_path: Path, method: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    from medmae.checkpoint import load_model

    assert run(cohort, tmp_path / "run", method, *SIZE, *more) == 0
    said = capsys.readouterr().err
    assert "cases     6:" in said
    loaded = load_model(tmp_path / "run")
    assert loaded.method.sequences == ("t1n", "t2w")
    assert loaded.config["recipe"]["size"] == [16, 32, 16]


@pytest.mark.parametrize("method", ["mae", "mae_st", "videomae"])
def test_methods_with_one_entry_get_sequences_as_channels(
    cohort: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmae.checkpoint import load_model

    out = tmp_path / "run"
    assert run(cohort, out, method, *SIZE, *PATCH, *SMALL) == 0
    said = capsys.readouterr().err
    assert "reads sequences as channels (t1n, t2w)" in said
    assert "cases     5:" in said  # the sixth is not complete
    loaded = load_model(out)
    assert loaded.config["recipe"]["channels"] == 2
    assert loaded.config["data"]["sequences"] == ["t1n", "t2w"]
    assert f"Next: medmae info {out / 'model'}" in said
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert run(cohort, tmp_path / "three", method, *SIZE, *PATCH, *SMALL, "--set", "method.channels=3") == 2
    assert "the cohort has 2 sequences (t1n, t2w)" in capsys.readouterr().err


def test_channels_are_stacked_in_the_order_of_the_sequences() -> None:
    import torch

    from medmae.cli.pretrain_kinds import Stacked

    class Two:
        size, sequences = 3, ("b", "a")

        def finish(self, batch: Any, **_: Any) -> Any:
            return {"present": torch.ones(1, 2, dtype=torch.bool), "a": torch.ones(1, 1, 2), "b": torch.zeros(1, 1, 2)}

    made = Stacked(Two(), entry="image").finish({}, device="cpu", training=False)  # type: ignore[arg-type]
    assert list(made) == ["image"]
    assert made["image"].tolist() == [[[0, 0], [1, 1]]]


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("ca_mae", (), "--set 'method.size=[96,96,96]' --set 'method.patch=[16,16,16]'"),
        ("ca_mae", SIZE, "such as: --set 'method.patch=[16,16,16]'"),
        ("mae_st", (), "--set 'method.size=[96,96,96]'"),
        ("mae", ("--set", "method.size=[32,32]"), "three axes"),
        ("fcmae", (*SIZE, "--set", "method.channels=3"), "channels must be 1"),
        ("satmae", SIZE, "a method for image data"),
        ("point_mae", (), "a method for points data"),
        ("audio_mae", (), "a method for audio data"),
    ],
)
def test_refusals_say_what_to_set(
    cohort: Path, tmp_path: Path, method: str, more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort, tmp_path / "run", method, *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
