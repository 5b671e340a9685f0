"""One segmentation network for every subset, through the command line: train, go on where it stopped, refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from labeled import label_of, make, put
from segmenters import PREPROCESS, SEQUENCES, predict, pretrained, regions, rows, run, segment, untrained

from medmae.checkpoint import load_model, save_model
from medmae.cli import main
from medmae.find import find
from medmae.transfer.finetuned import Finetuned
from medmae.transfer.task_folder import load_task


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regions(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("start"))


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_from_a_checkpoint_to_every_subset(cohort: Path, start: Path, cache: Path, tmp_path: Path, capsys) -> None:
    line = ("--checkpoint", start, "--label", "regions", "--steps", 3, "--lr", 0.01, "--class-weights", "balanced")
    out = tmp_path / "out"
    assert segment(cohort, out, *line, "--distill", 1, cache=cache) == 0
    assert "Dice" in capsys.readouterr().out
    found = rows(out / "test")
    assert {row["target"] for row in found} == {"core", "whole", "enhancing"}
    assert {row["given"] for row in found} <= {"t1n", "t2w", "t1n+t2w"}
    config = json.loads((out / "model" / "config.json").read_text())
    told = config["task"]
    assert told["label"]["names"] == ["whole", "core", "enhancing"]
    assert told["label"]["paint"] == [2, 1, 4]
    weights = told["recipe"]["objective"]["weights"]
    assert weights[2] > weights[1] > weights[0]
    assert sum(weights) / 3 == pytest.approx(1)
    assert told["pretrained"]["weights"].startswith("sha256:")
    assert config["data"]["subjects"]
    loaded = load_task(out, kind="segment").method  # not the weights it began with
    before = load_model(start).method.state_dict()
    key = next(name for name in before if name.startswith("encoder.") and name.endswith("qkv.weight"))
    assert not torch.equal(before[key], loaded.state_dict()[f"backbone.{key}"])


class Interrupt(KeyboardInterrupt):
    """Somebody pulled the plug."""


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(cohort, start, cache, tmp_path: Path, monkeypatch) -> None:
    line = ("--checkpoint", start, "--no-evaluate", "--distill", 1, "--steps", 4, "--lr", 0.01,
            "--set", "train.checkpoint_every=2", "--set", "train.validate_every=2")  # fmt: skip
    assert segment(cohort, tmp_path / "whole", *line, cache=cache) == 0
    done, after = iter(range(1, 99)), Finetuned.after_step

    def stop(self: Finetuned) -> None:
        after(self)
        if next(done) == 3:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(Finetuned, "after_step", stop)
        assert segment(cohort, tmp_path / "parts", *line, cache=cache) == 130
    assert not (tmp_path / "parts" / "DONE").exists()
    assert segment(cohort, tmp_path / "parts", *line, "--resume", cache=cache) == 0
    one, two = (load_task(tmp_path / name).method.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_with_and_without_weights_the_samples_are_the_same(cohort, start, cache, tmp_path: Path, monkeypatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    forward = Finetuned.forward

    def spy(self, batch):
        seen[name] += [batch["t1n"].clone(), batch["label"].clone(), batch["key"].clone()]
        return forward(self, batch)

    monkeypatch.setattr(Finetuned, "forward", spy)
    heads = []
    for name, more in (("with", ()), ("without", ("--from-scratch",))):
        seen[name] = []
        line = ("--checkpoint", start, "--no-evaluate", "--steps", 2, "--lr", 1e-12, *more)
        assert segment(cohort, tmp_path / name, *line, cache=cache) == 0
        heads.append(load_task(tmp_path / name).method.head.state_dict())
    assert len(seen["with"]) == len(seen["without"]) > 6
    assert all(torch.equal(a, b) for a, b in zip(seen["with"], seen["without"], strict=True))
    for name, value in heads[0].items():
        torch.testing.assert_close(value, heads[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["resenc_mae", "spark3d"])
def test_convolutional_encoders(cohort: Path, cache: Path, tmp_path: Path, method: str) -> None:
    start = pretrained(tmp_path / "start", method=method)
    line = ("--checkpoint", start, "--steps", 1, "--folds", 2, "--fold", 1, "--subsets", "t1n")
    assert segment(cohort, tmp_path / "out", *line, cache=cache) == 0
    assert {row["given"] for row in rows(tmp_path / "out" / "test")} == {"t1n"}


def test_the_published_decoder_is_tied_to_its_subset(cohort: Path, cache: Path, tmp_path: Path, capsys) -> None:
    found = find("bm_mae")
    recipe = found.recipe(scale="test", sequences=SEQUENCES, depth=4, width=24, size=[16, 16, 16], patch=[16, 16, 16])
    about = {"data": {"sequences": list(SEQUENCES), "preprocess": PREPROCESS}}
    start = save_model(tmp_path / "start", found.build(**recipe), name="bm_mae", recipe=recipe, about=about)
    line = ("--checkpoint", start, "--preset", "published", "--steps", 1)
    assert segment(cohort, tmp_path / "bad", *line, "--sequences", "t1n", "--modality-dropout", 0.5, cache=cache) == 2
    assert segment(cohort, tmp_path / "bad", *line, "--sequences", "t1c", cache=cache) == 2
    assert segment(cohort, tmp_path / "out", *line, "--sequences", "t2w", cache=cache) == 0
    assert {row["given"] for row in rows(tmp_path / "out" / "test")} == {"t2w"}
    capsys.readouterr()
    image = cohort.parent / "p0" / "t1n.nii.gz"
    assert predict(tmp_path / "out", tmp_path / "p.nii.gz", "--t1n", image) == 3
    assert "the model knows t2w" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, "--checkpoint (weights to start from) or --from-scratch", ()),
        (2, "--planner: of --backend nnunet", ("--from-scratch", "--planner", "ResEncL")),
        (2, "--label", ("--from-scratch", "--label", "things")),
        (2, "--class-weights", ("--from-scratch", "--class-weights", "some")),
        (2, "--label-share", ("--from-scratch", "--label-share", "2")),
        (2, "--preset", ("--from-scratch", "--preset", "other")),
        (2, "needs --preset published", ("--from-scratch", "--sequences", "t1n")),
        (2, "--fold all", ("--from-scratch", "--fold", "all")),
        (2, "--fold 2", ("--from-scratch", "--folds", "2", "--fold", "2")),
        (2, "modality dropout", ("--from-scratch", "--scale", "test", "--distill", "1", "--modality-dropout", "0")),
        (2, "--schedule", ("--from-scratch", "--schedule", "zigzag")),
        (2, "steps", ("--from-scratch", "--steps", "3", "--epochs", "2")),
        (5, "does not exist", ("--checkpoint", "nowhere")),
    ],
)
def test_what_cannot_be_meant_is_said(cohort, cache, tmp_path: Path, capsys, code: int, words: str, more) -> None:
    assert segment(cohort, tmp_path / "out", *more, cache=cache) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_the_other_backend_are_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    line = ("finetune", "segment", "--data", cohort, "--out", tmp_path / "out", "--from-scratch")
    assert run(*line, "--distill", 1, "--cache", tmp_path) == 2
    assert "--distill, --cache: of --backend medmae" in capsys.readouterr().err
    assert run(*line, "--epochs", 1.5) == 2
    assert "whole epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (lambda c: put(c / "p2" / "seg.nii.gz", label_of(values=(1, 7))), 3, "value(s) 7 are no class"),
        (lambda c: put(c / "p2" / "seg.nii.gz", label_of()[1:]), 3, "not on the grid of"),
        (lambda c: put(c / "p2" / "seg.nii.gz", label_of().astype(np.float32) / 2), 3, "no whole numbers"),
        (lambda c: [p.unlink() for p in c.glob("*/seg.nii.gz")], 3, "none of 6 case(s) has a label"),
        (lambda c: [put(p, np.zeros_like(label_of())) for p in c.glob("*/seg.nii.gz")], 3, "are empty"),
        (lambda c: (c / "p2" / "seg.nii.gz").write_bytes(b"x" * 400), 3, "p2"),
        (lambda c: (c / "spec.yaml").write_text((c / "spec.yaml").read_text().replace("label:", "# label:")), 2,
         "no 'label'"),
    ],
)  # fmt: skip
def test_faults_of_the_labels_are_said(start: Path, tmp_path: Path, capsys, fault, code: int, words: str) -> None:
    spec = make(tmp_path / "c")
    fault(tmp_path / "c")
    out = tmp_path / "out"
    assert segment(spec, out, "--checkpoint", start, "--steps", 1, cache=tmp_path / "cache") == code
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_checkpoint_for_other_sequences_or_of_another_task(cohort, tmp_path: Path, capsys) -> None:
    model = untrained(tmp_path / "model")
    other = pretrained(tmp_path / "other", sequences=("ct", "pet"))
    assert segment(cohort, tmp_path / "out", "--checkpoint", other) == 5
    assert "none in common" in capsys.readouterr().err
    assert segment(cohort, tmp_path / "out", "--checkpoint", model) == 5
    assert "fine-tuned already" in capsys.readouterr().err


def test_cases_without_a_label_are_left_aside(start: Path, tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c", test=0.0)
    (tmp_path / "c" / "p4" / "seg.nii.gz").unlink()
    line = ("finetune", "segment", "--backend", "medmae", "--data", spec, "--out", tmp_path / "out", "--steps", 1)
    more = ("--checkpoint", start, "--workers", 0, "--cache", tmp_path / "cache", "--device", "cpu")
    assert main([str(word) for word in (*line, *more)]) == 0
    said = capsys.readouterr().err
    assert "1 case(s) left aside: no labels" in said
    assert "nothing was measured" in said
