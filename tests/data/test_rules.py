"""Rules of single sequences, and that with them a prepared case is what nnU-Net's own preprocessor makes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from medmae.core.errors import UsageError
from medmae.data.preprocess import Prepared, PreprocessSettings, prepare
from medmae.data.rules import Rule, scale_all

PROPERTIES = {"mean": 40.0, "std": 30.0, "percentile_00_5": -20.0, "percentile_99_5": 110.0, "min": -1.0, "max": 1.0,
              "median": 40.0}  # fmt: skip


def test_kinds_in_numbers() -> None:
    values = np.zeros((4, 4, 4), np.float32)
    values[1:3, 1:3, 1:3] = np.arange(8).reshape(2, 2, 2)
    inside = np.zeros(values.shape, bool)
    inside[1:3, 1:3, 1:4] = True
    inside[1, 1, 3] = False
    box = values[1:3, 1:3, 1:4]
    chosen = values[inside]
    for kind, mean, std in (
        ("zscore", box.mean(), box.std()),
        ("zscore_foreground", chosen.mean(), chosen.std()),
        ("minmax", 0, 7),
        ("none", 0, 1),
    ):
        same, m, s = Rule(kind).scale(values, inside)
        assert (same == values).all()
        assert (m, s) == pytest.approx((mean, std), rel=1e-6), kind
    cut, m, s = Rule("fixed", clip=(2.0, 5.0), mean=3.0, std=2.0).scale(values, inside)
    assert (cut.min(), cut.max(), m, s) == (2, 5, 3, 2)


def test_the_background_is_zero_where_its_own_rule_says_so() -> None:
    values = np.full((4, 4, 4), 9.0, np.float32)
    values[0] = 0
    inside = values > 0
    values[1, 1, 1] = 21
    rules = {"t1n": Rule(), "ct": Rule("fixed", mean=1.0, std=2.0)}
    done, scales = scale_all({"t1n": values, "ct": values, "pd": values}, inside, rules)
    assert done["pd"] is values
    assert set(scales) == {"t1n", "ct"}
    mean = scales["t1n"][0]
    assert (done["t1n"][~inside] == np.float32(mean)).all()
    assert (done["ct"] == values).all()
    alone, _ = scale_all({"t1n": values}, inside, {"t1n": Rule()})
    assert (alone["t1n"] == values).all()


def test_settings_survive_json_and_old_ones_keep_their_names() -> None:
    settings = PreprocessSettings(rules={"ct": Rule("fixed", (-1.0, 1.0), 0.5, 2.0), "t1n": Rule("zscore")})
    assert PreprocessSettings.of(settings.describe()) == settings
    assert settings.window("ct") is None
    assert "rules" not in PreprocessSettings().describe()


@pytest.mark.parametrize(
    "values",
    [{"kind": "z"}, {"clip": [2, 1]}, {"kind": "fixed", "std": 0}, {"middle": 3}, "zscore"],
)
def test_refusals(values: Any) -> None:
    with pytest.raises(UsageError):
        Rule.of(values)


# ---------------------------------------------------------------- against nnU-Net


def image(shape: tuple[int, int, int], *, seed: int, air: float) -> np.ndarray:
    """A bright body in a field of ``air`` (0: masked out), with an island of 0 inside."""
    draw = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    body = (place**2).sum(0) < 0.7
    body[:2] = False
    values = np.where(body, 300 + 60 * draw.standard_normal(shape), air * draw.random(shape))
    values[shape[0] // 2, shape[1] // 2, shape[2] // 2] = 0
    return np.rint(values).astype(np.int16)


def nnunet(
    files: list[Path], *, schemes: list[str], masked: list[bool], forward: list[int], spacing: list[float]
) -> Any:
    """What nnU-Net's preprocessor makes of files (SimpleITK reading, transposing, cropping, scaling)."""
    from medmae.torchvision_guard import guard

    guard()
    pytest.importorskip("nnunetv2")
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset901_Tiny", "plans_name": "tiny", "transpose_forward": forward,
        "transpose_backward": list(np.argsort(forward)), "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {str(i): PROPERTIES for i in range(len(files))},
        "configurations": {"3d_fullres": {
            "preprocessor_name": "DefaultPreprocessor", "spacing": spacing, "normalization_schemes": schemes,
            "use_mask_for_norm": masked, "architecture": {}, "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        }},
    }  # fmt: skip
    manager = PlansManager(plans)
    data, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(file) for file in files], None, manager, manager.get_configuration("3d_fullres"), {}
    )
    return data, plans


