"""Vision transformers as networks of nnU-Net: the five things it expects, missing channels, axes and plans."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from medmae.checkpoint import save_model
from medmae.core.errors import UsageError
from medmae.find import find
from medmae.torchvision_guard import guard
from medmae.transfer.nnunet.adapt import adapt
from medmae.transfer.nnunet.vit import CLASS, METHODS, ViTSegmenter, rounded, vit_plans
from medmae.transfer.nnunet.weights import read_source

NAMES = ("t1n", "t2w", "t2f")
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset901_Tiny",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "configurations": {
        "2d": {"patch_size": [64, 64], "spacing": [1.0, 1.0]},
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "batch_size": 2,
            "patch_size": [24, 32, 40],
            "spacing": [3.0, 1.0, 2.0],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2]]},
                "_kw_requires_import": [],
            },
        },
        "3d_small": {"inherits_from": "3d_fullres", "batch_size": 4},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
}


def recipe(method: str, **options: Any) -> dict[str, Any]:
    return find(method).recipe(scale="test", **({"sequences": list(NAMES)} | options))


def config(method: str = "bm_mae", **options: Any) -> dict[str, Any]:
    return {"method": method, "recipe": recipe(method, **options)}


def awake(network: Any) -> Any:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


def network(method: str = "bm_mae", names: tuple[str, ...] = NAMES, **options: Any) -> ViTSegmenter:
    given = {
        "strides": STRIDES, "input_shape": [16, 24, 16], "sequences": list(names), "method": method,
        "recipe": recipe(method), "features": 4, "deep_supervision": False,
    }  # fmt: skip
    return awake(ViTSegmenter(input_channels=len(names), num_classes=3, **(given | options)))


@pytest.mark.parametrize("method", METHODS)
def test_scores_have_the_size_of_the_input_whatever_it_is(method: str) -> None:
    net = network(method)
    with torch.no_grad():
        for size in ((16, 24, 16), (32, 8, 24), (17, 9, 12)):
            assert net(torch.randn(1, 3, *size)).shape == (1, 3, *size)
        net.decoder.deep_supervision = True
        scores = net(torch.randn(1, 3, 16, 24, 16))
    assert [tuple(score.shape[2:]) for score in scores] == [(16, 24, 16), (8, 12, 8), (4, 6, 4)]


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_change_what_is_inside(method: str) -> None:
    """A window that the patch does not divide is the larger window with zeros, cut."""
    net, x = network(method), torch.randn(1, 3, 16, 24, 16)
    x[..., 12:] = 0
    with torch.no_grad():
        torch.testing.assert_close(net(x[..., :12]), net(x)[..., :12])


@pytest.mark.parametrize("method", METHODS)
def test_a_silent_channel_is_one_that_is_not_there(method: str) -> None:
    net = network(method)
    kept = (NAMES[0], NAMES[2])
    alone = network(method, kept)
    state = {k: v for k, v in net.state_dict().items() if NAMES[1] not in k.split(".")}
    alone.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 16, 24, 16)
    x[0, 1] = 0
    x[1, 1] = 0.03  # what nnU-Net's normalization leaves of a placeholder of CT
    with torch.no_grad():
        found, expected = net(x), alone(x[:, [0, 2]])
        spoken = net(x + torch.tensor([0.0, 1.0, 0.0])[:, None, None, None])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float((spoken - found).abs().max()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_samples_lack_different_channels(method: str) -> None:
    net, x = network(method), torch.randn(3, 3, 16, 24, 16)
    x[0, 1] = x[1, 0] = x[1, 2] = 0
    with torch.no_grad():
        together = net(x)
        for row in range(3):
            torch.testing.assert_close(together[row], net(x[row : row + 1])[0], atol=1e-4, rtol=1e-4)


def test_a_window_of_nothing_but_background_is_complete() -> None:
    net, x = network(), torch.zeros(2, 3, 16, 24, 16)
    x[1, 0] = 1
    with torch.no_grad():
        assert net._present(x).tolist() == [[True] * 3, [True, False, False]]
        assert bool(net(x).isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_but_unused_parts_and_a_silent_channel_gets_none(method: str) -> None:
    net = network(method, deep_supervision=True).train()
    x = torch.randn(2, 3, 16, 24, 16)
    x[:, 1] = 0
    torch.stack([score.square().mean() for score in net(x)]).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        silent = NAMES[1] in name.split(".")
        assert bool((parameter.grad != 0).any()) != silent, name


def test_the_encoder_has_the_names_of_its_method() -> None:
    for method in METHODS:
        built = find(method).build(**recipe(method))
        ours = {k: v.shape for k, v in network(method).state_dict().items() if k.startswith("encoder.")}
        assert ours == {k: v.shape for k, v in built.state_dict().items() if k.startswith("encoder.")}


def test_axes_are_turned_and_turned_back() -> None:
    options = {"recipe": recipe("bm_mae", patch=[8, 8, 4]), "input_shape": [16, 24, 8]}
    plain = network(strides=[[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]], **options)
    turned = network(
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], **(options | {"input_shape": [8, 24, 16]}), axes=[2, 1, 0]
    )
    turned.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 16, 24, 8)
    with torch.no_grad():
        torch.testing.assert_close(turned(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2), plain(x))


def test_convolutions_are_initialized_and_the_encoder_is_left_alone() -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.apply(net.initialize)
    after = net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("encoder."))
    assert not torch.equal(before["decoder.seg_layers.0.weight"], after["decoder.seg_layers.0.weight"])
    assert float(after["decoder.seg_layers.0.bias"].abs().max()) == 0


def test_millimeters_come_from_the_plans() -> None:
    near = network(recipe=recipe("bm_mae", coords="mm"), spacing=[1.0, 1.0, 1.0])
    far = network(recipe=recipe("bm_mae", coords="mm"), spacing=[1.0, 1.0, 4.0])
    far.load_state_dict(near.state_dict())
    x = torch.randn(1, 3, 16, 24, 16)
    with torch.no_grad():
        assert float((near(x) - far(x)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mae"}, "no encoder for a segmentation network"),
        ({"input_channels": 2}, "2 channels"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "product of the strides"),
        ({"input_shape": [16, 16]}, "three axes"),
        ({"axes": [0, 1, 1]}, "three axes"),
        ({"recipe": {"widht": 3}}, "no argument 'widht'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    given = {
        "input_channels": 3, "strides": STRIDES, "input_shape": [16, 24, 16], "sequences": NAMES,
        "recipe": recipe("bm_mae"),
    }  # fmt: skip
    with pytest.raises(UsageError, match=message):
        ViTSegmenter(num_classes=3, **(given | options))


def test_an_encoder_is_loaded_sequence_by_sequence(tmp_path: Path) -> None:
    method = awake(find("bm_mae").build(**recipe("bm_mae")))
    save_model(tmp_path / "model", method, name="bm_mae", recipe=recipe("bm_mae"))
    net = network(names=("t2f", "adc"))
    report = adapt(read_source(tmp_path / "model"), net, channels=("t2f", "adc"))
    assert report.share == 1
    assert report.inflated  # a sequence that is new starts from the mean of the known ones
    assert all("adc" in line for line in report.inflated)
    state = method.state_dict()
    for name, value in net.state_dict().items():
        if name in state and name.startswith("encoder."):
            assert torch.equal(value, state[name]), name


# --- plans ----------------------------------------------------------------------------------------------------------


def test_plans_keep_what_is_the_users() -> None:
    before = deepcopy(PLANS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = vit_plans(PLANS, config(), name="tinyViT")
    assert before == PLANS
    assert json.loads(json.dumps(made)) == made
    assert made["plans_name"] == "tinyViT"
    entry, old = made["configurations"]["3d_fullres"], PLANS["configurations"]["3d_fullres"]
    assert {k: v for k, v in entry.items() if k != "architecture"} == {
        k: v for k, v in old.items() if k != "architecture"
    }
    assert entry["architecture"]["network_class_name"] == CLASS
    kwargs = entry["architecture"]["arch_kwargs"]
    assert kwargs["strides"] == STRIDES
    assert kwargs["input_shape"] == entry["patch_size"]
    assert kwargs["sequences"] == list(NAMES)
    assert kwargs["axes"] == [2, 1, 0]
    assert kwargs["spacing"] == [2.0, 1.0, 3.0]


def test_a_patch_that_does_not_fit_is_rounded_and_said() -> None:
    assert rounded((20, 28, 3), (8, 8, 8)) == (24, 32, 8)
    plans = deepcopy(PLANS)
    plans["configurations"]["3d_fullres"]["patch_size"] = [20, 32, 42]
    with pytest.warns(UserWarning, match=r"\[20, 32, 42\].*\[24, 32, 40\]"):
        made = vit_plans(plans, config(), name="tinyViT")
    entry = made["configurations"]["3d_fullres"]
    assert entry["patch_size"] == entry["architecture"]["arch_kwargs"]["input_shape"] == [24, 32, 40]


def test_anisotropic_patches_follow_the_axes_of_the_plans() -> None:
    """The model cuts (x, y, z) by (8, 8, 4); nnU-Net's arrays are (z, y, x), here with y in front."""
    plans = deepcopy(PLANS) | {"transpose_forward": [1, 0, 2]}
    plans["configurations"]["3d_fullres"]["patch_size"] = [24, 36, 40]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = vit_plans(plans, config(patch=[8, 8, 4]), name="p", channels=["T1", "FLAIR", "adc"])
    kwargs = made["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["axes"] == [2, 0, 1]
    assert kwargs["strides"][1:] == [[2, 2, 2], [2, 2, 2], [2, 1, 2]]
    assert kwargs["sequences"] == ["t1n", "t2f", "adc"]
    net = ViTSegmenter(input_channels=3, num_classes=2, **(kwargs | {"features": 4}))
    with torch.no_grad():
        scores = net(torch.randn(1, 3, *kwargs["input_shape"]))
    assert [tuple(score.shape[2:]) for score in scores] == [(24, 36, 40), (12, 18, 20), (6, 9, 10)]


def test_models_of_other_orientations_need_no_turning() -> None:
    given = config() | {"data": {"preprocess": {"orientation": "SAR"}}}
    made = vit_plans(PLANS, given, name="p")
    assert made["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["axes"] == [0, 1, 2]
    made = vit_plans(PLANS, given, name="p", orientation="RAS")
    assert made["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["axes"] == [2, 1, 0]


def test_inherited_configurations_are_understood() -> None:
    made = vit_plans(PLANS, config(), name="p", configuration="3d_small")
    entry = made["configurations"]["3d_small"]
    assert entry["batch_size"] == 4
    assert entry["patch_size"] == [24, 32, 40]
    assert entry["architecture"]["network_class_name"] == CLASS
    assert made["configurations"]["3d_fullres"] == PLANS["configurations"]["3d_fullres"]


@pytest.mark.parametrize(
    ("given", "configuration", "message"),
    [
        (config(), "2d", "2 axes"),
        (config(), "3d_lowres", "no configuration"),
        (config(), "3d_cascade_fullres", "cascade"),
        ({"method": "resenc_mae", "recipe": {}}, "3d_fullres", "no vision transformer"),
    ],
)
def test_plans_that_cannot_be_are_refused(given: dict[str, Any], configuration: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vit_plans(PLANS, given, name="p", configuration=configuration)


@pytest.mark.parametrize("method", METHODS)
def test_nnunet_builds_it_and_its_scales_fit(method: str) -> None:
    guard()
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    build = pytest.importorskip("nnunetv2.utilities.get_network_from_plans").get_network_from_plans
    np = pytest.importorskip("numpy")
    made = json.loads(json.dumps(vit_plans(PLANS, config(method), name="tinyViT", features=4)))
    manager = handler.PlansManager(made).get_configuration("3d_fullres")
    net = build(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        3,
        4,
        deep_supervision=True,
    )
    assert type(net).__name__ == "ViTSegmenter"
    scales = (1 / np.cumprod(np.vstack(manager.pool_op_kernel_sizes), axis=0))[:-1]
    x = torch.randn(2, 3, *manager.patch_size)
    scores = net(x)
    assert len(scores) == len(scales)
    for score, scale in zip(scores, scales, strict=True):
        assert list(score.shape) == [2, 4, *(round(n * s) for n, s in zip(manager.patch_size, scale, strict=True))]
    net.decoder.deep_supervision = False
    assert isinstance(net(x), torch.Tensor)
    assert any(".seg_layers." in name for name in net.state_dict())
