"""MONAI bundles: read, verified and run by MONAI."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medmae.checkpoint import from_pretrained
from medmae.cli import main
from medmae.core.errors import CheckpointError
from medmae.data.inference import load_case
from medmae.transfer.backbone import Backbone, volume_features
from medmae.transfer.export.bundle import check_plain, verify_bundle

sys.path.insert(0, str(Path(__file__).parent))
from exported_models import PREPROCESS, save


def image(path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    nib.save(nib.Nifti1Image((draw.integers(200, 900, inside.shape) * inside).astype(np.int16), np.eye(4)), path)
    return path


@pytest.mark.parametrize("name", ["bm_mae", "resenc_mae"])
def test_monai_runs_it(name: str, tmp_path: Path, capsys) -> None:
    from monai.bundle import run

    model, out = save(tmp_path / "model", name), tmp_path / "bundle"
    assert main(["export", "monai-bundle", str(model), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] <= 1e-6
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md",
                     "models/model.safetensors"]  # fmt: skip
    assert "CC BY 4.0" in (out / "LICENSE").read_text()
    first = {"t1n": str(image(tmp_path / "a.nii.gz", 0)), "t2w": str(image(tmp_path / "b.nii.gz", 1))}
    cases = [{**first, "key": "doe"}, {"t1c": first["t2w"]}]
    run(
        config_file=str(out / "configs/inference.json"),
        meta_file=str(out / "configs/metadata.json"),
        bundle_root=str(out),
        cases=cases,
        output_dir=str(tmp_path / "eval"),
        device="$torch.device('cpu')",
    )
    rows = list(csv.reader((tmp_path / "eval" / "features.csv").open()))
    assert [row[:2] for row in rows[1:]] == [["doe", "t1n t2w"], ["1", "t1c"]]
    backbone = Backbone(from_pretrained(model))
    found = load_case(first, PREPROCESS)
    images = {key: torch.from_numpy(value) for key, value in found.images.items()}
    want = volume_features(backbone, images, torch.from_numpy(found.foreground), spacing=found.spacing)
    assert rows[0][-1] == f"feature_{len(want) - 1}"
    np.testing.assert_allclose(np.array(rows[1][2:], float), want.numpy(), rtol=0, atol=1e-6)


def test_a_bundle_that_is_damaged_is_noticed(tmp_path: Path) -> None:
    model, out = save(tmp_path / "model"), tmp_path / "bundle"
    assert main(["export", "monai-bundle", str(model), "--out", str(out)]) == 0
    assert verify_bundle(out) == 0.0
    path = out / "configs" / "metadata.json"
    meta = json.loads(path.read_text())
    meta["network_data_format"]["outputs"]["pred"]["num_channels"] += 1
    path.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="does not do what"):
        verify_bundle(out)
    del meta["task"]
    path.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="lacks task"):
        verify_bundle(out)


def test_what_cannot_be_a_bundle(tmp_path: Path, capsys) -> None:
    bare, out = save(tmp_path / "bare", about={}), tmp_path / "bundle"
    assert main(["export", "monai-bundle", str(bare), "--out", str(out)]) == 5
    assert "preprocessed" in capsys.readouterr().err
    evil = {"data": {"preprocess": {**PREPROCESS, "normalize": "$__import__('os').system('true')"}}}
    model = save(tmp_path / "evil", about=evil)
    assert main(["export", "monai-bundle", str(model), "--out", str(out)]) == 5
    assert "command" in capsys.readouterr().err
    assert not out.exists()
    assert not list(tmp_path.glob(".medmae-*"))


@pytest.mark.parametrize("value", ["$1", "%x", {"_target_": "os.system"}, ["a", "@b"], {"k": {"x": "a::b"}}])
def test_commands_are_no_plain_values(value: object) -> None:
    with pytest.raises(CheckpointError, match="command"):
        check_plain(value, "recipe")


def test_a_case_must_fit(tmp_path: Path) -> None:
    from medmae.core.errors import UsageError
    from medmae.transfer.export.bundle_run import Extractor
    from medmae.transfer.export.network import PooledFeatures

    model, out = save(tmp_path / "model"), tmp_path / "bundle"
    assert main(["export", "monai-bundle", str(model), "--out", str(out)]) == 0
    recipe = json.loads((model / "config.json").read_text())["recipe"]
    runner = Extractor(PooledFeatures("bm_mae", recipe), out / "models" / "model.safetensors", PREPROCESS)
    for cases, why in (([], "no cases"), ([{"ct": "x"}], "has ct"), ([{"key": "x"}], "has no image")):
        with pytest.raises(UsageError, match=why):
            runner.run(cases, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
