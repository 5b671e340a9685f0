"""Synthesis through the command line: train, resume, predict, evaluate, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.data.cohort import open_cohort
from medmae.data.synthetic.cohort import synthesize
from medmae.find import find
from medmae.transfer.building import build
from medmae.transfer.task_folder import load_task, save_task

NAMES = ("t1n", "t1c", "t2w", "t2f")
PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cohort"), cases=10, spacing=8.0, seed=3, missing=0.3, workers=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def pretrained(folder: Path, *, sequences: tuple[str, ...] = NAMES, **data: object) -> Path:
    found = find("bm_mae")
    recipe = found.recipe(scale="test", sequences=sequences, depth=1)
    torch.manual_seed(0)
    about = {"data": {"sequences": list(sequences), "preprocess": PREPROCESS, **data}}
    return save_model(folder, found.build(**recipe), name="bm_mae", recipe=recipe, about=about)


def untrained(folder: Path, *, kind: str = "synthesize", seed: int = 0, dropout: float = 0.2, **data: object) -> Path:
    """A model that was trained on nobody, and answers something."""
    recipe = {
        "backbone": {"method": "bm_mae", "recipe": find("bm_mae").recipe(scale="test", sequences=NAMES, depth=1)},
        "head": {"kind": "synthesis", "features": 4, "hidden": 8, "dropout": dropout},
        "objective": {"kind": "synthesis", "names": list(NAMES)},
    }
    if kind == "classify":
        recipe |= {"head": {"kind": "linear"}, "objective": {"kind": "classes", "count": 2}}
    torch.manual_seed(seed)
    method = build(recipe)
    if kind == "synthesize":
        torch.nn.init.normal_(method.head.last.weight, std=0.3)
    task = {"kind": kind, "columns": {}, "classes": ["a", "b"] if kind == "classify" else [], "recipe": recipe}
    known = {"preprocess": PREPROCESS, "statistics": {"t1c": {"mean": 500.0, "std": 90.0}}, **data}
    return save_task(folder, method, task=task, about={"data": known})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("model"))


def oblique(path: Path, *, seed: int = 0) -> Path:
    """A head of 1.5 x 1.5 x 4 mm voxels, turned and mirrored."""
    rng, angle = np.random.default_rng(seed), 0.3
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, 1.5, 4.0])
    affine[:3, 3] = (12.0, -30.0, 7.0)
    place = np.indices((26, 30, 12)).astype(float)
    inside = sum(((p - n / 2) / (0.4 * n)) ** 2 for p, n in zip(place, (26, 30, 12), strict=True)) < 1
    nib.save(nib.Nifti1Image((inside * (200 + 40 * rng.random(inside.shape))).astype(np.float32), affine), path)
    return path


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def tune(data: object, out: Path, cache: Path, *more: object) -> int:
    line = ["--data", data, "--out", out, "--device", "cpu", "--workers", 0, "--cache", cache, "--features", 4]
    return run("finetune", "synthesize", *line, *more)


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def test_options_that_cannot_be_meant(cohort: Path, cache: Path, tmp_path: Path, capsys) -> None:
    start, out = pretrained(tmp_path / "start"), tmp_path / "out"

    def refused(words: str, *more: object, code: int = 2, data: object = cohort) -> None:
        assert tune(data, out, cache, *more) == code
        assert words in capsys.readouterr().err

    given = ("--checkpoint", start)
    refused("--checkpoint (weights to start from) or --from-scratch")
    refused("not all 0", *given, "--l1-weight", 0, "--l2-weight", 0, "--ssim-weight", 0)
    refused("at least 0", *given, "--ssim-weight", -1)
    refused("--dropout 1.0", *given, "--dropout", 1)
    refused("--modality-dropout", *given, "--modality-dropout", 0.5)  # something is always hidden
    refused("one sequence only", "--checkpoint", pretrained(tmp_path / "one", sequences=("t1n",)))
    refused("none in common", "--checkpoint", pretrained(tmp_path / "other", sequences=("adc", "pet")), code=5)
    refused("fine-tuned already", "--checkpoint", untrained(tmp_path / "tuned"), code=5)
    two = pretrained(tmp_path / "two", sequences=("t1n", "adc"))
    refused("two of the sequences t1n, adc", "--checkpoint", two, code=3)
    assert not out.exists()


@pytest.mark.slow
def test_a_resumed_run_is_the_run(cohort: Path, cache: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    line = ("--checkpoint", pretrained(tmp_path / "start"), "--batch", 2, "--dropout", 0.1, "--steps", 3)
    line = (*line, "--set", "train.validate_every=2", "--set", "train.checkpoint_every=1")
    assert tune(cohort, tmp_path / "whole", cache, *line) == 0
    done = iter(range(1, 99))

    def after_step(self: object) -> None:
        if next(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medmae.transfer.finetuned.Finetuned.after_step", after_step)
        assert tune(cohort, tmp_path / "parts", cache, *line) == 130
    assert tune(cohort, tmp_path / "parts", cache, *line, "--resume") == 0
    first, second = (load_task(tmp_path / name, kind="synthesize") for name in ("whole", "parts"))
    one, other = first.method.state_dict(), second.method.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    objective = first.task["recipe"]["objective"]
    assert objective["names"] == list(NAMES)
    assert objective["prior"]
    assert all(2 < width < 12 for width in objective["ranges"])
    assert first.task["pretrained"]["weights"].startswith("sha256:")
    assert first.data["augmentation"]["scale"] == 0
    assert "what is missing of t1n, t1c, t2w, t2f" in (tmp_path / "whole" / "model" / "README.md").read_text()
    capsys.readouterr()
    assert tune(cohort, tmp_path / "whole", cache, *line) == 2
    assert "--overwrite" in capsys.readouterr().err


# --- prediction -----------------------------------------------------------------------------------------------------


def test_every_missing_sequence_in_the_geometry_of_the_input(model: Path, tmp_path: Path, capsys) -> None:
    image, out = oblique(tmp_path / "a.nii.gz"), tmp_path / "out"
    line = ["predict", "--checkpoint", model, "--t2w", image, "--device", "cpu", "--overlap", 0.25]
    assert run(*line, "--out", out, "--uncertainty", 3) == 0
    source = nib.load(image)
    stems = {"t1n", "t1c", "t2f"}
    assert {p.name for p in out.iterdir()} == {f"{s}{e}" for s in stems for e in (".nii.gz", "_std.nii.gz", ".json")}
    for stem in stems:
        for ending in ("", "_std"):
            made = nib.load(out / f"{stem}{ending}.nii.gz")
            assert made.shape == source.shape
            np.testing.assert_allclose(made.affine, source.affine, atol=1e-5)
        values, spread = (np.asarray(nib.load(out / f"{stem}{e}.nii.gz").dataobj) for e in ("", "_std"))
        inside = np.asarray(source.dataobj) > 0
        assert spread[inside].mean() > 0
        assert spread.min() >= 0
        assert not spread[~inside].any()
        assert np.isfinite(values).all()
        about = json.loads((out / f"{stem}.json").read_text())
        assert about["synthetic"]
        assert about["uncertainty"]["passes"] == 3
        assert about["units"]["kind"] == ("cohort" if stem == "t1c" else "zscore")
        assert list(about["inputs"]) == ["t2w"]
    first = np.asarray(nib.load(out / "t1c_std.nii.gz").dataobj)
    assert run(*line, "--out", out, "--uncertainty", 3) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*line, "--out", out, "--uncertainty", 3, "--overwrite") == 0  # the passes are the same each time
    np.testing.assert_array_equal(np.asarray(nib.load(out / "t1c_std.nii.gz").dataobj), first)


def test_an_ensemble_is_the_mean_of_its_members(model: Path, tmp_path: Path, capsys) -> None:
    image, other = oblique(tmp_path / "a.nii.gz"), untrained(tmp_path / "other", seed=1, dropout=0.0)

    def made(name: str, *models: Path, more: tuple[object, ...] = ()) -> np.ndarray:
        words = [word for path in models for word in ("--checkpoint", path)]
        out = tmp_path / f"{name}.nii.gz"
        line = ["--t1n", image, "--targets", "t1c", "--units", "zscore", "--out", out, "--device", "cpu", *more]
        assert run("predict", *words, *line, "--overlap", 0) == 0
        return np.asarray(nib.load(out).dataobj)

    first, second, both = made("one", model), made("two", other), made("both", model, other)
    inside = np.asarray(nib.load(image).dataobj) > 0
    np.testing.assert_allclose(both[inside], (first + second)[inside] / 2, atol=1e-4)
    assert np.abs(first - second)[inside].max() > 0.01
    line = ["predict", "--checkpoint", other, "--t1n", image, "--out", tmp_path / "x", "--device", "cpu"]
    assert run(*line, "--uncertainty", 4) == 2
    assert "dropout" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_predict_refuses(model: Path, cohort: Path, tmp_path: Path, capsys) -> None:
    image, out = oblique(tmp_path / "a.nii.gz"), tmp_path / "out"

    def refused(words: str, *line: object, code: int = 2, folder: Path = model) -> None:
        assert run("predict", "--checkpoint", folder, "--device", "cpu", "--out", out, *line) == code
        assert words in capsys.readouterr().err
        assert not out.exists()

    refused("does not know the sequence", "--input", f"adc={image}")
    refused("is both an input", "--t1n", image, "--targets", "t1n,t2w")
    refused("does not know the sequence", "--t1n", image, "--targets", "pet")
    every = [word for name in NAMES for word in (f"--{name}", image)]
    refused("none is missing", *every)
    refused("of no use", "--t1n", image, "--probabilities")
    refused("--overlap", "--t1n", image, "--overlap", 1)
    refused("two passes", "--t1n", image, "--uncertainty", 1)
    refused("a pre-trained model", "--t1n", image, folder=pretrained(tmp_path / "raw"), code=5)
    classify = untrained(tmp_path / "classify", kind="classify")
    refused("of no use for a model that is fine-tuned to classify", "--t1n", image, "--targets", "t1c", folder=classify)
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.eye(4)), flat)
    refused("", "--t1n", flat, code=3)
    assert run("evaluate", "synthesize", "--checkpoint", classify, "--data", cohort, "--out", out) == 5
    assert "cannot synthesize" in capsys.readouterr().err
    assert not out.exists()


def test_a_cohort_is_completed(model: Path, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lacking = [case for case in open_cohort(cohort).cases if 0 < len(case.images) < 4]
    line = ["predict", "--checkpoint", model, "--data", cohort, "--out", out, "--device", "cpu", "--overlap", 0]
    assert run(*line) == 0
    made = {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}
    assert made == {f"{case.file_stem}/{name}.nii.gz" for case in lacking for name in NAMES if name not in case.images}


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluation_with_all_baselines(model: Path, cohort: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    line = ["evaluate", "synthesize", "--checkpoint", model, "--data", cohort, "--out", out, "--device", "cpu"]
    line += ["--overlap", 0, "--fit-cases", 3]
    assert run(*line, "--split", "test") == 0
    rows = list(csv.DictReader((out / "measurements.csv").open()))
    assert {row["method"] for row in rows} == {"model", "mean", "best single", "linear", "boosting"}
    for row in rows:
        assert row["target"] not in row["given"].split("+")
        assert all(np.isfinite(float(row[metric])) for metric in ("psnr", "ssim", "mae", "r2"))
    assert json.loads((out / "summary.json").read_text())["about"]["method"] == "synthesize"
    assert run(*line, "--split", "test") == 2
    assert "results already" in capsys.readouterr().err


def test_training_and_pretraining_cases_are_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    from medmae.cli.leakage import prints_of

    codes = [found.code for found in prints_of(open_cohort(cohort).cases, NAMES)]
    seen = untrained(tmp_path / "seen", subjects=codes[:-1], validation_subjects=codes[-1:])
    line = ["evaluate", "synthesize", "--data", cohort, "--out", tmp_path / "out", "--device", "cpu"]
    assert run(*line, "--checkpoint", seen) == 3
    assert "trained or chosen on all" in capsys.readouterr().err
    assert run(*line, "--checkpoint", seen, "--split", "train") == 3
    assert "--allow-leakage" in capsys.readouterr().err
    loaded = load_task(untrained(tmp_path / "fresh"))
    task = {**loaded.task, "pretrained": {"method": "bm_mae", "weights": "x", "data": {"subjects": codes}}}
    tuned = save_task(tmp_path / "tuned", loaded.method, task=task, about={"data": loaded.data})
    assert run(*line, "--checkpoint", tuned, "--split", "test") == 3
    assert "--allow-leakage" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
