"""nnssl's and nnU-Net's checkpoints as model folders, against networks that dynamic-network-architectures builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medmae.checkpoint import from_pretrained, read_config
from medmae.cli import main
from medmae.convert import names
from medmae.convert.nnssl import Converted, convert, save
from medmae.convert.nnunet_file import NnUnetFile, read_nnunet_file
from medmae.convert.unet_keys import canonical_key, once, unet_recipe
from medmae.core.errors import CheckpointError, UsageError
from medmae.nets.build import Architecture, resenc
from medmae.torchvision_guard import guard

CNN: dict[str, Any] = {
    "features": [4, 6, 8],
    "blocks": [1, 2, 2],
    "kernels": [[3, 3, 3]] * 3,
    "strides": [[1] * 3, [2] * 3, [2] * 3],
    "decoder_convs": [1, 1],
}


def plan_of(kind: str, patch: int, *, channels: int = 1, prefix: str = "encoder") -> dict[str, Any]:
    """nnssl's adaptation plan as it is serialized."""
    stem = f"{prefix}.stem"
    return {
        "architecture_plans": {"arch_class_name": kind, "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"configurations": {"onemmiso": {"spacing": [1, 1, 1], "patch_size": [patch] * 3}}},
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": [patch] * 3,
        "key_to_encoder": f"{prefix}.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{stem}.convs.0.conv", f"{stem}.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }


def unet(described: Architecture | None = None, *, channels: int = 1, classes: int = 1) -> Any:
    torch.manual_seed(3)
    net = (described or resenc(**CNN)).build(input_channels=channels, num_classes=classes)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return net


def write(path: Path, weights: dict[str, Tensor], plan: dict[str, Any] | None = None, **more: Any) -> Path:
    cite = [{"type": "Architecture", "name": "ResEncL", "apa_citations": ["Isensee et al. 2024."]}]
    content = {"network_weights": weights, "citations": cite, **more}
    torch.save({**content, "nnssl_adaptation_plan": plan} if plan else content, path)
    return path


def predict(converted: Converted, image: Tensor) -> Tensor:
    """What the U-Net of the method shows for an image."""
    method: Any = converted.method.eval()
    shown = torch.ones(len(image), image.shape[1], method.encoder.grid.length, dtype=torch.bool)
    with torch.no_grad():
        found: Tensor = method.decoder.image(method.encoder.features(image, shown))
    return found


def test_a_resenc_becomes_a_model_that_computes_the_same(tmp_path: Path) -> None:
    net = unet()
    path = write(tmp_path / "checkpoint_final.pth", net.state_dict(), plan_of("ResEncL", 16))
    converted = convert(path)
    assert converted.name == "resenc_mae"
    assert converted.recipe["sequences"] == ["any"]
    assert converted.recipe["size"] == [16, 16, 16]
    assert converted.recipe["features"] == CNN["features"]
    report = converted.report
    assert (report.unused, report.missing, report.fresh) == ((), (), ())
    assert len(report.used) == len({value.data_ptr() for value in net.state_dict().values()})
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(predict(converted, image), net(image), atol=1e-5, rtol=1e-5)
    assert set(converted.method.state_dict()) == set(net.state_dict())  # keys of the stock network, aliases included


def test_the_folder_says_license_orientation_and_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.pth", unet().state_dict(), plan_of("ResEncL", 16))
    out = tmp_path / "model"
    assert main(["convert", "nnssl", str(path), "--out", str(out), "--sequence", "T1"]) == 0
    said = capsys.readouterr().err
    assert "CC BY-SA 4.0" in said
    assert "CC BY 4.0" in said
    config = read_config(out)
    assert config["recipe"]["sequences"] == ["t1n"]
    assert config["data"]["preprocess"] == {"orientation": "SAR", "normalize": "zscore", "spacing": [1.0, 1.0, 1.0]}
    assert "CC BY-SA 4.0" in config["license"]
    assert "Isensee et al. 2024." in config["citation"]
    assert "CC BY-SA" in (out / "README.md").read_text()
    converted = convert(path, sequence="t1n")
    state = from_pretrained(out).state_dict()
    for key, value in converted.method.state_dict().items():
        assert torch.equal(value, state[key])
    assert main(["convert", "nnssl", str(path), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", "bm_mae", str(path), "--out", str(tmp_path / "x"), "--sequence", "t1n"]) == 2


def test_copies_that_were_never_trained_are_not_taken(tmp_path: Path) -> None:
    """A rebuilt block leaves its plain name behind with what it was initialized with."""
    net = unet()
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    stale = [key for key in weights if key.startswith("encoder.") and ".all_modules." not in key]
    stale += [key for key in weights if key.startswith("decoder.encoder.")]
    for key in stale:
        weights[key] = torch.full_like(weights[key], 7.0)
    converted = convert(write(tmp_path / "s3d.pth", weights, plan_of("ResEncL", 16)))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(predict(converted, image), net(image), atol=1e-5, rtol=1e-5)
    assert any("copies that differ" in note for note in converted.report.notes)
    stem = converted.method.state_dict()["encoder.stem.convs.0.conv.weight"]
    assert torch.equal(stem, net.state_dict()["encoder.stem.convs.0.conv.weight"])


def test_one_name_per_tensor() -> None:
    net = unet()
    found, differing = once(net.state_dict())
    assert not differing
    assert len(found) == len({value.data_ptr() for value in net.state_dict().values()})
    assert canonical_key("decoder.encoder.stem.convs.0.all_modules.0.bias") == "encoder.stem.convs.0.conv.bias"
    assert canonical_key("decoder.stages.0.convs.0.all_modules.1.weight") == "decoder.stages.0.convs.0.norm.weight"


@pytest.mark.parametrize("plain", [False, True])
def test_the_network_is_read_off_the_shapes(plain: bool) -> None:
    given = {
        "features": [4, 6, 6, 8],
        "blocks": [2, 1, 3, 1],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 1, 3], [3, 3, 3]],
        "strides": [[1] * 3, [1, 2, 2], [2, 2, 2], [2, 1, 2]],
        "decoder_convs": [2, 1, 1],
        "plain": plain,
    }
    weights, _ = once(unet(resenc(**given)).state_dict())
    assert unet_recipe(weights) == given
    with pytest.raises(CheckpointError, match="not the weights of a U-Net"):
        unet_recipe({"encoder.stages.0.other": torch.ones(2)})


def test_an_encoder_alone_leaves_the_decoder_fresh(tmp_path: Path) -> None:
    net = unet()
    weights = {key: value for key, value in net.state_dict().items() if key.startswith("encoder.")}
    plan = plan_of("ResidualEncoderUNet", 16)
    plan["architecture_plans"]["arch_kwargs"] = {"strides": CNN["strides"]}
    converted = convert(write(tmp_path / "simclr.pth", weights, plan))
    assert converted.report.missing == ()
    assert converted.report.fresh
    assert all(key.startswith("decoder.") for key in converted.report.fresh)
    again = convert(tmp_path / "simclr.pth")
    for key, value in converted.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[key])  # what is fresh too


def test_an_encoder_elsewhere_in_the_network_is_found(tmp_path: Path) -> None:
    weights = {
        key.replace("encoder.", "student.backbone.", 1): value
        for key, value in unet().state_dict().items()
        if key.startswith("encoder.")
    }
    path = write(tmp_path / "c.pth", weights, plan_of("ResEncL", 16, prefix="student.backbone"))
    assert not convert(path).report.missing


@pytest.mark.parametrize(("order", "expected"), [([2, 0, 1], "RSA"), (None, "SAR"), ([0, 0, 7], "SAR"), ("x", "SAR")])
def test_the_order_of_axes_is_that_of_the_plan(order: Any, expected: str) -> None:
    plan = {"transpose_forward": order}
    assert NnUnetFile({}, adaptation={"pretrain_plan": plan}).orientation == expected
    assert NnUnetFile({}, plans={**plan, "configurations": {}}).orientation == expected


def test_a_supervised_nnunet_checkpoint_names_its_channels(tmp_path: Path) -> None:
    dataset = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "a": 1, "b": 2}}
    net = unet(channels=2, classes=3)
    full = {"patch_size": [8, 16, 32], "spacing": [3.0, 1.0, 1.0]}
    plans = {"transpose_forward": [1, 0, 2], "configurations": {"a": full, "b": {"inherits_from": "a"}}}
    about = {"dataset_json": dataset, "plans": plans, "configuration": "b"}
    path = write(tmp_path / "c.pth", net.state_dict(), None, init_args=about)
    converted = convert(path)
    assert (converted.recipe["size"], converted.recipe["block"]) == ([8, 16, 32], [8, 16, 16])
    preprocess = read_config(save(converted, tmp_path / "model"))["data"]["preprocess"]
    assert preprocess == {"orientation": "ASR", "normalize": "zscore", "spacing": [3.0, 1.0, 1.0]}
    assert converted.recipe["sequences"] == ["t1n", "t2f"]
    assert all(".seg_layers." in key for key in converted.report.fresh)  # heads for classes are none for voxels
    bare = write(tmp_path / "d.pth", net.state_dict())
    with pytest.raises(UsageError, match=r"2 input channels and 0 names.*--sequence"):
        convert(bare)
    assert convert(bare, sequence="t2w,t1c").recipe["sequences"] == ["t2w", "t1c"]
    with pytest.raises(UsageError, match="2 input channels and 1 names"):
        convert(bare, sequence="t2w,T2")


