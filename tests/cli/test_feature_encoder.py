"""Features of methods that read sequences as channels: the same stack as in pre-training, and who cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.cli.feature_encoder import open_encoder, untrained
from medmae.data.inference import load_case
from medmae.find import find
from medmae.transfer.backbone import features

NAMES = ("t1n", "t2w")
PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "none", "foreground": "all"}
SIZE = (16, 16, 16)
CASES = 9


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine cases of one window; case0 lacks t1n, case1 has a t2w of one value."""
    root = tmp_path_factory.mktemp("cohort")
    draw = np.random.default_rng(0)
    for number in range(CASES):
        folder = root / f"case{number}"
        folder.mkdir()
        for name in NAMES[number == 0 :]:
            image = (100 + 10 * draw.standard_normal(SIZE)).astype(np.int16)
            image = np.full_like(image, 7) if (number, name) == (1, "t2w") else image
            nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
    (root / "table.csv").write_text("case,age\n" + "".join(f"case{i},{i}\n" for i in range(CASES)))
    (root / "spec.yaml").write_text(
        "medmae: 1\nname: nine\nroot: .\npattern: '{case}/{seq}.nii.gz'\nsequences: [t1n, t2w]\n"
        "table: {file: table.csv, key: case, columns: {age: number}}\npreprocess: {foreground: all, crop: none}\n"
    )
    return root / "spec.yaml"


def save(folder: Path, name: str, *, data: dict[str, Any] | None = None, **recipe: Any) -> Path:
    torch.manual_seed(0)
    found = find(name)
    whole = found.recipe(scale="test", size=SIZE, **recipe)
    about = {"data": {"preprocess": PREPROCESS, "sequences": list(NAMES)} if data is None else data}
    return save_model(folder, found.build(**whole), name=name, recipe=whole, about=about)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    stacked = {name: save(root / name, name, channels=2, patch=(8, 8, 8)) for name in ("mae", "mae_st", "videomae")}
    return {**stacked, "bm_mae": save(root / "bm_mae", "bm_mae", sequences=NAMES)}


def call(verb: str, checkpoint: Path, data: Path, out: Path, *more: object) -> int:
    line = [verb, "--checkpoint", checkpoint, "--data", data, "--out", out, "--device", "cpu", *more]
    return main([str(word) for word in line])


@pytest.mark.parametrize("name", ["mae", "mae_st", "videomae"])
def test_a_row_is_what_the_stack_of_its_sequences_gives(cohort: Path, models, tmp_path: Path, name, capsys) -> None:
    assert call("embed", models[name], cohort, tmp_path / "f.csv", "--batch", 2) == 0
    assert f"1 case(s) left aside: not all of t1n, t2w, which {name} ({name}) reads as channels" in (
        capsys.readouterr().err
    )
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert [row["case"] for row in rows] == [f"case{i}" for i in range(1, CASES)]
    torch.manual_seed(0)
    recipe = find(name).recipe(scale="test", size=SIZE, channels=2, patch=(8, 8, 8))
    method = find(name).build(**recipe).eval()
    for row in rows[:3]:
        files = {sequence: cohort.parent / row["case"] / f"{sequence}.nii.gz" for sequence in NAMES}
        ready = load_case(files, PREPROCESS)
        blank = np.zeros(SIZE, np.float32)  # what a sequence of one value is in pre-training, too
        image = torch.from_numpy(np.stack([ready.images.get(sequence, blank) for sequence in NAMES]))[None]
        assert ("t2w" in ready.images) == (row["case"] != "case1")
        with torch.no_grad():
            own = features(method, {method.sequences[0]: image})[0]
        found = [float(row[f"f{i}"]) for i in range(len(own))]
        np.testing.assert_allclose(found, own.numpy(), atol=1e-4)


def test_a_probe_beside_a_method_that_knows_sequences_by_name(cohort: Path, models, tmp_path: Path, capsys) -> None:
    more = ("--against", models["mae_st"], "--against", "random", "--target", "age", "--kind", "linear", "--folds", 2)
    assert call("probe", models["bm_mae"], cohort, tmp_path / "a", *more) == 0
    assert "1 case(s) left aside: they lack what one of the models reads" in capsys.readouterr().err
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert [model["name"] for model in summary["about"]["models"]] == ["bm_mae (bm_mae)", "mae_st (mae_st)", "random"]
    assert {row["cases"] for row in summary["summary"]} == {CASES - 1}
    back = ("--against", models["bm_mae"], "--target", "age", "--kind", "linear", "--folds", 2)
    assert call("probe", models["mae_st"], cohort, tmp_path / "b", *back, "--subsets", "t2w+t1n") == 0
    capsys.readouterr()
    assert call("probe", models["mae_st"], cohort, tmp_path / "c", *back, "--subsets", "all") == 2
    assert "cannot be shown t1n alone" in capsys.readouterr().err


def test_untrained_weights_read_alike(models) -> None:
    encoder = open_encoder(models["mae"], device="cpu")
    fresh = untrained(encoder, seed=0, device="cpu")
    assert fresh.sequences == encoder.sequences == NAMES


def test_what_channels_cannot_give_is_refused(cohort: Path, models, tmp_path: Path, capsys) -> None:
    def refused(code: int, *more: object, words: str, model: Path = models["mae"]) -> None:
        assert call("embed", model, cohort, tmp_path / "f.csv", *more) == code
        assert words in capsys.readouterr().err

    refused(2, "--subset", "t1n", words="reads t1n, t2w as the channels of one image")
    refused(5, "--per", "modality", words="no features per sequence")
    refused(5, "--pool", "modality", words="no features per sequence")
    nameless = save(tmp_path / "nameless", "mae", channels=2, patch=(8, 8, 8), data={"preprocess": PREPROCESS})
    refused(5, words="does not say which they are: none under data.sequences", model=nameless)
    three = save(tmp_path / "three", "mae", channels=3, patch=(8, 8, 8))
    refused(5, words="t1n, t2w under data.sequences, for 3 channel(s)", model=three)
    other = {"preprocess": PREPROCESS, "sequences": ["t1n", "pd"]}
    refused(3, words="no case has all of", model=save(tmp_path / "pd", "mae", channels=2, patch=(8, 8, 8), data=other))


def test_a_method_for_clips_without_a_cohort_reads_clips(tmp_path: Path) -> None:
    folder = save(tmp_path / "clips", "videomae", patch=(8, 8, 8), data={})
    assert open_encoder(folder, device="cpu").kind == "video"
