"""The file for nnU-Net: taken by nnU-Net's own loader, read back by everyone, and refused where it would be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_unets import architecture, dataset_of, network, plans_of, write_dataset

from medmae.checkpoint import save_model
from medmae.cli import main
from medmae.find import find
from medmae.torchvision_guard import guard
from medmae.transfer.nnunet.export import export, plain
from medmae.transfer.nnunet.weights import read_source

SMALL = {"size": (16, 16, 16), "block": (4, 4, 4), "features": (4, 6, 8), "blocks": (1, 2, 2)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of two sequences."""
    torch.manual_seed(5)
    recipe = find("resenc_mae").recipe(scale="test", sequences=("t1n", "t2w"), **SMALL)
    folder = tmp_path_factory.mktemp("run") / "model"
    return save_model(folder, find("resenc_mae").build(**recipe), name="resenc_mae", recipe=recipe)


def line(checkpoint: Path, folder: Path | str, out: Path, *more: str, plans: str = "nnUNetPlans") -> list[str]:
    return ["nnunet", "export", str(checkpoint), "--dataset", str(folder), "--plans", plans, "--out", str(out), *more]


def stock(plans: dict[str, Any], channels: int, classes: int) -> Any:
    """The network as nnU-Net builds it."""
    guard()
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    values = handler.PlansManager(plans).get_configuration("3d_fullres")
    return get_network_from_plans(
        values.network_arch_class_name,
        values.network_arch_init_kwargs,
        values.network_arch_init_kwargs_req_import,
        channels,
        classes,
        deep_supervision=True,
    )