def test_what_does_not_fit_is_refused_unless_asked(tmp_path: Path) -> None:
    weights = dict(unet().state_dict())
    lacking = {key: value for key, value in weights.items() if "stages.1.blocks.0.conv2" not in key}
    path = write(tmp_path / "a.pth", lacking, plan_of("ResEncL", 16))
    with pytest.raises(CheckpointError, match="missing 4"):
        convert(path)
    assert len(convert(path, strict=False).report.missing) == 4
    extra = write(tmp_path / "b.pth", weights | {"encoder.mask_token": torch.ones(3)}, plan_of("ResEncL", 16))
    with pytest.raises(CheckpointError, match=r"encoder\.mask_token"):
        convert(extra)
    with pytest.raises(CheckpointError, match="neither a U-Net"):
        convert(write(tmp_path / "c.pth", {"x.weight": torch.ones(2)}))
    with pytest.raises(UsageError, match="no such file"):
        convert(tmp_path / "none.pth")


class Plan:
    """Stands for an object of nnssl in the state of a training run."""


Plan.__module__ = "nnssl.experiment_planning.plan"


def test_the_state_of_a_training_run_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("nnssl.experiment_planning.plan")
    module.Plan = Plan  # type: ignore[attr-defined]
    for name in ("nnssl", "nnssl.experiment_planning", "nnssl.experiment_planning.plan"):
        monkeypatch.setitem(sys.modules, name, module)
    path = write(tmp_path / "c.pth", unet().state_dict(), plan_of("ResEncL", 16), init_args={"plan": Plan()})
    with pytest.raises(CheckpointError, match="keep only what is needed"):
        convert(path)


