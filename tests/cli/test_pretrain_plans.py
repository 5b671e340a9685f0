"""``medmae pretrain --plans``: an nnU-Net data set and its plans in, a model of the planned network out; refusals."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medmae.cli import main
from medmae.core.errors import DataError, UsageError

SPACING = [2.0, 1.0, 1.0]  # of the arrays: z, y, x of the files
NAME = "Dataset901_Tiny"


def plans_of(*, channels: int = 2, **changed: Any) -> dict[str, Any]:
    """Plans of a small residual U-Net on 16 x 32 x 32 voxels, the first channel CT, the others z-scored."""
    from medmae.nets.build import resenc

    network = resenc(
        features=(4, 6),
        blocks=(1, 1),
        kernels=((1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2)),
        decoder_convs=(1,),
    )
    statistics = {"mean": 100.0, "std": 20.0, "percentile_00_5": 50.0, "percentile_99_5": 150.0}
    settings = {
        "spacing": SPACING, "patch_size": [16, 32, 32],
        "normalization_schemes": ["CTNormalization", *["ZScoreNormalization"] * (channels - 1)],
        "use_mask_for_norm": [False] * channels,
        "architecture": {"network_class_name": network.class_name, "arch_kwargs": network.kwargs,
                         "_kw_requires_import": list(network.requires_import)},
    }  # fmt: skip
    return {
        "dataset_name": NAME, "plans_name": "tiny",
        "transpose_forward": [0, 1, 2], "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {str(i): statistics for i in range(channels)},
        "configurations": {"base": settings, "3d_fullres": {"inherits_from": "base"},
                           "2d": {**settings, "patch_size": [16, 16], "spacing": SPACING[1:]}},
        **changed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nnUNet_raw and nnUNet_preprocessed: four cases with labels, two without."""
    root = tmp_path_factory.mktemp("nnunet")
    raw, preprocessed = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME
    for folder in (raw / "imagesTr", raw / "imagesTs", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 18, 10)], indexing="ij"))
    body = (place**2).sum(0) < 0.8
    for number, folder in enumerate(["imagesTr"] * 4 + ["imagesTs"] * 2):
        for channel in range(2):
            image = np.where(body, 100 + 20 * draw.standard_normal(body.shape), 0).astype(np.int16)
            file = raw / folder / f"case{number}_{channel:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(image, np.diag([-1, -1, 2, 1])), file)
    about = {"channel_names": {"0": "CT", "1": "T1ce"}, "labels": {"background": 0, "a": 1}, "numTraining": 4,
             "file_ending": ".nii.gz"}  # fmt: skip
    for folder in (raw, preprocessed):
        (folder / "dataset.json").write_text(json.dumps(about))
    (preprocessed / "tiny.json").write_text(json.dumps(plans_of()))
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAE_CACHE", str(tmp_path_factory.getbasetemp() / "medmae-cache"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name, raising=False)


def line(out: Path, *more: Any) -> list[str]:
    """A short run on the CPU without pictures."""
    given = ["pretrain", "--steps", 2, "--batch", 2, "--out", out, "--device", "cpu", "--workers", 0,
             "--set", "train.picture_every=0", *more]  # fmt: skip
    return [str(word) for word in given]


def suggested(said: str) -> list[str]:
    """The command that the last line names."""
    word, *more = shlex.split(said.strip().splitlines()[-1].partition("Next: ")[2])
    assert (word, more[:2]) == ("medmae", ["nnunet", "export"])
    return more


def settings(out: Path) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())
    return found


