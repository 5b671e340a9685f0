"""``medmae pretrain`` with methods for images and clips: on volumes where they fit, refused with what to say."""

from __future__ import annotations

import json
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
    assert f"Next: medmae embed --checkpoint {out / 'model'} --data {cohort}" in said
    assert "It reads volumes with" not in said  # size and patch were said
    report = (out / "report.html").read_text("utf-8")
    assert "Columns: the original" in report  # as images are drawn, without errors and windows of training samples
    assert "slices along the first axis" in report
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    table = tmp_path / "features.csv"
    assert main(["embed", "--checkpoint", str(out), "--data", str(cohort), "--out", str(table), "--device", "cpu"]) == 0
    assert "1 case(s) left aside: not all of t1n, t2w" in capsys.readouterr().err
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == [f"case{i}" for i in range(1, 6)]
    assert run(cohort, tmp_path / "three", method, *SIZE, *PATCH, *SMALL, "--set", "method.channels=3") == 2
    assert "the cohort has 2 sequences (t1n, t2w)" in capsys.readouterr().err


def test_weights_are_not_started_from_where_they_know_other_data(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Channels have places and no names: in another order the weights would load and mean something else."""
    assert run(cohort, tmp_path / "run", "mae", *SIZE, *PATCH, *SMALL) == 0
    begin = ("--init", tmp_path / "run")
    assert run(cohort, tmp_path / "same", "mae", *begin) == 0
    turned = cohort.with_name("turned.yaml")
    turned.write_text(cohort.read_text().replace("[t1n, t2w]", "[t2w, t1n]"))
    fewer = cohort.with_name("fewer.yaml")
    fewer.write_text(cohort.read_text().replace("[t1n, t2w]", "[t2w]"))
    capsys.readouterr()
    for other, names in ((turned, "t2w, t1n"), (fewer, "t2w")):
        assert run(other, tmp_path / "other", "mae", *begin) == 2
        assert f"reads t1n, t2w as channels, and the cohort has {names}. Give" in capsys.readouterr().err
    flat = ["pretrain", "--method", "mae", "--scale", "test", "--data", "toy-image:12", "--steps", "1", "--batch", "2",
            "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "flat")]  # fmt: skip
    assert main(flat) == 0
    assert run(cohort, tmp_path / "other", "mae", "--init", tmp_path / "flat") == 2
    assert "trained on images of 32 x 32" in capsys.readouterr().err
    table = str(tmp_path / "features.csv")
    assert main(["embed", "--checkpoint", str(tmp_path / "flat"), "--data", str(cohort), "--out", table]) == 2
    assert "so it describes a 3-D cohort, and mae (flat) reads image data" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_weights_of_clips_may_start_a_run_on_volumes(tmp_path: Path) -> None:
    """What clips call their one entry is no name of a sequence."""
    from medmae.cli.pretrain_checks import check_channels_of, check_window_of

    about = {"method": "mae_st", "recipe": {"size": [8, 32, 32]}, "data": {"kind": "video", "sequences": ["video"]}}
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, **about}))
    (tmp_path / "model.safetensors").touch()
    check_window_of(tmp_path)
    check_channels_of(tmp_path, ["t1n", "t1c", "t2w"])


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


CUBE, TOKEN = [128, 128, 128], [16, 16, 16]


@pytest.mark.parametrize(
    ("method", "said", "size", "patch"),
    [
        *[(name, {}, CUBE, TOKEN) for name in ("mae", "ca_mae", "multimae", "mae_st", "videomae", "videomae_v2")],
        ("fcmae", {}, CUBE, None),
        ("mae_st", {"scale": "tiny"}, CUBE, TOKEN),
        ("ca_mae", {"scale": "test"}, [32, 32, 32], [8, 8, 8]),  # a square that a scale names is meant as a cube
        ("fcmae", {"scale": "test"}, [32, 32, 32], None),
        ("mae_st", {"scale": "test"}, [8, 32, 32], [2, 8, 8]),
        ("mae", {"scale": "huge"}, [126, 126, 126], [14, 14, 14]),
        ("mae", {"patch": [8, 12, 16]}, [128, 120, 128], [8, 12, 16]),
        ("videomae", {"size": [32, 96, 96]}, [32, 96, 96], TOKEN),
        ("ca_mae", {"size": [16, 16, 16], "patch": [4, 4, 4]}, [16, 16, 16], [4, 4, 4]),
    ],
)
def test_the_window_is_chosen_where_nobody_says_it_and_told(
    method: str, said: dict[str, Any], size: list[int], patch: list[int] | None
) -> None:
    from medmae.cli.pretrain import make_plan

    plan = make_plan([("here", {"method": {"name": method, **said}})])
    assert plan.recipe["size"] == size
    assert plan.recipe.get("patch") == patch
    left = [key for key in ("size", "patch") if key in plan.recipe and key not in said]
    told = " ".join(plan.notes)
    for key in left:
        assert f"method.{key}={plan.recipe[key]}".replace(" ", "") in told
        assert f"--set 'method.{key}=" in told
    assert bool(plan.notes) == bool(left)
    assert ("its time" in told) == (method in ("mae_st", "videomae", "videomae_v2"))


def test_the_chosen_window_is_that_of_bm_mae_and_its_own_methods_are_left_alone() -> None:
    from medmae.cli.pretrain import make_plan

    plan = make_plan([("here", {"method": "bm_mae"})])
    assert (plan.recipe["size"], plan.recipe["patch"], plan.notes) == (CUBE, TOKEN, ())


@pytest.mark.parametrize("method", ["mae_st", "fcmae"])
def test_a_run_as_it_is_typed(cohort: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cohort, tmp_path / "run", method, "--scale", "test") == 0
    assert f"{method} is a method for" in capsys.readouterr().err
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("ca_mae", ("--set", "method.size=[32,32]"), "--set 'method.size=[96,96,96]' --set 'method.patch=[16,16,16]'"),
        ("mae", (*SIZE, "--set", "method.patch=[8,8]"), "three axes, or nothing"),
        ("mae_st", ("--set", "method.patch=[0,16,16]"), "must be positive"),
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
