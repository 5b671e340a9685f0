"""From a spec to a fine-tuned segmentation: what is handed to nnU-Net, what is done only once, what is refused.

nnU-Net itself is replaced by a stand-in, except in the slow test.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from labeled import REGIONS, label_of, make, model_folder, put

from medmae.cli import evaluate_segment, main


@pytest.fixture
def nnunet(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls of plan, train and predict, in order."""
    pytest.importorskip("nnunetv2")
    from medmae.transfer.nnunet import run, weights

    calls: list[tuple[str, dict[str, Any]]] = []

    def plan(dataset: str, *, folders: Any, **options: Any) -> Any:
        assert (folders.raw / dataset / "dataset.json").is_file()
        calls.append(("plan", {"dataset": dataset, **options}))
        home = folders.preprocessed / dataset
        home.mkdir(parents=True, exist_ok=True)
        (home / "toyPlans.json").write_text("{}")
        return SimpleNamespace(name="toyPlans")

    def train(dataset: str, *, folders: Any, **options: Any) -> Any:
        splits = json.loads((folders.preprocessed / dataset / "splits_final.json").read_text())
        calls.append(("train", {"dataset": dataset, "splits": splits, **options}))
        made = folders.results / dataset / "MedMAETrainer__toyPlans__3d_fullres"
        model_folder(made.parent).rename(made) if not made.exists() else None
        (made / f"fold_{options['fold']}").mkdir(exist_ok=True)
        (made / f"fold_{options['fold']}" / "checkpoint_final.pth").write_bytes(b"")
        return SimpleNamespace(folder=made, plans="toyPlans", dice=0.5)

    def predict(model: Path, inputs: Path, out: Path, **options: Any) -> None:
        calls.append(("predict", options))
        for case in {path.name.removesuffix(".nii.gz")[:-5] for path in inputs.glob("*.nii.gz")}:
            put(out / f"{case}.nii.gz", label_of(int(case[1:])))

    monkeypatch.setattr(weights, "read_source", lambda path: None)
    monkeypatch.setattr(run, "plan", plan)
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(evaluate_segment, "predict_folder", predict)
    return calls


def call(*arguments: object) -> int:
    return main(["finetune", "segment", *map(str, arguments), "--workers", "0", "--quiet"])


def test_one_command_from_spec_to_test_results(nnunet, tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c", missing={1: ("t2w",)})
    line = ("--data", spec, "--out", tmp_path / "out", "--checkpoint", "weights")
    assert call(*line, "--epochs", 3, "--modality-dropout", 0.5, "--subsets", "all") == 0
    assert [name for name, _ in nnunet] == ["plan", "train", "predict", "predict", "predict"]
    plan, train = nnunet[0][1], nnunet[1][1]
    assert plan["dataset"] == train["dataset"] == "Dataset501_toy"
    assert (plan["planner"], plan["configurations"], plan["check"]) == ("ResEncM", ("3d_fullres",), False)
    assert (train["plans"], train["fold"], train["resume"]) == ("toyPlans", "0", False)
    settings = train["settings"]
    assert (settings.checkpoint, settings.epochs, settings.modality_dropout) == ("weights", 3, 0.5)
    assert settings.channels == ("t1n", "t2w")
    assert len(train["splits"]) == 1
    assert nnunet[2][1]["folds"] == ["0"]
    result = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert result["validation_dice"] == 0.5
    assert "Dice" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "test" / "summary.json").read_text())["about"]["cases"] == 1
    record = Path(result["model"]) / "medmae_training.json"
    assert len(json.loads(record.read_text())["subjects"]) == len(train["splits"][0]["train"])
    # the test part may be measured again, the training part may not
    again = ("evaluate", "segment", "--data", str(spec), "--checkpoint", result["model"], "--quiet")
    assert main([*again, "--out", str(tmp_path / "e")]) == 0
    assert main([*again, "--out", str(tmp_path / "f"), "--split", "train"]) == 3


