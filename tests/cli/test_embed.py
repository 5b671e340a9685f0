"""Features as a table through the command line: what is in it, that it can be made again, and everything refused."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.data.cohort import open_cohort
from medmae.data.inference import load_case
from medmae.data.synthetic.cohort import synthesize
from medmae.find import find
from medmae.transfer.backbone import volume_features

PREPROCESS = {"orientation": "RAS", "spacing": None, "crop": "foreground"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cohort"), cases=4, spacing=8.0, seed=3, missing=0.3, workers=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in ("bm_mae", "simclr", "mae"):
        recipe = find(name).recipe(scale="test")
        torch.manual_seed(0)
        data = {"kind": "image"} if name == "mae" else {"preprocess": PREPROCESS}
        folder = tmp_path_factory.mktemp("models") / name
        found[name] = save_model(folder, find(name).build(**recipe), name=name, recipe=recipe, about={"data": data})
    return found


def call(checkpoint: Path, data: object, out: Path, *more: object) -> int:
    line = ["embed", "--checkpoint", checkpoint, "--data", data, "--out", out, "--quiet", *more]
    return main([str(word) for word in line])


def table(path: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    rows = list(csv.DictReader(path.open()))
    return rows, np.array([[float(v) for k, v in row.items() if k[0] == "f" and k[1:].isdigit()] for row in rows])


def test_a_row_is_the_vector_of_its_case_in_either_format(cohort: Path, models, tmp_path: Path) -> None:
    assert call(models["bm_mae"], cohort, tmp_path / "f.csv") == 0
    rows, values = table(tmp_path / "f.csv")
    cases = open_cohort(cohort).cases
    assert [row["case"] for row in rows] == [case.key for case in cases]
    assert "label" not in rows[0]
    about = json.loads((tmp_path / "f.json").read_text())
    assert (about["method"], about["pool"], about["features"], about["per"]) == ("bm_mae", "mean", 48, "case")
    assert about["weights"].startswith("sha256:")
    torch.manual_seed(0)
    method = find("bm_mae").build(**find("bm_mae").recipe(scale="test")).eval()
    ready = load_case(cases[1].images, PREPROCESS, mask=cases[1].mask)
    images = {name: torch.from_numpy(image) for name, image in ready.images.items()}
    own = volume_features(method, images, torch.from_numpy(ready.foreground), spacing=ready.spacing)
    np.testing.assert_allclose(values[1], own.numpy(), atol=1e-4)
    assert call(models["bm_mae"], cohort, tmp_path / "f.parquet", "--batch", 2) == 0
    found = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert json.loads(found.schema.metadata[b"medmae"])["weights"] == about["weights"]
    same = np.stack([found[f"f{i}"].to_numpy() for i in range(48)], 1)
    assert same.dtype == np.float32
    np.testing.assert_allclose(values, same, atol=1e-4)
    assert not (tmp_path / "f.parquet.json").exists()


def test_rows_per_sequence_and_per_region(cohort: Path, models, tmp_path: Path) -> None:
    cases = open_cohort(cohort).cases
    assert call(models["bm_mae"], cohort, tmp_path / "m.csv", "--per", "modality") == 0
    rows, values = table(tmp_path / "m.csv")
    assert [(r["case"], r["sequence"]) for r in rows] == [(c.key, name) for c in cases for name in c.images]
    assert np.isfinite(values).all()
    assert call(models["bm_mae"], cohort, tmp_path / "r.csv", "--per", "region") == 0
    rows, values = table(tmp_path / "r.csv")
    assert {"whole_tumor", "tumor_core", "enhancing"} <= {row["region"] for row in rows}
    whole = {row["case"]: vector for row, vector in zip(rows, values, strict=True) if row["region"] == "whole_tumor"}
    assert call(models["bm_mae"], cohort, tmp_path / "w.csv", "--region", "whole_tumor") == 0
    alone, vectors = table(tmp_path / "w.csv")
    for row, vector in zip(alone, vectors, strict=True):
        np.testing.assert_allclose(vector, whole[row["case"]], atol=1e-5)
    assert call(models["bm_mae"], cohort, tmp_path / "c.csv") == 0
    _, everything = table(tmp_path / "c.csv")
    assert not np.allclose(everything, vectors, atol=1e-4)  # the region is not the whole


def test_a_subset_leaves_out_who_lacks_it_and_hides_the_rest(cohort: Path, models, tmp_path: Path) -> None:
    cases = [case.key for case in open_cohort(cohort).cases if {"t1n", "t2w"} <= set(case.images)]
    assert call(models["bm_mae"], cohort, tmp_path / "s.csv", "--subset", "t1n+t2w") == 0
    rows, _ = table(tmp_path / "s.csv")
    assert [row["case"] for row in rows] == cases
    assert call(models["bm_mae"], cohort, tmp_path / "p.csv", "--subset", "t1n+t2w", "--per", "modality") == 0
    assert {row["sequence"] for row in table(tmp_path / "p.csv")[0]} == {"t1n", "t2w"}


def test_images_have_their_class_beside_them(models, tmp_path: Path, capsys) -> None:
    assert call(models["mae"], "toy-image:6", tmp_path / "i.csv", "--pool", "cls", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 6
    rows, values = table(tmp_path / "i.csv")
    assert len({row["label"] for row in rows}) > 1
    assert values.shape == (6, 32)
    assert call(models["mae"], "toy-image:6", tmp_path / "t.csv", "--pool", "cls", "--split", "train") == 0
    train, _ = table(tmp_path / "t.csv")
    assert call(models["mae"], "toy-image:6", tmp_path / "x.csv", "--pool", "mean_max") == 0
    _, twice = table(tmp_path / "x.csv")
    assert twice.shape == (6, 64)
    assert (twice[:, 32:] >= twice[:, :32]).all()  # no maximum is below its mean
    assert [r["case"] for r in train] == [r["case"] for r in rows if r["split"] == "train"]


def test_odd_names_and_broken_files_of_a_spec_that_skips_them(models, tmp_path: Path, capsys) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for name in (b"a.png", b"\xff\xfe b.png", b"=c.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(
            data / os.fsdecode(name)
        )
    (data / "broken.png").write_bytes(b"no image")
    spec = tmp_path / "spec.yaml"
    spec.write_text("kind: image\nroot: data\n")
    assert call(models["mae"], spec, tmp_path / "f.csv") == 3
    assert "broken.png: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "f.csv").exists()
    spec.write_text("kind: image\nroot: data\non_error: skip\n")
    for name in ("f.csv", "f.parquet"):
        line = ["embed", "--checkpoint", models["mae"], "--data", spec, "--out", tmp_path / name]
        assert main([str(word) for word in line]) == 0
        assert "1 sample(s) left out" in capsys.readouterr().err
    rows, _ = table(tmp_path / "f.csv")
    assert [row["case"] for row in rows] == ["'=c.png", "a.png", "\\udcff\\udcfe b.png"]
    known = pyarrow.parquet.read_table(tmp_path / "f.parquet").column("case").to_pylist()
    assert known == ["=c.png", "a.png", "\\udcff\\udcfe b.png"]


def test_what_cannot_be_meant_is_refused(cohort: Path, models, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "f.csv"

    def refused(code: int, *more: object, words: str, checkpoint: str = "bm_mae", data: object = cohort) -> None:
        assert call(models[checkpoint], data, out, *more) == code, more
        said = capsys.readouterr().err
        assert words in said, said
        assert not list(tmp_path.glob("f.*"))

    refused(2, "--per", "patient", words="--per must be one of")
    refused(2, "--subset", "flair9", words="--subsets")
    refused(2, "--subset", "all", words="name one subset")
    refused(2, "--region", "moon", words="--region moon")
    refused(2, "--per", "region", "--region", "whole_tumor", words="leave out --region")
    refused(2, "--split", "some", words="--split")
    refused(5, "--per", "modality", words="joins the sequences", checkpoint="simclr")
    refused(5, "--pool", "cls", words="no [CLS] token", checkpoint="simclr")
    refused(2, "--per", "region", words="are for volumes", checkpoint="mae", data="toy-image:4")
    refused(2, "--subset", "t1n", words="no sequences to leave out", checkpoint="mae", data="toy-image:4")
    refused(2, words="no such file", data=tmp_path / "nowhere")
    assert call(models["bm_mae"], cohort, tmp_path / "f.xlsx") == 2
    assert ".parquet or .csv" in capsys.readouterr().err
    out.write_text("mine")
    assert call(models["bm_mae"], cohort, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    (tmp_path / "f.json").write_text("mine")  # the JSON beside a CSV is not replaced unasked, either
    assert call(models["bm_mae"], cohort, out) == 2
    (tmp_path / "f.json").unlink()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert call(models["bm_mae"], cohort, tmp_path / "f.parquet") == 4
    assert "pip install 'medmae[tables]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("f.*"))


def test_a_broken_image_leaves_nothing_behind(models, tmp_path: Path, capsys) -> None:
    spec = synthesize(tmp_path / "cohort", cases=2, spacing=8.0, seed=4, workers=0)
    image = next(iter(open_cohort(spec).cases[0].images.values()))
    image.write_bytes(image.read_bytes()[:100])
    assert call(models["bm_mae"], spec, tmp_path / "f.csv") == 3
    assert "1 of 2 case(s) cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("f.*"))
