"""Missing sequences as files: they overlay, they say what they are, and nothing is overwritten or let out.

The model used here copies t1n: it answers with the t1n voxels at the place it is asked about. So what must
come out is known at every voxel, whatever the geometry.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from copiers import PREPROCESS, SIZE, affine_of, blob, call, save, save_copier, zscored

from medmae.checkpoint import save_model
from medmae.find import find


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (4, 0), (2, 3)])
@pytest.mark.parametrize("seed", range(6))
def test_every_voxel_lands_where_it_was(tmp_path: Path, copier: Path, seed: int, codes: tuple[int, int]) -> None:
    image, inside = blob(seed=seed)
    affine = affine_of(seed)
    t1n = save(tmp_path / "a.nii.gz", image, affine, codes=codes)
    mask = save(tmp_path / "m.nii.gz", inside.astype(np.uint8), affine, codes=codes)
    out = tmp_path / "out.nii.gz"
    assert (
        call("--checkpoint", copier, "--t1n", t1n, "--mask", mask, "--target", "t1c", "--units", "zscore", "--out", out)
        == 0
    )
    given, made = nib.load(t1n), nib.load(out)
    assert made.shape == given.shape
    np.testing.assert_array_equal(made.affine, given.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_x", "pixdim"):
        if field != "pixdim":
            np.testing.assert_array_equal(made.header[field], given.header[field])
    np.testing.assert_array_equal(made.header["pixdim"][:4], given.header["pixdim"][:4])
    np.testing.assert_allclose(made.get_fdata()[inside], zscored(t1n, mask)[inside], atol=2e-3)
    outside = made.get_fdata()[~inside]
    assert len(np.unique(outside)) == 1
    assert outside[0] <= made.get_fdata()[inside].min() + 1e-6


def test_world_positions_survive_another_spacing(tmp_path: Path) -> None:
    """A ramp through the world, seen through a model of 2 mm voxels, is the same ramp."""
    model = save_copier(tmp_path / "model", preprocess={**PREPROCESS, "spacing": [2.0, 2.0, 2.0]})
    affine = affine_of(3)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE], indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    ramp = (world @ np.array([1.0, 0.5, -0.7])).astype(np.float32)
    everywhere = np.ones(SIZE, np.uint8)
    t1n = save(tmp_path / "a.nii.gz", ramp, affine)
    mask = save(tmp_path / "m.nii.gz", everywhere, affine)
    out = tmp_path / "out.nii.gz"
    assert (
        call("--checkpoint", model, "--t1n", t1n, "--mask", mask, "--target", "t2w", "--units", "zscore", "--out", out)
        == 0
    )
    inner = (slice(4, -4),) * 3
    made, truth = nib.load(out).get_fdata()[inner].ravel(), ramp[inner].ravel()
    slope, constant = np.polyfit(truth, made, 1)
    np.testing.assert_allclose(made, slope * truth + constant, atol=0.02 * np.std(made))


def test_the_header_says_synthetic_and_nothing_of_the_patient(case, copier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--mask", case["mask"], "--target", "T1ce", "--out", out)
    assert call(*line) == 0
    header = nib.load(out).header
    assert b"synthetic" in bytes(header["descrip"])
    assert b"DOE" not in header.binaryblock
    text = (tmp_path / "out.json").read_text()
    about = json.loads(text)
    assert "doe" not in text.lower()
    assert str(tmp_path) not in text
    assert about["synthetic"] is True
    assert about["target"] == "t1c"
    assert about["reference"] == "t1n"
    assert list(about["inputs"]) == ["t1n"]
    assert about["inputs"]["t1n"].startswith("sha256:")
    assert about["model"]["weights"] == "sha256:" + json.loads((copier / "config.json").read_text())["weights_sha256"]
    assert call(*line, "--overwrite", "--identify") == 0
    assert "doe_t1n" in (tmp_path / "out.json").read_text()


def test_units_are_the_cohort_s_the_model_s_or_those_of_an_image(case, copier: Path, tmp_path: Path) -> None:
    inside = nib.load(case["mask"]).get_fdata() > 0
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--mask", case["mask"], "--target", "t1c", "--overwrite")

    def made(*more: object) -> np.ndarray:
        assert call(*line, "--out", tmp_path / "o.nii.gz", *more) == 0
        return nib.load(tmp_path / "o.nii.gz").get_fdata()

    cohort = made()
    assert cohort[inside].mean() == pytest.approx(500, rel=1e-3)
    assert cohort[inside].std() == pytest.approx(90, rel=1e-3)
    assert bool((cohort[~inside] == 0).all())
    assert made("--units", "zscore")[inside].std() == pytest.approx(1, rel=1e-3)
    matched = made("--match", case["t1n"])
    np.testing.assert_allclose(matched[inside], nib.load(case["t1n"]).get_fdata()[inside], rtol=0.2)
    assert json.loads((tmp_path / "o.json").read_text())["units"]["kind"] == "match"


def test_units_the_model_does_not_know(case, copier: Path, tmp_path: Path, capsys) -> None:
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--target", "t2f", "--out", tmp_path / "o.nii.gz")
    assert call(*line, "--units", "cohort") == 2
    assert "--units zscore, or --match" in capsys.readouterr().err
    assert call(*line) == 0
    assert json.loads((tmp_path / "o.json").read_text())["units"]["kind"] == "zscore"


def test_nothing_is_overwritten_unasked_and_no_input_ever(case, copier: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "o.nii.gz"
    line = ("--checkpoint", copier, "--t1n", case["t1n"], "--target", "t1c", "--out")
    assert call(*line, out) == 0
    before = out.read_bytes()
    assert call(*line, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert call(*line, out, "--overwrite") == 0
    assert out.read_bytes() == before  # equal input, equal file
    for taken in (case["t1n"], case["mask"]):
        content = taken.read_bytes()
        assert call(*line, taken, "--mask", case["mask"], "--overwrite") == 2
        assert taken.read_bytes() == content
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_several_targets_go_to_a_folder_and_do_not_depend_on_one_another(case, tmp_path: Path) -> None:
    found = find("bm_mae")
    recipe = found.recipe(scale="test")
    torch.manual_seed(1)
    model = save_model(
        tmp_path / "m", found.build(**recipe), name="bm_mae", recipe=recipe, about={"data": {"preprocess": PREPROCESS}}
    )
    line = ("--checkpoint", model, "--t1n", case["t1n"], "--mask", case["mask"], "--units", "zscore")
    assert call(*line, "--target", "t1c,t2f", "--out", tmp_path / "both") == 0
    assert call(*line, "--target", "t1c", "--out", tmp_path / "one.nii") == 0
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["t1c.json", "t1c.nii.gz", "t2f.json", "t2f.nii.gz"]
    both, one = nib.load(tmp_path / "both" / "t1c.nii.gz").get_fdata(), nib.load(tmp_path / "one.nii").get_fdata()
    np.testing.assert_allclose(both, one, atol=1e-5)


def test_another_reference_and_another_sequence_name(case, tmp_path: Path) -> None:
    model = save_copier(tmp_path / "m", sequences=("t1n", "t1c", "mt1"))
    line = ("--checkpoint", model, "--t1n", case["t1n"], "--input", f"mt1={case['t2w']}", "--reference", "mt1")
    assert call(*line, "--target", "t1c", "--out", tmp_path / "o.nii.gz") == 0
    assert json.loads((tmp_path / "o.json").read_text())["reference"] == "mt1"


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "no input", "--target t1c --out {o}"),
        (2, "does not know the sequence 'adc'", "--t1n {t1n} --target adc --out {o}"),
        (2, "did you mean t1n", "--input t1nn={t1n} --target t1c --out {o}"),
        (2, "t1n is both an input and a --target", "--t1n {t1n} --target t1 --out {o}"),
        (2, "given twice", "--t1n {t1n} --input T1w={t1n} --target t1c --out {o}"),
        (2, "NAME=FILE", "--input {t1n} --target t1c --out {o}"),
        (2, "names no sequence", "--t1n {t1n} --target , --out {o}"),
        (2, "ends in .nii.gz", "--t1n {t1n} --target t1c --out {folder}/c.png"),
        (2, "give a folder", "--t1n {t1n} --target t1c,t2f --out {o}"),
        (2, "--units must be", "--t1n {t1n} --target t1c --out {o} --units hu"),
        (2, "--match gives the units", "--t1n {t1n} --target t1c --out {o} --match {t2w} --units zscore"),
        (2, "--reference t2w", "--t1n {t1n} --target t1c --out {o} --reference t2w"),
        (2, "cannot be combined", "--t1n {t1n} --data {folder} --target t1c --out {o}"),
        (2, "no device", "--t1n {t1n} --target t1c --out {o} --device gpu7x"),
        (2, "--precision", "--t1n {t1n} --target t1c --out {o} --precision fp8"),
        (2, "--batch", "--t1n {t1n} --target t1c --out {o} --batch 0"),
        (3, "nothing.nii.gz", "--t1n {folder}/nothing.nii.gz --target t1c --out {o}"),
        (3, "grid", "--t1n {t1n} --t2w {moved} --target t1c --out {o}"),
        (3, "empty", "--t1n {t1n} --mask {nomask} --target t1c --out {o}"),
    ],
)
def test_what_cannot_be_meant_is_said(
    case, copier: Path, tmp_path: Path, capsys, code: int, words: str, arguments: str
) -> None:
    image, _ = blob()
    files = {
        **case,
        "folder": tmp_path,
        "o": tmp_path / "o.nii.gz",
        "moved": save(tmp_path / "moved.nii.gz", image, np.diag([1.0, 1.0, 3.0, 1.0])),
        "nomask": save(tmp_path / "nomask.nii.gz", 0 * image, np.eye(4)),
    }
    assert call("--checkpoint", copier, *arguments.format(**files).split()) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert "bug" not in said
    assert not (tmp_path / "o.nii.gz").exists()
    assert not (tmp_path / "o.json").exists()


def test_checkpoints_that_cannot_do_it(case, tmp_path: Path, capsys) -> None:
    line = ("--t1n", case["t1n"], "--target", "t1c", "--out", tmp_path / "o.nii.gz")
    assert call("--checkpoint", tmp_path / "none", *line) == 5
    assert "does not exist" in capsys.readouterr().err
    normalized = save_copier(tmp_path / "n", normalize_target=True)
    assert call("--checkpoint", normalized, *line) == 5
    assert "normalize_target: false" in capsys.readouterr().err
    single = save_copier(tmp_path / "s", sequences=("t1n",))
    assert call("--checkpoint", single, *line) == 5
    found = find("mae")
    recipe = found.recipe(scale="test" if "test" in found.scales else None)
    image_model = save_model(tmp_path / "mae", found.build(**recipe), name="mae", recipe=recipe)
    assert call("--checkpoint", image_model, *line) == 5
    assert "bm_mae" in capsys.readouterr().err


def hostile_cohort(folder: Path) -> Path:
    """Names that would be paths, options or commands if anybody used them as such."""
    folder.mkdir()
    image, _ = blob()
    lines = ["case,t1n,t1c,t2w"]
    for i, name in enumerate(("../../evil", "-rf", "$(touch pwned)", "a;b|c", "..", "/etc/x", "plain")):
        file = save(folder / f"f{i}.nii.gz", image, np.eye(4))
        lines.append(f'"{name}",{file.name},{file.name if name == "plain" else ""},')
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def test_a_cohort_of_hostile_names_stays_in_its_folder(copier: Path, tmp_path: Path, capsys) -> None:
    source = hostile_cohort(tmp_path / "data")
    out = tmp_path / "deep" / "out"
    before = set(tmp_path.rglob("*"))
    assert call("--checkpoint", copier, "--data", source, "--target", "t1c", "--out", out) == 0
    made = [p for p in tmp_path.rglob("*") if p not in before and p.is_file()]
    assert len(made) == 12
    assert all(p.parent.parent == out for p in made)
    assert all("evil" not in p.read_text() for p in made if p.suffix == ".json")
    assert call("--checkpoint", copier, "--data", source, "--target", "t1c", "--out", out) == 2
    assert (
        call("--checkpoint", copier, "--data", source, "--target", "t1c", "--out", out, "--overwrite", "--hide-present")
        == 0
    )
    assert (out / "plain" / "t1c.nii.gz").is_file()


def test_a_link_cannot_lead_a_cohort_s_output_away(copier: Path, tmp_path: Path, capsys) -> None:
    source = hostile_cohort(tmp_path / "data")
    away = tmp_path / "away"
    away.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plain").symlink_to(away)
    assert call("--checkpoint", copier, "--data", source, "--target", "t1c,t2w", "--out", tmp_path / "out") == 2
    assert not list(away.iterdir())


def test_one_broken_case_does_not_stop_the_others(copier: Path, tmp_path: Path, capsys) -> None:
    source = hostile_cohort(tmp_path / "data")
    (tmp_path / "data" / "f1.nii.gz").write_bytes(b"")
    assert call("--checkpoint", copier, "--data", source, "--target", "t1c", "--out", tmp_path / "out") == 3
    assert "1 of 6 case(s)" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*/t1c.nii.gz"))) == 5


def test_json_goes_to_standard_output(case, copier: Path, tmp_path: Path, capsys) -> None:
    assert (
        call("--checkpoint", copier, "--t1n", case["t1n"], "--target", "t1c", "--out", tmp_path / "o.nii.gz", "--json")
        == 0
    )
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["file"] == str(tmp_path / "o.nii.gz")
    assert entry["target"] == "t1c"


def test_a_real_case_overlays(copier: Path, real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "small" / "OpenMS-26_2mm"
    if not folder.is_dir():
        pytest.skip("this case is not there")
    out = tmp_path / "o.nii.gz"
    line = ("--t1n", folder / "t1n.nii.gz", "--t2w", folder / "t2w.nii.gz", "--mask", folder / "mask.nii.gz")
    assert call("--checkpoint", copier, *line, "--target", "t1c", "--units", "zscore", "--batch", 4, "--out", out) == 0
    given, made = nib.load(folder / "t1n.nii.gz"), nib.load(out)
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.shape == given.shape
    assert made.header["sform_code"] == given.header["sform_code"]
    inside = nib.load(folder / "mask.nii.gz").get_fdata() > 0
    expected = zscored(folder / "t1n.nii.gz", folder / "mask.nii.gz")
    np.testing.assert_allclose(made.get_fdata()[inside], expected[inside], atol=5e-3)