def test_what_is_done_is_not_done_again(nnunet, tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c")
    line = ("--data", spec, "--out", tmp_path / "out", "--from-scratch", "--no-evaluate")
    assert call(*line) == 0
    assert call(*line) == 2
    assert "was trained to the end already" in capsys.readouterr().err
    assert call(*line, "--overwrite") == 0
    assert [name for name, _ in nnunet] == ["plan", "train", "train"]
    home = tmp_path / "out" / "nnunet" / "nnUNet_preprocessed" / "Dataset501_toy"
    (home / "left").write_text("of the old data")
    put(tmp_path / "c" / "p0" / "seg.nii.gz", label_of(5))
    assert call(*line, "--overwrite") == 0
    assert [name for name, _ in nnunet][3:] == ["plan", "train"]
    assert not (home / "left").exists()
    assert call(*line, "--overwrite", "--planner", "ResEncL") == 0
    assert [name for name, _ in nnunet][5:] == ["plan", "train"]


def test_folds_regions_and_stopping_before_the_training(nnunet, tmp_path: Path) -> None:
    spec = make(tmp_path / "c", label=REGIONS, values=(2, 1, 4))
    line = ("--data", spec, "--out", tmp_path / "out", "--from-scratch", "--label", "regions", "--name", "My set")
    assert call(*line, "--plan-only", "--dataset-id", 12) == 0
    assert [name for name, _ in nnunet] == ["plan"]
    root = tmp_path / "out" / "nnunet"
    about = json.loads((root / "nnUNet_raw" / "Dataset012_My_set" / "dataset.json").read_text())
    assert about["labels"]["core"] == [1, 3]
    assert call(*line, "--dataset-id", 12, "--folds", 3, "--fold", 2, "--no-evaluate") == 0
    assert len(nnunet[-1][1]["splits"]) == 3
    assert nnunet[-1][1]["fold"] == "2"


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, "one of them", ()),
        (2, "one of them", ("--from-scratch", "--checkpoint", "x")),
        (2, "--backend", ("--from-scratch", "--backend", "monai")),
        (2, "--label", ("--from-scratch", "--label", "things")),
        (2, "no label.regions", ("--from-scratch", "--label", "regions")),
        (2, "--fold 1", ("--from-scratch", "--fold", "1")),
        (2, "1 to 999", ("--from-scratch", "--dataset-id", "0")),
        (2, "modality-dropout", ("--from-scratch", "--modality-dropout", "2")),
        (2, "no schedule", ("--from-scratch", "--schedule", "slow")),
        (3, "--folds 5", ("--from-scratch", "--folds", "6")),
    ],
)
def test_what_cannot_be_meant_is_said(nnunet, tmp_path: Path, capsys, code: int, words: str, more) -> None:
    spec = make(tmp_path / "c")
    assert call("--data", spec, "--out", tmp_path / "out", *more) == code
    assert words in capsys.readouterr().err
    assert "train" not in [name for name, _ in nnunet]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (lambda c: put(c / "p2" / "seg.nii.gz", label_of(values=(1, 7))), 3, "value(s) 7 are no class (0, 1, 2)"),
        (lambda c: put(c / "p2" / "seg.nii.gz", label_of()[1:]), 3, "label is not on the grid of t1n"),
        (lambda c: (c / "p2" / "t1n.nii.gz").write_bytes(b"x" * 400), 3, "p2"),
        (lambda c: [p.unlink() for p in c.glob("*/seg.nii.gz")], 3, "0 case(s) with a label"),
        (lambda c: [put(p, np.zeros_like(label_of())) for p in c.glob("*/seg.nii.gz")], 3, "every label is empty"),
        (lambda c: (c / "spec.yaml").write_text((c / "spec.yaml").read_text().replace("label:", "# label:")), 2,
         "no 'label'"),
    ],
)  # fmt: skip
def test_faults_of_the_data_are_said(nnunet, tmp_path: Path, capsys, fault, code: int, words: str) -> None:
    spec = make(tmp_path / "c")
    fault(tmp_path / "c")
    assert call("--data", spec, "--out", tmp_path / "out", "--from-scratch") == code
    assert words in capsys.readouterr().err
    assert not nnunet


def test_weights_that_are_not_there_are_missed_before_anything_is_written(tmp_path: Path, capsys) -> None:
    pytest.importorskip("nnunetv2")
    spec = make(tmp_path / "c")
    assert call("--data", spec, "--out", tmp_path / "out", "--checkpoint", tmp_path / "nowhere") == 5
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_few_cases_train_all_the_same(nnunet, tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c", cases=3, val=0.3, test=0.0)
    arguments = ["finetune", "segment", "--data", str(spec), "--out", str(tmp_path / "out"), "--from-scratch"]
    assert main([*arguments, "--workers", "0"]) == 0
    said = capsys.readouterr().err
    assert "only 3 labeled case(s)" in said
    assert "no labeled case in the test part" in said
    splits = nnunet[-1][1]["splits"]
    assert [len(splits[0][part]) for part in ("train", "val")] == [2, 1]


def test_without_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from medmae.core.errors import MissingDependency
    from medmae.transfer.nnunet import folders

    def absent() -> None:
        raise MissingDependency("pip install 'medmae[nnunet]'")

    monkeypatch.setattr(folders, "require", absent)
    spec = make(tmp_path / "c")
    assert call("--data", spec, "--out", tmp_path / "out", "--from-scratch") == 4
    assert "pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_nnunet_itself_trains_predicts_and_is_measured_on_every_subset(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("nnunetv2")
    import cohorts

    monkeypatch.setattr(cohorts, "SIZE", (32, 32, 32))
    spec = make(tmp_path / "c", missing={1: ("t2w",), 3: ("t1n",)}, label=REGIONS, values=(2, 1, 4))
    line = ("--data", spec, "--out", tmp_path / "out", "--from-scratch", "--label", "regions", "--device", "cpu")
    lengths = ("--epochs", 1, "--iterations", 1, "--validation-iterations", 1, "--no-tta", "--subsets", "all")
    assert call(*line, *lengths) == 0
    summary = json.loads((tmp_path / "out" / "test" / "summary.json").read_text())
    assert {entry["given"] for entry in summary["summary"]} == {"t1n", "t2w", "t1n+t2w", "all"}
    assert {entry["target"] for entry in summary["summary"]} == {"core", "whole", "enhancing"}
