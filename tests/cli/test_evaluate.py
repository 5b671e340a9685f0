"""Every subset next to the baselines, from files to tables; and the refusal to measure on training cases."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.data.cohort import open_cohort
from medmae.data.fingerprint import Fingerprints, case_files, case_hash
from medmae.find import find

NAMES = ("t1n", "t1c", "t2w")
SIZE = (22, 20, 18)
SPEC = """\
medmae: 1
name: toy
root: .
pattern: "{case}/{seq}.nii.gz"
sequences: [t1n, t1c, t2w]
label: {file: "{case}/seg.nii.gz", classes: {background: 0, lesion: 1}}
mask: {file: "{case}/mask.nii.gz"}
split: {by: subject, seed: 0, val: 0.2, test: 0.4}
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases whose sequences are noisy linear mixtures of two maps; the last one lacks t2w."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    for i in range(5):
        case = folder / f"doe-{i}"
        case.mkdir()
        maps = rng.normal(size=(2, *SIZE))
        for k, name in enumerate(NAMES):
            if not (i == 4 and name == "t2w"):
                image = 400 + 60 * (maps[0] + (k - 1) * maps[1]) + 5 * rng.normal(size=SIZE)
                nib.save(nib.Nifti1Image((image * inside).astype(np.float32), np.eye(4)), case / f"{name}.nii.gz")
        label = np.zeros(SIZE, np.uint8)
        label[8:13, 8:13, 8:13] = 1
        nib.save(nib.Nifti1Image(label, np.eye(4)), case / "seg.nii.gz")
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), np.eye(4)), case / "mask.nii.gz")
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def save(folder: Path, **data: object) -> Path:
    found = find("bm_mae")
    recipe = found.recipe(scale="test", sequences=NAMES)
    torch.manual_seed(0)
    about = {"data": {"sequences": list(NAMES), "preprocess": {"spacing": None, "crop": "foreground"}, **data}}
    return save_model(folder, found.build(**recipe), name="bm_mae", recipe=recipe, about=about)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def call(*arguments: object) -> int:
    return main(["evaluate", "reconstruct", *map(str, arguments), "--overlap", "0", "--quiet"])