def test_the_published_plan_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan_of("ResEncL", 24)))
    file = read_nnunet_file(write(tmp_path / "c.pth", unet().state_dict()))
    assert (file.patch, file.spacing) == ((24, 24, 24), (1.0, 1.0, 1.0))
    (tmp_path / "adaptation_plan.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adaptation_plan\.json"):
        read_nnunet_file(tmp_path / "c.pth")


def test_odd_words_in_a_file_are_not_relied_on(tmp_path: Path) -> None:
    plan = {"pretrain_plan": "x", "architecture_plans": 3, "key_to_encoder": None}
    more = {"init_args": [], "medmae": "y", "citations": ["z"]}
    path = write(tmp_path / "c.pth", unet().state_dict(), plan, **more)
    assert convert(path).recipe["sequences"] == ["any"]


def test_a_primus_becomes_eva_mae(tmp_path: Path) -> None:
    guard()
    primus = pytest.importorskip("dynamic_network_architectures.architectures.primus")
    torch.manual_seed(1)
    net = primus.Primus(
        input_channels=1,
        embed_dim=48,
        patch_embed_size=(8, 8, 8),
        num_classes=1,
        eva_depth=2,
        eva_numheads=4,
        input_shape=(32, 32, 32),
        init_values=0.1,
        scale_attn_inner=True,
    )
    plan = plan_of("PrimusS", 32) | {"key_to_encoder": "eva", "key_to_stem": "down_projection"}
    path = write(tmp_path / "c.pth", net.state_dict(), plan)
    with pytest.raises(CheckpointError, match="attention heads"):
        convert(path)
    converted = convert(path, heads=4, sequence="t1n")
    assert converted.name == "eva_mae"
    recipe = converted.recipe
    assert (recipe["width"], recipe["depth"], recipe["table"], recipe["axes"]) == (48, 2, [4, 4, 4], [0, 1, 2])
    assert converted.report.missing == ()
    assert all(key.startswith("decoder.") for key in converted.report.fresh)
    folder = save(converted, tmp_path / "model")
    assert read_config(folder)["method"] == "eva_mae"
    image = torch.randn(1, 1, 32, 32, 32)
    method: Any = converted.method.eval()
    with torch.no_grad():
        tokens = method.tokenizer({"t1n": image, "key": torch.zeros(1, dtype=torch.long)})
        ours = method.encoder(tokens, tokens.layout).tokens.content
        cubes = net.eval().down_projection(image).flatten(2).transpose(1, 2)
        theirs, _ = net.eva(cubes)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_is_exported_comes_back(tmp_path: Path) -> None:
    """Ours -> the layout of nnssl and nnU-Net -> ours, to the bit."""
    from medmae.transfer.nnunet.export import export

    first = save(convert(write(tmp_path / "c.pth", unet().state_dict(), plan_of("ResEncL", 16))), tmp_path / "model")
    described = resenc(**CNN)
    arch = {
        "network_class_name": described.class_name,
        "arch_kwargs": dict(described.kwargs),
        "_kw_requires_import": list(described.requires_import),
    }
    full = {"patch_size": [16] * 3, "spacing": [1.0] * 3, "architecture": arch}
    plans = {"plans_name": "p", "transpose_forward": [0, 1, 2], "configurations": {"3d_fullres": full}}
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "p.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "any"}, "labels": {"background": 0, "a": 1}})
    )
    done = export(first, dataset=folder, plans="p", out=tmp_path / "w.pth")
    assert (done.report.share, done.report.inflated) == (1.0, ())
    back = convert(done.path)
    old = from_pretrained(first).state_dict()
    for key, value in back.method.state_dict().items():
        assert ".seg_layers." in key or torch.equal(value, old[key]), key


