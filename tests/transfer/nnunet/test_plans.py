"""What is read of nnU-Net's plans and dataset.json, against nnU-Net's own reading of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_unets import architecture, dataset_of, plans_of

from medmae.core.errors import CheckpointError, UsageError
from medmae.find import find
from medmae.torchvision_guard import guard
from medmae.transfer.nnunet import plans as reading


def test_configurations_inherit_and_say_what_there_is() -> None:
    plans = plans_of(architecture())
    bigger = reading.configuration(plans, "bigger_batch")
    assert (bigger["batch_size"], bigger["patch_size"]) == (4, [16, 16, 16])
    assert reading.architecture(plans, "bigger_batch").kwargs == architecture().kwargs
    with pytest.raises(UsageError, match="no configuration '3d_lowres'; there are: 3d_fullres, bigger_batch"):
        reading.configuration(plans, "3d_lowres")
    plans["configurations"]["3d_fullres"]["inherits_from"] = "bigger_batch"
    with pytest.raises(UsageError, match="inherits from itself"):
        reading.configuration(plans, "bigger_batch")


def test_the_same_configuration_as_nnunet_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    guard()
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    plans = plans_of(architecture())
    theirs = handler.PlansManager(plans).get_configuration("bigger_batch").configuration
    assert reading.configuration(plans, "bigger_batch") == theirs


LABELS: list[dict[str, Any]] = [
    {"background": 0, "a": 1, "b": 2},
    {"background": 0, "a": 1, "b": 2, "ignore": 3},
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
    {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
]


@pytest.mark.parametrize("labels", LABELS)
def test_as_many_heads_as_nnunet_makes(labels: dict[str, Any]) -> None:
    guard()
    handling = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling")
    order = [1, 2, 3][: sum(isinstance(v, list) for v in labels.values()) or 1]
    order = order if "core" not in labels or isinstance(labels["core"], list) else [1, 2]
    theirs = handling.LabelManager(labels, regions_class_order=order).num_segmentation_heads
    assert reading.heads(dataset_of(labels=labels)) == theirs


def test_old_plans_describe_their_network_too() -> None:
    guard()
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    old = {
        "patch_size": [16, 16, 16],
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 12,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    plans = {"configurations": {"3d_fullres": old}}
    ours = reading.architecture(plans)
    with pytest.warns(UserWarning, match="old nnU-Net plans"):
        theirs = handler.ConfigurationManager(dict(old))
    assert ours.class_name == theirs.network_arch_class_name
    assert ours.kwargs == theirs.network_arch_init_kwargs
    with pytest.raises(UsageError, match="no network known here"):
        reading.architecture({"configurations": {"3d_fullres": {"patch_size": [1]}}})


@pytest.mark.parametrize("plain", [False, True])
def test_a_recipe_builds_the_planned_network(plain: bool) -> None:
    described = architecture(
        kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]], strides=[[1] * 3, [1, 2, 2], [2] * 3], plain=plain
    )
    plans = plans_of(described)
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 24, 32]
    recipe = reading.recipe(plans)
    assert (recipe["size"], recipe["block"]) == ([8, 24, 32], [8, 8, 16])
    method = find("resenc_mae").build(sequences=["t1n", "t2w"], **recipe)
    stock = described.build(input_channels=2, num_classes=2)
    assert {k: v.shape for k, v in method.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}


def test_a_recipe_says_what_it_cannot_express() -> None:
    plans = plans_of(architecture())
    arch = plans["configurations"]["3d_fullres"]["architecture"]
    arch["arch_kwargs"] = {**arch["arch_kwargs"], "conv_bias": False, "nonlin": "torch.nn.ReLU"}
    with pytest.raises(UsageError, match=r"conv_bias=False, nonlin='torch\.nn\.ReLU'"):
        reading.recipe(plans)
    arch["network_class_name"] = "somewhere.Else"
    with pytest.raises(UsageError, match=r"somewhere\.Else"):
        reading.recipe(plans)
    flat = plans_of(architecture(kernels=[[3, 3]] * 3, strides=[[1, 1], [2, 2], [2, 2]]))
    with pytest.raises(UsageError, match="2 axes"):
        reading.recipe(flat)


def test_orientation_of_arrays() -> None:
    plans: dict[str, Any] = {"transpose_forward": [0, 1, 2], "image_reader_writer": "SimpleITKIO"}
    assert reading.array_orientation(plans) == "SAR"
    assert reading.array_orientation(plans, "LPS") == "SPL"
    assert reading.array_orientation({**plans, "transpose_forward": [2, 0, 1]}) == "RSA"
    assert reading.array_orientation({**plans, "image_reader_writer": "NibabelIOWithReorient"}, "LPI") == "SAR"
    assert reading.axis_order("RAS", "SAR") == (2, 1, 0)
    assert reading.axis_order("RAS", "PIR") == (1, 2, 0)
    with pytest.raises(CheckpointError, match="RAS"):
        reading.axis_order("RAS", "RLS")


def test_axis_codes_are_those_of_nibabel() -> None:
    from nibabel.orientations import aff2axcodes

    draw = np.random.default_rng(0)
    for _ in range(50):
        turned, _ = np.linalg.qr(draw.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = turned * draw.uniform(0.5, 4, size=3)
        if np.sort(np.abs(turned), axis=0)[-1].min() > 0.75:  # near ties either answer is right
            assert reading.axis_codes(affine) == "".join(aff2axcodes(affine))
    assert reading.axis_codes(np.diag([-1.0, -1.0, 1.0, 1.0])) == "LPS"


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no plans file there"):
        reading.read_plans(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        reading.read_plans(broken)
    broken.write_text(json.dumps([1]))
    with pytest.raises(UsageError, match="holds a list"):
        reading.read_dataset(broken)
    broken.write_text(json.dumps({"name": "x"}))
    with pytest.raises(UsageError, match="no 'configurations'"):
        reading.read_plans(broken)
    with pytest.raises(UsageError, match="channel_names"):
        reading.read_dataset(broken)


def test_the_cascade_has_label_channels() -> None:
    plans = plans_of(architecture())
    plans["configurations"]["3d_cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    assert reading.inputs(plans, dataset_of(), "3d_cascade") == ("T1", "T2", "", "")
    assert reading.inputs(plans, dataset_of(), "3d_fullres") == ("T1", "T2")