def ours(files: list[Path], plans: Any, names: list[str]) -> tuple[Prepared, np.ndarray]:
    """The prepared case, and its values as a network is fed them."""
    import torch

    from medmae.cli.pretrain_plans import rules_of
    from medmae.data.inference import _normalized
    from medmae.transfer.nnunet.target import common_orientation

    case = SimpleNamespace(key="a", images=dict(zip(names, files, strict=True)), mask=None, label=None)
    conf = plans["configurations"]["3d_fullres"]
    settings = PreprocessSettings.of(
        {
            "orientation": common_orientation(plans, files)[0],
            "spacing": conf["spacing"],
            "foreground": "nonzero",
            "rules": rules_of(conf, plans, names, Path("plans.json")),
        }
    )
    prepared = prepare(case, settings, remap={})
    fed = _normalized(prepared, {})
    assert torch.is_tensor(torch.as_tensor(fed.images[names[0]]))
    return prepared, np.stack([fed.images[name] for name in names])


CODES = [("RAS", [0, 1, 2]), ("LPS", [0, 1, 2]), ("RAS", [2, 0, 1]), ("PIR", [1, 2, 0])]


@pytest.mark.parametrize(("codes", "forward"), CODES)
@pytest.mark.parametrize(
    ("schemes", "masked", "air"),
    [
        (["ZScoreNormalization"] * 2, [True, True], 0),
        (["ZScoreNormalization"] * 2, [False, False], 20),
        (["CTNormalization", "ZScoreNormalization"], [False, False], 0),
        (["CTNormalization", "ZScoreNormalization"], [False, True], 0),
        (["RescaleTo01Normalization", "NoNormalization"], [False, False], 0),
    ],
)
def test_a_prepared_case_is_what_nnunet_makes_of_it(
    schemes: list[str], masked: list[bool], air: float, codes: str, forward: list[int], tmp_path: Path
) -> None:
    shape, steps = (20, 24, 28), (1.0, 1.5, 2.0)
    affine = np.diag([*steps, 1.0])
    orientation = nibabel.orientations
    turn = orientation.ornt_transform(orientation.axcodes2ornt("RAS"), orientation.axcodes2ornt(codes))
    stored = affine @ orientation.inv_ornt_aff(turn, shape)
    files = []
    for number in range(2):
        array = orientation.apply_orientation(image(shape, seed=number, air=air), turn)
        files.append(tmp_path / f"a_{number:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), stored), files[-1])
    native = np.linalg.norm(stored[:3, :3], axis=0)[::-1]
    theirs, plans = nnunet(
        files, schemes=schemes, masked=masked, forward=forward, spacing=[float(native[i]) for i in forward]
    )
    names = ["ct", "t1n"] if "CTNormalization" in schemes else ["t1n", "t2w"]
    prepared, fed = ours(files, plans, names)
    assert fed.shape == theirs.shape
    for row, name in enumerate(names):
        step = prepared.images[name].slope / prepared.statistics[name].std  # of int16 storage, as the network sees it
        assert np.abs(fed[row] - theirs[row]).max() <= max(1e-3 * step, 2e-6 * np.abs(theirs[row]).max()) + (
            0.5 * step if schemes[row] == "ZScoreNormalization" and masked[row] and not all(masked) else 0
        ), name
