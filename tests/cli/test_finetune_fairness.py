"""What must not differ between runs that are compared, and what must not be left of a run that was replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from labeled import label_of, make, put
from segmenters import evaluate, predict, pretrained, regions, rows, run, segment, untrained

from medmae.cli.completion_study import _held_out
from medmae.cli.finetune_run import Fitted, Goal, Wish, _divided, _fewer, _forget
from medmae.data.cohort import open_cohort
from medmae.engine.journal import read_rows
from medmae.transfer.finetuned import Finetuned
from medmae.transfer.task_folder import load_task


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regions(tmp_path_factory.mktemp("cohort"))


GOAL = Goal(kind="segment", target="labels", head={}, outcomes=lambda c, s: {}, fit=lambda o: Fitted({}))


def wish(**more: object) -> Wish:
    """The options of a run of which only folds and the share matter."""
    empty = dict.fromkeys(Wish.__dataclass_fields__)
    return Wish(**{**empty, "folds": 1, "fold": 0, "fraction": 1.0, "seed": 0, **more})


def test_every_subject_is_held_out_once_and_six_make_five_folds(cohort: Path) -> None:
    found = open_cohort(cohort)
    outcomes = dict.fromkeys((case.key for case in found.cases), 1)
    held = []
    for fold in range(5):
        parts = _divided(found, outcomes, wish(folds=5, fold=fold), GOAL).split()
        assert parts["train"]
        held += [case.key for case in parts["test"]]
    assert sorted(held) == sorted(outcomes)
    from medmae.core.errors import DataError

    with pytest.raises(DataError, match=r"there are 6 subject\(s\) only"):
        _divided(found, outcomes, wish(folds=7), GOAL)


def test_a_smaller_share_is_part_of_a_larger_one_and_leaves_the_other_parts_alone(tmp_path: Path) -> None:
    found = open_cohort(make(tmp_path, cases=12))
    outcomes = dict.fromkeys((case.key for case in found.cases), 1)
    whole = found.split()
    before: set[str] = set()
    for share in (0.25, 0.5, 1.0):
        parts = _fewer(_divided(found, outcomes, wish(), GOAL), outcomes, wish(fraction=share), GOAL).split()
        now = {case.key for case in parts["train"]}
        assert before < now
        assert [[c.key for c in parts[p]] for p in ("val", "test")] == [
            [c.key for c in whole[p]] for p in ("val", "test")
        ]
        before = now


def test_measurements_of_an_earlier_model_do_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    results = tmp_path / "test"
    _forget(results, "abc")
    results.mkdir()
    (results / "mine.txt").write_text("nobody knows whose")
    _forget(results, "abc")
    assert results.exists()
    (results / "summary.json").write_text(json.dumps({"about": {"weights": "sha256:abc"}}))
    _forget(results, "abc")
    assert results.exists()
    _forget(results, "def")
    assert not results.exists()


def test_an_ensemble_is_not_measured_on_what_any_member_was_chosen_on(cohort: Path) -> None:
    from medmae.cli.leakage import prints_of

    cases = open_cohort(cohort).cases
    codes = [found.code for found in prints_of(cases, ("t1n", "t2w"))]

    class Two:
        sequences = ("t1n", "t2w")
        seen = ({"validation_subjects": codes[:1]}, {"validation_subjects": codes[1:2], "subjects": codes[2:3]})

    assert [case.key for case, _ in _held_out(cases, Two())] == [case.key for case in cases[3:]]  # type: ignore[arg-type]


@pytest.mark.slow
def test_with_and_without_weights_all_else_is_the_same(cohort, start, tmp_path: Path, monkeypatch) -> None:
    heads, forward = {}, Finetuned.forward

    def spy(self, batch):
        heads.setdefault(name, {k: v.clone() for k, v in self.head.state_dict().items()})
        return forward(self, batch)

    monkeypatch.setattr(Finetuned, "forward", spy)
    line = ("--checkpoint", start, "--steps", 3, "--fraction", 0.7, "--schedule", "sawtooth", "--layer-decay", 0.8)
    for name, more in (("with", ("--overwrite",)), ("without", ("--from-scratch",))):
        assert segment(cohort, tmp_path / name, *line, *more, cache=tmp_path / "cache") == 0
    assert all(torch.equal(value, heads["without"][key]) for key, value in heads["with"].items())
    rates, splits, measured = ([] for _ in range(3))
    for name in ("with", "without"):
        found = read_rows(tmp_path / name / "metrics.jsonl")
        rates.append([(row["step"], row["lr"]) for row in found if "lr" in row])
        splits.append(json.loads((tmp_path / name / "data" / "manifest.json").read_text())["split"])
        measured.append([(row["case"], row["given"], row["target"]) for row in rows(tmp_path / name / "test")])
    assert rates[0] == rates[1] != []
    assert splits[0] == splits[1]
    assert measured[0] == measured[1]
    # cases that the share left out are no test cases
    assert len({case for case, _, _ in measured[0]}) == len(splits[0]["test"])
    weights = json.loads((tmp_path / "with" / "test" / "summary.json").read_text())["about"]["weights"]
    assert segment(cohort, tmp_path / "with", *line, "--seed", 1, "--overwrite", "--no-evaluate") == 0
    assert not (tmp_path / "with" / "test").exists()
    assert weights


@pytest.mark.slow
def test_two_processes_train_one_segmenter(cohort: Path, start: Path, tmp_path: Path) -> None:
    line = ["finetune", "segment", "--backend", "medmae", "--data", cohort, "--checkpoint", start, "--device", "cpu",
            "--workers", 0, "--features", 4, "--steps", 2, "--batch", 1, "--distill", 1, "--out", tmp_path / "out",
            "--cache", tmp_path / "cache", "--subsets", "t1n"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "-m",
        "medmae",
        *line,
    ]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert not [name for name in load_task(tmp_path / "out").method.state_dict() if name.startswith("teacher")]
    assert rows(tmp_path / "out" / "test")
    assert [row["step"] for row in read_rows(tmp_path / "out" / "metrics.jsonl") if "lr" in row][-1] == 2


def test_a_constant_image_is_missing_in_every_table(tmp_path: Path, capsys) -> None:
    spec = make(tmp_path / "c", cases=3, values=(1, 2), label="classes: {background: 0, necrosis: 1, edema: 2}")
    put(tmp_path / "c" / "p0" / "t1n.nii.gz", np.full(label_of().shape, 7, np.float32))
    model = untrained(tmp_path / "m", kind="classes")

    def measured(*more: object) -> dict[str, set[str]]:
        assert evaluate(model, spec, tmp_path / "e", "--split", "all", "--identify", "--overwrite", *more) == 0
        found: dict[str, set[str]] = {}
        for row in rows(tmp_path / "e"):
            found.setdefault(row["given"], set()).add(row["case"])
        return found

    assert measured("--subsets", "all") == {"t1n": {"p1", "p2"}, "t2w": {"p0", "p1", "p2"}, "t1n+t2w": {"p1", "p2"}}
    assert measured() == {"t2w": {"p0"}, "t1n+t2w": {"p1", "p2"}}
    capsys.readouterr()
    assert predict(model, tmp_path / "p", "--data", spec) == 0


@pytest.mark.parametrize("hidden", ["holes", "grid"])
def test_a_hidden_image_has_no_say(tmp_path: Path, hidden: str) -> None:
    more = "geometry: {on_mismatch: resample}" if hidden == "grid" else ""
    spec = make(tmp_path / "c", cases=1, label="classes: {background: 0, necrosis: 1, edema: 2}", more=more)
    image = np.random.default_rng(3).normal(100, 9, label_of().shape).astype(np.float32)
    if hidden == "holes":
        image[:9] = np.nan
        put(tmp_path / "c" / "p0" / "t1n.nii.gz", image)
    else:
        put(tmp_path / "c" / "p0" / "t1n.nii.gz", image[::2], np.diag([2.0, 1, 2, 1]))
    preprocess = {"orientation": "RAS", "spacing": None, "crop": "none", "foreground": "all"}
    policy = {"on_mismatch": "resample"} if hidden == "grid" else {}
    model = untrained(tmp_path / "m", kind="classes", preprocess={**preprocess, **policy})
    assert evaluate(model, spec, tmp_path / "e", "--split", "all", "--identify", "--subsets", "t2w") == 0
    assert predict(model, tmp_path / "p.nii.gz", "--t2w", tmp_path / "c" / "p0" / "t2w.nii.gz") == 0
    import nibabel as nib

    one, two = (
        np.asarray(nib.load(p).dataobj) for p in (tmp_path / "p.nii.gz", tmp_path / "e/predictions/t2w/p0.nii.gz")
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("call", [run])
def test_parents_of_a_result_that_never_came_are_removed(tmp_path: Path, call: Callable[..., int]) -> None:
    model, image = untrained(tmp_path / "m"), tmp_path / "t1n.nii.gz"
    put(image, np.ones(label_of().shape, np.float32))
    line = ("predict", "--checkpoint", model, "--t1n", image, "--device", "cpu")
    assert call(*line, "--out", tmp_path / "a" / "b" / "p.nii.gz") == 3
    assert not (tmp_path / "a").exists()