@pytest.mark.parametrize("name", ["resenc_mae", "eva_mae"])
def test_out_and_in_again(tmp_path: Path, name: str) -> None:
    from medmae.checkpoint import save_model
    from medmae.find import find

    heads = {"heads": 4} if name == "eva_mae" else {}
    changes = {"axes": (1, 0, 2), "layer_scale": 0.3} if name == "eva_mae" else {}
    recipe = find(name).recipe(scale="test", sequences=("t2w", "t1n"), **changes)
    method = find(name).build(**recipe)
    with torch.no_grad():
        for value in method.parameters():
            value.add_(0.1 * torch.randn_like(value))
    about = {"data": {"preprocess": {"orientation": "LPS", "spacing": [1.0, 1.0, 2.0]}}}
    folder = save_model(tmp_path / "model", method, name=name, recipe=recipe, about=about)
    out = tmp_path / "out.pth"
    assert main(["convert", "to_nnssl", str(folder), "--out", str(out)]) == 0
    assert main(["convert", "to_nnssl", str(folder), "--out", str(out)]) == 2
    content = torch.load(out, weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    assert plan["pretrain_num_input_channels"] == 2
    for key in plan["keys_to_in_proj"]:
        assert content["network_weights"][f"{key}.weight"].shape[1] == 2
    back = convert(out, **heads)  # type: ignore[arg-type]
    assert (back.name, back.report.missing, back.report.fresh, back.report.unused) == (name, (), (), ())
    assert back.recipe["sequences"] == ["t2w", "t1n"]
    assert {
        key: back.recipe[key] for key in ("size", "features", "strides", "patch", "axes") if key in back.recipe
    } == {key: recipe[key] for key in ("size", "features", "strides", "patch", "axes") if key in recipe}
    assert read_config(save(back, tmp_path / "again"))["data"]["preprocess"]["orientation"] == "LPS"
    old, new = method.state_dict(), back.method.state_dict()
    assert set(old) == set(new)
    for key, value in old.items():
        assert torch.equal(new[key], value), key


def test_only_networks_that_nnssl_has_go_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medmae.checkpoint import save_model
    from medmae.find import find

    for name, changes in (("bm_mae", {}), ("resenc_mae", {"stem": "per_modality"})):
        recipe = find(name).recipe(scale="test", **changes)
        folder = save_model(tmp_path / name, find(name).build(**recipe), name=name, recipe=recipe)
        assert main(["convert", "to_nnssl", str(folder), "--out", str(tmp_path / "x.pth")]) == 5
        assert "medmae nnunet export" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.pth").exists()


def test_it_is_a_converter() -> None:
    assert set(names()) >= {"bm_mae", "nnssl", "to_nnssl"}
    assert not {"unet_keys", "nnunet_file", "reading"} & set(names())


@pytest.mark.slow
def test_the_published_size(tmp_path: Path) -> None:
    """ResEnc-L as published: 956 names for 102 million parameters."""
    described = resenc(
        features=[32, 64, 128, 256, 320, 320],
        blocks=[1, 3, 4, 6, 6, 6],
        kernels=[[3] * 3] * 6,
        strides=[[1] * 3, *[[2] * 3] * 5],
        decoder_convs=[1] * 5,
    )
    net = described.build(input_channels=1, num_classes=1)
    assert len(net.state_dict()) == 956
    converted = convert(write(tmp_path / "c.pth", net.state_dict(), plan_of("ResEncL", 160)))
    assert converted.recipe["size"] == [160, 160, 160]
    assert converted.recipe["block"] == [16, 16, 16]
    assert sum(p.numel() for p in converted.method.parameters()) == sum(p.numel() for p in net.parameters())
    assert not converted.report.missing