def test_the_planned_network_comes_out(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medmae.checkpoint import load_model
    from medmae.transfer.nnunet.plans import architecture, read_plans

    out = tmp_path / "run"
    given = ("--data", made / "nnUNet_raw" / NAME, "--plans", "tiny")
    assert main(line(out, "--method", "resenc_mae", *given, "--set", "data.split.val=0.2")) == 0
    said = capsys.readouterr().err
    assert "window    16 x 32 x 32 at 2 x 1 x 1 mm, axes SPL" in said
    assert "T1ce -> t1c" in said
    assert "cases     6: 5 to train, 1 to validate, 0 held out" in said  # four with labels, two without
    assert main(suggested(said)) == 0
    assert (out / "nnunet.pth").is_file()
    config = settings(out)
    assert config["method"]["size"] == [16, 32, 32]
    assert config["method"]["block"] == [16, 16, 16]
    assert config["method"]["sequences"] == ["ct", "t1c"]
    loaded = load_model(out)
    assert loaded.config["data"]["preprocess"]["rules"]["ct"]["clip"] == [50.0, 150.0]
    assert loaded.config["data"]["preprocess"]["orientation"] == "SPL"
    stock = architecture(read_plans(made / "nnUNet_preprocessed" / NAME / "tiny.json"), "3d_fullres")
    theirs = stock.build(input_channels=2, num_classes=2).state_dict()
    ours = loaded.method.state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0  # without the plans: all they said is in config.yaml


def test_an_id_a_root_and_plans_by_path(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, data in enumerate(("901", NAME)):
        out = tmp_path / f"run{number}"
        assert main(line(out, "--data", data, "--plans", "tiny", "--nnunet-root", made)) == 0
        assert settings(out)["method"]["name"] == "resenc_mae"
    monkeypatch.setenv("nnUNet_raw", str(made / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(made / "nnUNet_preprocessed"))
    file = made / "nnUNet_preprocessed" / NAME / "tiny.json"
    assert main(line(tmp_path / "run2", "--data", "901", "--plans", file, "--set", "data.unlabeled=false")) == 0
    manifest = json.loads((tmp_path / "run2" / "data" / "manifest.json").read_text())
    assert sorted(key for part in manifest["split"].values() for key in part) == [f"case{i}" for i in range(4)]


def test_other_methods_take_window_and_spacing(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ("--scale", "test", "--set", "method.patch=[8,8,8]", "--set", "method.width=48", "--set", "method.depth=1",
             "--set", "method.heads=4", "--set", "method.decoder_width=48", "--set", "method.decoder_depth=1",
             "--set", "method.decoder_heads=4")  # fmt: skip
    assert main(line(out, "--method", "bm_mae", "--data", "901", "--nnunet-root", made, "--plans", "tiny", *small)) == 0
    assert settings(out)["method"]["size"] == [16, 32, 32]
    assert settings(out)["data"]["preprocess"]["spacing"] == SPACING


def test_any_cohort_under_a_plan(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    for number in range(3):
        for channel, name in enumerate(("ct", "t1ce")):
            source = made / "nnUNet_raw" / NAME / "imagesTr" / f"case{number}_{channel:04d}.nii.gz"
            (images / f"p{number}").mkdir(parents=True, exist_ok=True)
            shutil.copy(source, images / f"p{number}" / f"{name}.nii.gz")
    spec = tmp_path / "spec.yaml"
    spec.write_text("medmae: 1\nname: own\nroot: images\npattern: '{case}/{seq}.nii.gz'\nsequences: [ct, t1c]\n")
    file = made / "nnUNet_preprocessed" / NAME / "tiny.json"
    assert main(line(tmp_path / "run", "--data", spec, "--plans", file)) == 0
    assert main(suggested(capsys.readouterr().err)) == 0
    for image in images.glob("*/*.nii.gz"):  # stored otherwise than what was planned: window and spacing are not
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(image)), image)
    assert main(line(tmp_path / "turned", "--data", spec, "--plans", file)) == 0
    assert settings(tmp_path / "turned")["data"]["preprocess"]["orientation"] == "SPL"
    capsys.readouterr()
    spec.write_text(spec.read_text().replace("[ct, t1c]", "[ct, t1c, t2w]"))
    assert main(line(tmp_path / "run2", "--data", spec, "--plans", file)) == 2
    assert "says nothing of t2w" in capsys.readouterr().err


def test_refusals(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    raw, folder = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME
    settings_of = plans_of()["configurations"]["base"]
    arch = settings_of["architecture"]

    def put(name: str, **changed: Any) -> str:
        (folder / f"{name}.json").write_text(json.dumps(plans_of(**changed)))
        return name

    def one(**changed: Any) -> dict[str, Any]:
        return {"3d_fullres": {**settings_of, **changed}}

    (folder / "broken.json").write_text("{")
    for plans, words, code in (
        ("none", "there are", 2),
        (tmp_path / "none.json", "no such file", 2),
        ("broken", "not JSON", 2),
        ("dataset", "not a plans file", 2),
        (put("other", dataset_name="Dataset902_Other"), "was made for Dataset902_Other", 2),
        (put("wide", channels=3), "3 channel(s), and the data 2", 2),
        (put("bare", foreground_intensity_properties_per_channel={}), "no intensity statistics of channel 0 (ct)", 3),
        (put("odd", configurations=one(normalization_schemes=["MineNormalization"] * 2)), "MineNormalization", 2),
        (put("vit", configurations=one(architecture={**arch, "network_class_name": "a.Primus"})), "a.Primus", 2),
        (put("flat", transpose_forward=[0, 0, 1]), "axis codes", 2),
    ):
        given = ("--data", raw, "--plans", plans)
        assert main(line(tmp_path / "run", *given)) == code, plans
        assert words in capsys.readouterr().err, plans
    for more, words in (
        (("--data", raw, "--plans", "tiny", "--configuration", "2d"), "two-dimensional"),
        (("--data", raw, "--plans", "tiny", "--configuration", "3d_lowres"), "3d_lowres"),
        (("--data", raw, "--plans", "tiny", "--scale", "test"), "choose one"),
        (("--data", "905", "--plans", "tiny", "--nnunet-root", root), "no nnU-Net dataset '905'"),
        (("--data", "nowhere", "--plans", "tiny"), "no such file or folder"),
        (("--plans", "tiny"), "needs --data"),
        (("--data", raw, "--set", "data.preprocess.spacing=3"), "data.preprocess.spacing"),
        (("--data", raw, "--set", "data.preprocess.spacin=3"), "spacing"),
    ):
        assert main(line(tmp_path / "run", *more)) == 2, more
        assert words in capsys.readouterr().err, more
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0}}))
    assert main(line(tmp_path / "run", "--data", raw, "--plans", "tiny")) in (2, 3)
    assert "channel_names" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    image = root / "nnUNet_raw" / NAME / "imagesTs" / "case5_0001.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    assert main(line(tmp_path / "run", "--data", "901", "--nnunet-root", root, "--plans", "tiny")) == 3
    assert "case5" in capsys.readouterr().err


def test_files_stored_differently_are_spoken_of(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    for channel in range(2):
        file = root / "nnUNet_raw" / NAME / "imagesTr" / f"case1_{channel:04d}.nii.gz"
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(file)), file)
    assert main(line(tmp_path / "run", "--data", "901", "--nnunet-root", root, "--plans", "tiny")) == 0
    assert "different orientations (arrays 3 SPL, 1 SAR)" in capsys.readouterr().err


def test_channels_with_one_name_get_their_numbers() -> None:
    from medmae.cli.pretrain_plans import channel_sequences

    file = Path("dataset.json")
    names = channel_sequences({"channel_names": {"0": "T1", "1": "MRI", "2": "MRI", "3": "T1w"}}, file)
    assert names == ("t1_0", "mri_1", "mri_2", "t1w_3")
    with pytest.raises(DataError, match="no channel_names"):
        channel_sequences({}, file)
    with pytest.raises((DataError, UsageError), match="neither letters nor digits"):
        channel_sequences({"channel_names": {"0": "-"}}, file)