def test_tables_of_the_test_cases(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert call("--data", cohort, "--checkpoint", model, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "PSNR" in shown
    assert "linear" in shown
    assert "t1c: " in shown
    about = json.loads((out / "summary.json").read_text())["about"]
    assert about["cases"] == 2
    assert about["cases_with_label"] == 2
    assert about["baselines_fitted_on"] == 2
    rows = list(csv.DictReader((out / "measurements.csv").open()))
    assert {r["method"] for r in rows} == {"model", "mean", "best single", "linear"}
    full = {r["case"] for r in rows if r["given"] == "t1n+t2w"}
    per_case = [sum(r["case"] == case for r in rows) for case in full]
    assert per_case
    assert all(n == 9 * 4 for n in per_case)
    best = [r for r in rows if r["given"] == "t1n+t2w" and r["method"] == "linear"]
    assert all(float(r["r2"]) > 0.95 and float(r["r2_label"]) > 0.9 for r in best)
    flat = [float(r["r2"]) for r in rows if r["method"] == "mean"]
    assert max(np.abs(flat)) < 0.05
    for file in out.iterdir():
        assert b"doe" not in file.read_bytes()
        assert str(cohort.parent).encode() not in file.read_bytes()
    assert all(re.fullmatch("[0-9a-f]{16}", r["case"]) for r in rows)
    assert (out / "psnr.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_is_what_reconstruct_writes(cohort: Path, model: Path, tmp_path: Path) -> None:
    """PSNR computed from the written file equals the one in the table."""
    from medmae.evaluate.metrics import Truth, measure

    assert call("--data", cohort, "--checkpoint", model, "--out", tmp_path / "o", "--cases", 1, "--identify") == 0
    row = next(
        r
        for r in csv.DictReader((tmp_path / "o" / "measurements.csv").open())
        if (r["given"], r["target"], r["method"]) == ("t1n", "t1c", "model")
    )
    case = cohort.parent / row["case"]
    made = tmp_path / "c.nii.gz"
    line = ["--checkpoint", model, "--t1n", case / "t1n.nii.gz", "--mask", case / "mask.nii.gz", "--target", "t1c"]
    assert (
        main(["reconstruct", *map(str, line), "--units", "zscore", "--out", str(made), "--overlap", "0", "--quiet"])
        == 0
    )
    truth, inside = nib.load(case / "t1c.nii.gz").get_fdata(), nib.load(case / "mask.nii.gz").get_fdata() > 0
    truth = (truth - truth[inside].mean()) / truth[inside].std()
    values = measure(nib.load(made).get_fdata(dtype=np.float32), Truth.of(truth.astype(np.float32), inside))
    assert values["psnr"] == pytest.approx(float(row["psnr"]), abs=1e-3)
    assert values["r2"] == pytest.approx(float(row["r2"]), abs=1e-3)


@pytest.mark.parametrize("how", ["files", "subjects", "subjects by part"])
def test_training_cases_are_refused(cohort: Path, tmp_path: Path, capsys, how: str) -> None:
    case = open_cohort(cohort).split()["test"][0]
    files = case_files(case, Fingerprints(None))
    data = {
        "files": {"files": [files["t1n"][:16]]},
        "subjects": {"subjects": [case_hash(files)]},
        "subjects by part": {"subjects": {"train": [case_hash(files)], "val": []}},
    }[how]
    trained = save(tmp_path / "model", **data)
    line = ("--data", cohort, "--checkpoint", trained, "--out", tmp_path / "out")
    assert call(*line) == 3
    said = capsys.readouterr().err
    assert "1 of 2 case(s) were training cases" in said
    assert "--allow-leakage" in said
    assert "doe" not in said
    assert not (tmp_path / "out").exists()
    assert call(*line, "--allow-leakage") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["about"]["training_cases_of_the_model"] == 1


def test_baselines_are_never_fitted_on_what_is_measured(cohort: Path, model: Path, tmp_path: Path) -> None:
    line = ("--data", cohort, "--checkpoint", model, "--split", "all", "--cases", 4)
    assert call(*line, "--out", tmp_path / "some") == 0
    left = json.loads((tmp_path / "some" / "summary.json").read_text())["about"]["baselines_fitted_on"]
    assert left <= 1
    assert call("--data", cohort, "--checkpoint", model, "--split", "all", "--out", tmp_path / "all") == 0
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["about"]["baselines_fitted_on"] == 0
    assert {e["method"] for e in summary["summary"]} == {"model"}
    assert call(*line, "--fit", cohort, "--out", tmp_path / "fit") == 0
    about = json.loads((tmp_path / "fit" / "summary.json").read_text())["about"]
    parts = open_cohort(cohort).split()
    train = {case.key for case in parts["train"]}
    measured = {case.key for case in open_cohort(cohort).cases[:4]}
    assert train & measured
    assert about["baselines_fitted_on"] == len(train - measured)
    assert about["left_out_of_the_baselines"] == len(train & measured)


def resaved(cohort: Path, folder: Path) -> Path:
    """The cohort again, uncompressed: other bytes and file names, the same images."""
    for case in open_cohort(cohort).cases:
        (folder / case.key).mkdir(parents=True)
        for path in (*case.images.values(), case.label, case.mask):
            image = nib.load(path)
            nib.save(image, folder / case.key / path.name.removesuffix(".gz"))
    (folder / "spec.yaml").write_text(SPEC.replace(".nii.gz", ".nii"))
    return folder / "spec.yaml"


def test_images_saved_in_another_format_are_known_again(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    from medmae.data.loader import VolumeSource

    source = VolumeSource(open_cohort(cohort), size=(16, 16, 16), cache=tmp_path / "cache", quiet=True)
    known = source.describe()
    trained = save(tmp_path / "model", subjects=known["subjects"], files=known["files"], voxels=known["voxels"])
    again = resaved(cohort, tmp_path / "again")
    line = ("--data", again, "--out", tmp_path / "out")
    assert call(*line, "--checkpoint", trained, "--split", "train") == 3
    assert "2 of 2 case(s) were training cases" in capsys.readouterr().err
    assert call(*line, "--checkpoint", trained, "--cases", 1) == 0
    train = len(open_cohort(cohort).split()["train"])
    assert call(*line, "--checkpoint", model, "--split", "train", "--fit", cohort, "--overwrite") == 0
    about = json.loads((tmp_path / "out" / "summary.json").read_text())["about"]
    assert (about["baselines_fitted_on"], about["left_out_of_the_baselines"]) == (0, train)


def test_how_the_foreground_came_about_is_said(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    def about(spec: Path, out: Path) -> tuple[str, str]:
        arguments = ["--data", spec, "--checkpoint", model, "--out", out, "--cases", 1, "--overlap", 0]
        assert main(["evaluate", "reconstruct", *map(str, arguments)]) == 0
        return json.loads((out / "summary.json").read_text())["about"]["foreground"], capsys.readouterr().err

    words, said = about(cohort, tmp_path / "masks")
    assert words == "given masks in 1 case(s)"
    assert "hidden" not in said
    bare = cohort.parent / "bare.yaml"
    bare.write_text("\n".join(line for line in SPEC.splitlines() if not line.startswith("mask")))
    words, said = about(bare, tmp_path / "none")
    assert words == "estimated from all sequences, the hidden one included, in 1 case(s)"
    assert "1 of 1 case(s) have no mask" in said
    assert "the hidden one included" in said


def test_labels_are_remapped_and_must_lie_on_the_grid(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(cohort.parent, folder)
    text = SPEC.replace("lesion: 1}", "lesion: 1}, remap: {7: 0, 4: 1}")
    (folder / "spec.yaml").write_text(text)
    first, second = open_cohort(folder / "spec.yaml").split()["test"]
    label = np.full(SIZE, 7, np.uint8)
    label[8:13, 8:13, 8:13] = 4
    nib.save(nib.Nifti1Image(label, np.eye(4)), first.label)
    nib.save(nib.Nifti1Image(label[:-1], np.eye(4)), second.label)
    arguments = ["--data", folder / "spec.yaml", "--checkpoint", model, "--overlap", 0]
    for data, out in ((folder / "spec.yaml", "new"), (cohort, "old")):
        arguments[1] = data
        assert main(["evaluate", "reconstruct", *map(str, arguments), "--out", str(tmp_path / out), "--identify"]) == 0
    assert "1 label(s) left aside" in capsys.readouterr().err
    rows = {out: list(csv.DictReader((tmp_path / out / "measurements.csv").open())) for out in ("new", "old")}

    def inside(out: str, key: str) -> list[str]:
        return [r["r2_label"] for r in rows[out] if r["case"] == key and r["method"] == "model"]

    assert inside("new", first.key) == inside("old", first.key)  # the class 0 region of value 7 does not count
    assert not any(inside("new", second.key))
    about = json.loads((tmp_path / "new" / "summary.json").read_text())["about"]
    assert (about["cases_with_label"], about["labels_on_another_grid"]) == (1, 1)


def test_json_on_standard_output_and_no_overwriting(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    line = ("--data", cohort, "--checkpoint", model, "--out", tmp_path / "o", "--cases", 1)
    assert call(*line, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["about"]["cases"] == 1
    assert set(printed["files"]) >= {"measurements", "json", "psnr"}
    assert printed["verdict"]["t1c"]["mean"] == "unclear"  # one case gives no interval
    assert call(*line) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(*line, "--overwrite") == 0


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, "--split", ("--split", "dev")),
        (2, "--cases", ("--cases", 0)),
        (2, "--overlap", ("--overlap", 1.5)),
        (5, "does not exist", ("--checkpoint", "nowhere")),
    ],
)
def test_what_cannot_be_meant_is_said(
    cohort: Path, model: Path, tmp_path: Path, capsys, code: int, words: str, more
) -> None:
    arguments = ["--data", cohort, "--checkpoint", model, "--out", tmp_path / "o", *more]
    assert main(["evaluate", "reconstruct", *map(str, arguments)]) == code
    assert words in capsys.readouterr().err


def test_every_broken_case_is_named_in_one_pass(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cohort.parent, copy)
    broken = [case.key for case in open_cohort(copy / "spec.yaml").split()["test"]]
    for key in broken:
        (copy / key / "t1n.nii.gz").write_bytes(b"nothing")
    assert call("--data", copy / "spec.yaml", "--checkpoint", model, "--out", tmp_path / "o") == 3
    said = capsys.readouterr().err
    assert all(key in said for key in broken)
    assert "2 of 2" in said


def test_a_model_remembers_the_intensities_it_was_trained_on(cohort: Path, tmp_path: Path) -> None:
    from medmae.cli.units import scale_of
    from medmae.data.loader import VolumeSource

    source = VolumeSource(open_cohort(cohort), size=(16, 16, 16), cache=tmp_path, quiet=True)
    known = json.loads(json.dumps(source.describe()))["statistics"]
    assert set(known) == set(NAMES)
    scale = scale_of("t1n", {"statistics": known}, units=None, match=None)
    assert scale.kind == "cohort"
    assert scale.mean == pytest.approx(400, abs=10)
    assert scale.std == pytest.approx(60 * 2**0.5, abs=10)