@pytest.mark.parametrize("anisotropic", [False, True])
def test_stock_nnunet_loads_it(checkpoint: Path, tmp_path: Path, anisotropic: bool) -> None:
    changes: dict[str, Any] = {"kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1] * 3, [1, 2, 2], [2] * 3]}
    described = architecture(**changes) if anisotropic else architecture()
    dataset = dataset_of(("T2", "FLAIR", "T1ce"))
    folder = write_dataset(tmp_path, described, dataset=dataset)
    out = tmp_path / "weights.pth"
    assert main(line(checkpoint, folder, out)) == 0
    net = stock(json.loads((folder / "nnUNetPlans.json").read_text()), 3, 7)  # another number of classes
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    heads = net.state_dict()["decoder.seg_layers.0.weight"].clone()
    load_pretrained_weights(net, str(out))
    content = torch.load(out, weights_only=True)
    for key, value in net.state_dict().items():
        if ".seg_layers." not in key:
            assert torch.equal(value, content["network_weights"][key]), key
    assert torch.equal(net.state_dict()["decoder.seg_layers.0.weight"], heads)
    own = read_source(checkpoint).weights
    stem = net.state_dict()["encoder.stem.convs.0.conv.weight"]
    turned = own["encoder.stem.convs.0.conv.weight"].permute(0, 1, 4, 3, 2)  # RAS to the (z, y, x) of nnU-Net
    turned = turned.sum(2, keepdim=True) if anisotropic else turned
    torch.testing.assert_close(stem[:, 0], turned[:, 1])
    torch.testing.assert_close(stem[:, 1], turned.sum(1) / 3)
    with torch.no_grad():
        assert net(torch.randn(1, 3, 16, 16, 16))[0].shape == (1, 7, 16, 16, 16)


def test_what_the_file_says(checkpoint: Path, tmp_path: Path) -> None:
    described = architecture()
    folder = write_dataset(tmp_path, described, transpose_forward=[2, 0, 1])
    done = export(checkpoint, dataset=folder, plans="nnUNetPlans", out=tmp_path / "w.pth")
    content = torch.load(done.path, weights_only=True)
    assert set(content) == {"network_weights", "nnssl_adaptation_plan", "citations", "medmae"}
    plan = content["nnssl_adaptation_plan"]
    assert set(plan) == {
        "architecture_plans",
        "pretrain_plan",
        "pretrain_num_input_channels",
        "recommended_downstream_patchsize",
        "key_to_encoder",
        "key_to_stem",
        "keys_to_in_proj",
        "key_to_lpe",
    }
    assert set(plan["architecture_plans"]) == {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
    assert plan["architecture_plans"]["arch_class_name"] == "ResidualEncoderUNet"
    assert plan["architecture_plans"]["arch_kwargs"] == described.kwargs
    assert (plan["key_to_encoder"], plan["key_to_stem"], plan["key_to_lpe"]) == ("encoder.stages", "encoder.stem", None)
    assert plan["keys_to_in_proj"] == ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]
    for key in plan["keys_to_in_proj"]:
        assert f"{key}.weight" in content["network_weights"]
    (values,) = plan["pretrain_plan"]["configurations"].values()
    assert (values["patch_size"], values["spacing"]) == ([16, 16, 16], [1.0, 1.0, 1.0])
    assert all({"type", "name", "apa_citations"} <= set(entry) for entry in content["citations"])
    assert content["medmae"]["orientation"] == "RSA"
    assert str(tmp_path) not in json.dumps(content["medmae"])  # places do not travel
    assert content["medmae"]["report"]["share"] == 1.0


def test_aliases_share_their_memory_in_the_file(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, architecture())
    done = export(checkpoint, dataset=folder, plans="nnUNetPlans", out=tmp_path / "w.pth")
    weights = torch.load(done.path, weights_only=True)["network_weights"]
    unique = {value.data_ptr(): value.numel() for value in weights.values()}
    assert sum(unique.values()) == sum(p.numel() for p in network(classes=3).parameters())
    assert done.path.stat().st_size < 6 * sum(unique.values()) + 200_000


def test_the_file_is_a_source_again(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, architecture())
    first = export(checkpoint, dataset=folder, plans="nnUNetPlans", out=tmp_path / "one.pth")
    source = read_source(first.path)
    assert (source.channels, source.orientation) == (("T1", "T2"), "SAR")
    second = export(first.path, dataset=folder, plans="nnUNetPlans", out=tmp_path / "two.pth")
    assert (second.report.share, second.report.inflated) == (1.0, ())
    one, two = (torch.load(p, weights_only=True)["network_weights"] for p in (first.path, second.path))
    for key in one:
        assert ".seg_layers." in key or torch.equal(one[key], two[key])
    third = export(checkpoint, dataset=folder, plans="nnUNetPlans", out=tmp_path / "three.pth")
    again = torch.load(third.path, weights_only=True)["network_weights"]
    assert all(torch.equal(one[key], again[key]) for key in one)  # what is random too


def test_too_little_fits_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dataset(tmp_path, architecture(features=[4, 16, 24]))
    out = tmp_path / "w.pth"
    assert main(line(checkpoint, folder, out)) == 5
    assert not out.exists()
    text = " ".join(capsys.readouterr().err.split())
    assert "less than --min-loaded 80%" in text
    assert "does not fit" in text
    assert main(line(checkpoint, folder, out, "--min-loaded", "0.01")) == 0
    assert out.exists()


def test_the_report_is_printed_and_json(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path, architecture(), dataset=dataset_of(("T1", "weird")))
    assert main(["--json", *line(checkpoint, folder, tmp_path / "w.pth")]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["share"] == 1.0
    assert any("weird" in note for note in found["notes"])
    text = " ".join(said.err.split())
    for part in ("100.0% of the network", "inflated: 1", "random:", "--channels", "nnUNetv2_train Dataset901_Tiny"):
        assert part in text
    assert main(line(checkpoint, folder, tmp_path / "v.pth", "--channels", "t1n,t2w")) == 0
    assert "inflated: 0" in " ".join(capsys.readouterr().err.split())
    assert main(line(checkpoint, folder, tmp_path / "u.pth", "--channels", "t1n")) == 2
    assert main(line(checkpoint, folder, tmp_path / "u.pth", "--channels", "t1n,?")) == 2
    (folder / "dataset.json").write_text(json.dumps(dataset_of(("T1", "?"))))
    assert main(line(checkpoint, folder, tmp_path / "u.pth")) == 0  # nnU-Net takes it too


def test_found_by_number_and_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path, architecture())
    more = ("--nnunet-root", str(tmp_path))
    for i, name in enumerate(("901", "Dataset901_Tiny", "Tiny")):
        assert main(line(checkpoint, name, tmp_path / f"{i}.pth", *more)) == 0
    plans = str(folder / "nnUNetPlans.json")
    assert main(line(checkpoint, folder, tmp_path / "file.pth", plans=plans)) == 0
    trained = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"  # as a trained model keeps them
    trained.mkdir()
    (trained / "plans.json").write_text((folder / "nnUNetPlans.json").read_text())
    (trained / "dataset.json").write_text((folder / "dataset.json").read_text())
    assert main(line(checkpoint, trained, tmp_path / "trained.pth")) == 0


def test_storage_orientation_is_read_from_an_image(checkpoint: Path, tmp_path: Path) -> None:
    import nibabel as nib

    folder = write_dataset(tmp_path, architecture())
    images = tmp_path / "nnUNet_raw" / "Dataset901_Tiny" / "imagesTr"
    images.mkdir(parents=True)
    affine = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # sagittal: A, S, L
    image = nib.Nifti1Image(np.zeros((8, 9, 10), np.float32), affine)
    (images / "broken_0000.nii.gz").write_bytes(b"no image")
    nib.save(image, images / "case_0000.nii.gz")
    done = export(checkpoint, dataset=folder, plans="nnUNetPlans", out=tmp_path / "w.pth")
    assert done.target.orientation == "LSA"
    assert not done.target.notes
    own = read_source(checkpoint).weights["encoder.stem.convs.0.conv.weight"]
    stem = torch.load(done.path, weights_only=True)["network_weights"]["encoder.stem.convs.0.conv.weight"]
    assert torch.equal(stem, own.permute(0, 1, 2, 4, 3))


WRONG = {
    "plans not found": (["--plans", "nnUNetOther"], 2, "there are: nnUNetPlans"),
    "configuration not found": (["--configuration", "2d"], 2, "there are: 3d_fullres"),
    "no dataset": (["--dataset", "902"], 2, "no nnU-Net dataset '902'"),
    "out is a folder": (["--out", "."], 2, "is a folder"),
    "a share over one": (["--min-loaded", "80"], 2, "between 0 and 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    folder = write_dataset(tmp_path, architecture())
    more, code, words = WRONG[case]
    assert main(line(checkpoint, folder, tmp_path / "w.pth", "--nnunet-root", str(tmp_path), *more)) == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_plans_of_another_dataset_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dataset(tmp_path, architecture())
    plans = plans_of(architecture(), name="Dataset007_Pancreas", channels=1)
    (folder / "other.json").write_text(json.dumps(plans))
    assert main(line(checkpoint, folder, tmp_path / "w.pth", plans="other")) == 2
    assert "was made for Dataset007_Pancreas, not for Dataset901_Tiny" in " ".join(capsys.readouterr().err.split())
    plain_folder = tmp_path / "anything"
    plain_folder.mkdir()
    (plain_folder / "other.json").write_text(json.dumps(plans))
    (plain_folder / "dataset.json").write_text(json.dumps(dataset_of()))
    assert main(line(checkpoint, plain_folder, tmp_path / "w.pth", plans="other")) == 2
    assert "1 channel(s)" in " ".join(capsys.readouterr().err.split())


def test_an_existing_file_stays(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_dataset(tmp_path, architecture()), tmp_path / "w.pth"
    out.write_bytes(b"mine")
    assert main(line(checkpoint, folder, out)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(line(checkpoint, folder, out, "--overwrite")) == 0
    assert sorted(p.name for p in tmp_path.glob("*w.pth*")) == ["w.pth"]


def test_a_checkpoint_of_the_wrong_kind(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path, architecture())
    recipe = find("bm_mae").recipe(scale="test", sequences=("t1n", "t2w"))
    vit = save_model(tmp_path / "vit", find("bm_mae").build(**recipe), name="bm_mae", recipe=recipe)
    assert main(line(vit, folder, tmp_path / "w.pth")) == 5
    assert "vision transformer" in " ".join(capsys.readouterr().err.split())
    flat = write_dataset(tmp_path / "flat", architecture(kernels=[[3, 3]] * 3, strides=[[1, 1], [2, 2], [2, 2]]))
    assert main(line(checkpoint, flat, tmp_path / "w.pth")) == 5
    assert "slices" in " ".join(capsys.readouterr().err.split())
    assert main(line(tmp_path / "nothing", folder, tmp_path / "w.pth")) == 5
    assert "does not exist" in " ".join(capsys.readouterr().err.split())


def test_without_nnunet_the_pip_line_is_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pydoc
    import sys

    folder = write_dataset(tmp_path, architecture())
    real = pydoc.locate

    def locate(path: str, *rest: Any) -> Any:
        return None if path.startswith("dynamic_network_architectures") else real(path, *rest)

    monkeypatch.setattr(pydoc, "locate", locate)
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    assert main(line(checkpoint, folder, tmp_path / "w.pth")) == 4
    assert "pip install 'medmae[nnunet]'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["bm_mae", "eva_mae", "hi_end_mae"])
@pytest.mark.filterwarnings("ignore:the patch .* is not whole patches")
def test_a_transformer_goes_into_its_network(tmp_path: Path, name: str) -> None:
    from medmae.checkpoint import read_config
    from medmae.transfer.nnunet.vit import vit_plans

    recipe = find(name).recipe(scale="test", sequences=("t1n", "t2w"))
    method = find(name).build(**recipe)
    vit = save_model(tmp_path / "vit", method, name=name, recipe=recipe)
    folder = write_dataset(tmp_path, architecture(), dataset=dataset_of(("T2", "T1ce")))
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    made = vit_plans(plans, read_config(vit), name="vitPlans", channels=("T2", "T1ce"))
    (folder / "vitPlans.json").write_text(json.dumps(made))
    done = export(vit, dataset=folder, plans="vitPlans", out=tmp_path / "w.pth")
    assert (done.report.share, done.report.scope) == (1.0, "encoder")
    assert any("mean over 2 sequences" in line for line in done.report.inflated)
    weights = torch.load(done.path, weights_only=True)["network_weights"]
    for key, value in method.state_dict().items():
        if key.startswith("encoder.") and "t1n" not in key:
            assert torch.equal(weights[key], value), key
    net = stock(made, 2, 5)
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    load_pretrained_weights(net, str(done.path))
    cnn = find("resenc_mae").recipe(scale="test", sequences=("t1n", "t2w"), **SMALL)
    other = save_model(tmp_path / "cnn", find("resenc_mae").build(**cnn), name="resenc_mae", recipe=cnn)
    assert main(line(other, folder, tmp_path / "v.pth", plans="vitPlans")) == 5


def test_plain_values_only() -> None:
    found = plain({"a": (1, np.float64(0.5)), 2: Path("x"), "n": None, "t": torch.ones(1), "i": np.int64(3)})
    assert (found["a"], found["2"], found["n"]) == ([1, 0.5], "x", None)
    assert type(found["a"][1]) is float
