"""The command line of ``medmae nnunet``: what it prints, and the exit code of everything that cannot be done."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from medmae.cli import main
from medmae.transfer.nnunet.folders import KINDS, shim, variable


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for kind in KINDS:
        monkeypatch.setenv(variable(kind), "to be restored")
        monkeypatch.delenv(variable(kind))
    monkeypatch.chdir(tmp_path)


def dataset(root: Path, kind: str = "raw") -> Path:
    folder = root / f"nnUNet_{kind}" / "Dataset007_Tiny"
    folder.mkdir(parents=True)
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "edema": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**about, "numTraining": 0}))
    return folder


def plans(folder: Path) -> None:
    full = {"data_identifier": "nnUNetPlans_3d_fullres", "patch_size": [16, 16, 16], "architecture": {}}
    value = {"dataset_name": folder.name, "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": full}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(value))


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nnunet", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("export", "plan", "train", "predict", "trainers"))


def test_the_commands_do_not_wait_for_nnunet() -> None:
    code = "import sys, medmae.cli.nnunet; assert not {'torch', 'nnunetv2'} & set(sys.modules), 'imported'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_trainers_prints_the_line_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nnunet", "trainers"]) == 0
    out, err = capsys.readouterr()
    assert out == f"export nnUNet_extTrainer={shim()}\n"
    assert "MEDMAE_CHECKPOINT" in err
    assert main(["--json", "nnunet", "trainers"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(shim())


@pytest.mark.parametrize("line", [["plan", "1"], ["train", "1"], ["predict", "1", "-i", "a", "-o", "b"]])
def test_without_nnunet(line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nnunetv2" else real(name, *a))
    assert main(["nnunet", *line]) == 4
    assert "pip install 'medmae[nnunet]'" in capsys.readouterr().err


needs_nnunet = pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnU-Net is not installed")


@needs_nnunet
@pytest.mark.parametrize("line", [["plan", "8"], ["train", "8"], ["predict", "8", "-i", "a", "-o", "b"]])
def test_an_unknown_dataset(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path)
    assert main(["nnunet", *line, "--nnunet-root", str(tmp_path)]) == 2
    assert "no nnU-Net dataset '8'" in (text := capsys.readouterr().err)
    assert "there is Dataset007_Tiny" in text


@needs_nnunet
def test_the_folders_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path / "nnunet", "preprocessed")
    assert main(["nnunet", "train", "7"]) == 3
    text = capsys.readouterr().err
    assert f"raw {tmp_path}/nnunet/nnUNet_raw" in text
    assert "run `medmae nnunet plan Dataset007_Tiny` first" in text


@needs_nnunet
def test_plans_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans(dataset(tmp_path, "preprocessed"))
    assert main(["nnunet", "train", "7", "--nnunet-root", str(tmp_path)]) == 3
    assert "holds no preprocessed case" in capsys.readouterr().err
    assert main(["nnunet", "train", "7", "--plans", "other", "--nnunet-root", str(tmp_path)]) == 2
    assert "there is nnUNetPlans" in capsys.readouterr().err


@needs_nnunet
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "cosine"], "there is sawtooth, warmup, scratch"),
        (["--from-scratch", "--checkpoint", "x"], "exclude one another"),
        (["--modality-dropout", "2"], "must lie in [0, 1]"),
        (["--epochs", "0"], "epochs is 0"),
    ],
)
def test_options_that_cannot_be_meant(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nnunet", "train", "7", *options]) == 2
    assert message in capsys.readouterr().err


@needs_nnunet
def test_predicting_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path)
    line = ["nnunet", "predict", "7", "-i", "images", "-o", "out", "--nnunet-root", str(tmp_path)]
    assert main(line) == 2
    assert "Train one with `medmae nnunet train`" in capsys.readouterr().err
