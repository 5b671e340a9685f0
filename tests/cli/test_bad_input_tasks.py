"""What every command of the tasks says of bad input: a message, an exit code, and nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from labeled import REGIONS, label_of, make, put
from segmenters import PREPROCESS, SMALL, pretrained, run
from segmenters import untrained as segmenter

from medmae.find import find
from medmae.transfer.building import build
from medmae.transfer.task_folder import save_task

COLUMNS = {"grade": "class", "size": "number", "days": "time", "dead": "event"}
ROWS = {"grade": "abaabb", "size": "123456", "days": "987654", "dead": "101011"}
TASKS = {
    "classify": ({"class": "grade"}, {"kind": "linear"}, {"kind": "classes", "count": 2}),
    "survive": ({"time": "days", "event": "dead"}, {"kind": "linear"}, {"kind": "cox"}),
    "regress": ({"value": "size"}, {"kind": "linear"}, {"kind": "regression", "mean": 0.0, "std": 1.0}),
    "synthesize": ({}, {"kind": "synthesis", "features": 4, "hidden": 4}, {"kind": "synthesis"}),
}
TABLE = ("classify", "survive", "regress")
ASKED = {
    "classify": ("--target", "grade"), "regress": ("--target", "size"),
    "survive": ("--time", "days", "--event", "dead"),
    "segment": ("--backend", "medmae", "--features", "4"), "synthesize": ("--features", "4"),
}  # fmt: skip


def tabled(folder: Path, **columns: object) -> Path:
    """Six patients with labels and a clinical table."""
    table = ", ".join(f"{name}: {kind}" for name, kind in COLUMNS.items())
    more = f"table: {{file: t.csv, key: case, columns: {{{table}}}}}"
    spec = make(folder, label=REGIONS, values=(2, 1, 4), test=0.34, more=more)
    told = {**ROWS, **columns}
    lines = [",".join([f"p{i}", *(str(told[name][i]) for name in COLUMNS)]) for i in range(6)]
    (folder / "t.csv").write_text("\n".join([",".join(["case", *COLUMNS]), *lines]) + "\n")
    return spec


def task(folder: Path, kind: str, sequences: tuple[str, ...]) -> Path:
    """A model of a task, trained on nobody."""
    if kind == "segment":
        return segmenter(folder, sequences=sequences)
    columns, head, objective = TASKS[kind]
    own = {"names": list(sequences)} if kind == "synthesize" else {}
    base = {"method": "bm_mae", "recipe": find("bm_mae").recipe(scale="test", sequences=sequences, **SMALL)}
    recipe = {"backbone": base, "head": head, "objective": {**objective, **own}}
    torch.manual_seed(0)
    about = {"kind": kind, "columns": columns, "classes": ["a", "b"] if kind == "classify" else [], "recipe": recipe}
    return save_task(folder, build(recipe), task=about, about={"data": {"preprocess": PREPROCESS}})


@dataclass(frozen=True)
class World:
    """Models of every kind, for the cohort and for other sequences, and a sound cohort."""

    folder: Path
    cohort: Path

    def model(self, kind: str, *, known: bool = True) -> Path:
        where = self.folder / f"{kind}-{known}"
        if not where.exists():
            sequences = ("t1n", "t2w") if known else ("ct", "pet")
            if kind == "start":
                pretrained(where, sequences=sequences)
            else:
                task(where, kind, sequences)
        return where


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return World(folder, tabled(folder / "cohort"))


@pytest.fixture
def refused(world: World, tmp_path: Path, capsys) -> Callable[..., None]:
    """``refused(verb, code, words, data=, model=, known=)``."""

    def check(
        verb: str, code: int, words: str, *more: object, data: Path | None = None, model: str = "", known: bool = True
    ) -> None:
        step, _, kind = verb.partition(" ")
        checkpoint = world.model(model or (kind if step in ("predict", "evaluate") else "start"), known=known)
        suffix = {"embed": ".csv", "predict": ".csv" if kind in TABLE else ""}.get(step, "")
        out = tmp_path / "new" / f"out{suffix}"
        line = ["--checkpoint", checkpoint, "--data", data or world.cohort, "--out", out, "--device", "cpu", *more]
        if step == "finetune":
            line += [*ASKED[kind], "--steps", 1, "--workers", 0, "--cache", tmp_path / "cache"]
        if step in ("evaluate", "probe") and "--split" not in more:
            line += ["--split", "all"]
        words_of = [step, kind] if step in ("finetune", "evaluate") else [step]
        assert run(*words_of, *line) == code, capsys.readouterr().err
        said = capsys.readouterr().err
        assert words in said, said
        assert "Traceback" not in said
        assert not out.parent.exists(), list(out.parent.rglob("*"))

    return check


TUNE = [f"finetune {kind}" for kind in ASKED]
MEASURE = [f"evaluate {kind}" for kind in ASKED]
PREDICT = [f"predict {kind}" for kind in ASKED]


@pytest.mark.parametrize("verb", [*TUNE, *PREDICT, *MEASURE, "probe", "embed"])
def test_a_checkpoint_for_other_sequences(refused, verb: str) -> None:
    more = ("--target", "grade") if verb == "probe" else ()
    if verb.startswith("finetune"):
        refused(verb, 5, "none in common", known=False)
    elif verb == "predict synthesize":
        refused(verb, 3, "no case", known=False)
    else:
        refused(verb, 3, "", *more, known=False)


@pytest.mark.parametrize("verb", [*TUNE, *MEASURE, *PREDICT])
def test_a_checkpoint_for_another_task(refused, verb: str) -> None:
    if verb.startswith("finetune"):
        refused(verb, 5, "fine-tuned already", model="classify")
        return
    refused(verb, 5, "a pre-trained model", model="start")
    if verb.startswith("evaluate"):
        refused(verb, 5, "it cannot", model="regress" if verb == "evaluate classify" else "classify")


@pytest.mark.parametrize("verb", ["evaluate segment", *(f"evaluate {kind}" for kind in TABLE), "probe"])
def test_a_subset_of_sequences_that_nobody_knows(refused, verb: str) -> None:
    more = ("--target", "grade") if verb == "probe" else ()
    refused(verb, 2, "the model has no pet", *more, "--subsets", "pet")


BAD_LABELS = {
    "unknown": (lambda c: put(c / "p2" / "seg.nii.gz", label_of(values=(1, 7))), "value(s) 7 are no class"),
    "geometry": (lambda c: put(c / "p2" / "seg.nii.gz", label_of(values=(1, 2))[1:]), "not on the grid of"),
    "moved": (lambda c: put(c / "p2" / "seg.nii.gz", label_of(values=(1, 2)), np.diag([1.0, 1, 3, 1])), "not on the"),
    "fractions": (lambda c: put(c / "p2" / "seg.nii.gz", label_of().astype(np.float32) / 2), "no whole numbers"),
    "broken": (lambda c: (c / "p2" / "seg.nii.gz").write_bytes(b"x" * 400), "p2"),
}


@pytest.mark.parametrize("verb", ["finetune segment", "evaluate segment"])
@pytest.mark.parametrize("fault", BAD_LABELS)
def test_labels_that_cannot_be_used(refused, tmp_path: Path, verb: str, fault: str) -> None:
    spec = tabled(tmp_path / "c")
    spoil, words = BAD_LABELS[fault]
    spoil(tmp_path / "c")
    refused(verb, 3, words, data=spec)


def test_labels_that_are_all_empty(refused, tmp_path: Path) -> None:
    spec = tabled(tmp_path / "c")
    for path in (tmp_path / "c").glob("*/seg.nii.gz"):
        put(path, np.zeros_like(label_of()))
    refused("finetune segment", 3, "are empty", data=spec)


BAD_TABLES = {
    "one class": ({"grade": "aaaaaa"}, ("classify",), "have the class 'a'"),
    "no class": ({"grade": ["nan"] * 6}, ("classify",), "none of 6 case(s)"),
    "a class nobody knows": ({"grade": "abaabz"}, (), "the class z; the model knows a, b"),
    "censored": ({"dead": "000000"}, ("survive",), "censored"),
    "no event": ({"dead": ["nan"] * 6}, ("survive",), "none of 6 case(s)"),
    "an infinite time": ({"days": ["inf", *"87654"]}, ("survive",), "is no number"),
    "an infinite value": ({"size": ["inf", *"23456"]}, ("regress",), "is no number"),
    "no value": ({"size": ["NaN"] * 6}, ("regress",), "none of 6 case(s)"),
    "one value": ({"size": "333333"}, ("regress",), ""),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_tables_that_nothing_can_be_learned_from(refused, tmp_path: Path, fault: str) -> None:
    columns, kinds, words = BAD_TABLES[fault]
    spec = tabled(tmp_path / "c", **columns)
    for kind in kinds:
        refused(f"finetune {kind}", 3, words, data=spec)
        refused("probe", 3, words, *ASKED[kind], data=spec)
    for kind in kinds or ("classify",):
        if fault == "one class":
            refused(f"evaluate {kind}", 3, "nothing to tell apart", data=spec)
        elif fault != "one value":  # it has a mean error all the same
            refused(f"evaluate {kind}", 3, words, data=spec)


@pytest.mark.parametrize("verb", [f"{step} {kind}" for step in ("finetune", "evaluate") for kind in TABLE] + ["probe"])
def test_a_table_with_a_second_row_for_a_case(refused, tmp_path: Path, verb: str) -> None:
    spec = tabled(tmp_path / "c")
    table = tmp_path / "c" / "t.csv"
    table.write_text(table.read_text() + "p0,a,1,2,1\n")
    refused(verb, 3, "a second row for", *(("--target", "grade") if verb == "probe" else ()), data=spec)


@pytest.mark.parametrize("verb", ["finetune synthesize", "predict segment", "predict synthesize", "embed"])
def test_a_cohort_that_names_a_case_twice(refused, world: World, tmp_path: Path, verb: str) -> None:
    folder = world.cohort.parent
    lines = [f"{key},{folder / file / 't1n.nii.gz'},{folder / file / 't2w.nii.gz'}" for key, file in
             (("p0", "p0"), ("p1", "p1"), ("p0", "p2"), ("p3", "p3"))]  # fmt: skip
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(["case,t1n,t2w", *lines]) + "\n")
    refused(verb, 3, "p0", data=table)


@pytest.mark.parametrize(
    "verb", [*PREDICT[:4], "evaluate segment", "evaluate classify", "evaluate synthesize", "embed"]
)
def test_images_that_cannot_be_read(refused, tmp_path: Path, verb: str) -> None:
    spec = tabled(tmp_path / "c")
    (tmp_path / "c" / "p5" / "t2w.nii.gz").write_bytes(b"no image")
    refused(verb, 3, "p5", data=spec)


@pytest.mark.parametrize("verb", [*PREDICT[:4], "evaluate segment", "evaluate classify", "evaluate synthesize"])
def test_images_that_say_nothing(refused, tmp_path: Path, verb: str) -> None:
    spec = tabled(tmp_path / "c")
    for path in (tmp_path / "c").glob("p*/t?[nw].nii.gz"):
        put(path, np.ones_like(label_of(), np.float32))
    refused(verb, 3, "", data=spec)


# --- what is there stays ----------------------------------------------------------------------------------------------


def test_a_prediction_never_replaces_an_input(world: World, tmp_path: Path, capsys) -> None:
    shutil.copy(world.cohort.parent / "p0" / "t1n.nii.gz", tmp_path / "t1n.nii.gz")
    before = (tmp_path / "t1n.nii.gz").read_bytes()
    line = ("predict", "--checkpoint", world.model("segment"), "--t1n", tmp_path / "t1n.nii.gz", "--device", "cpu")
    assert run(*line, "--out", tmp_path / "t1n.nii.gz", "--overwrite") == 2
    assert "is an input" in capsys.readouterr().err
    assert (tmp_path / "t1n.nii.gz").read_bytes() == before


def test_a_measurement_does_not_remove_predictions_that_were_there(world: World, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "out" / "predictions" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    line = ("evaluate", "segment", "--checkpoint", world.model("segment"), "--data", world.cohort, "--split", "all")
    assert run(*line, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert "predictions exists" in capsys.readouterr().err
    assert mine.exists()
