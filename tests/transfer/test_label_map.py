"""Probabilities as label maps: which value is written where, and what a map can be asked for."""

from __future__ import annotations

import pytest
import torch

from medmae.core.errors import CheckpointError, UsageError
from medmae.data.spec import Label
from medmae.transfer.label_map import LabelMap

CLASSES = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4}
REGIONS = {"core": (1, 4), "whole": (1, 2, 4), "enhancing": (4,)}


def label(**more) -> Label:
    return Label(classes=more.pop("classes", CLASSES), regions=more.pop("regions", REGIONS), **more)


def voxels(*rows: tuple[float, ...]) -> torch.Tensor:
    """One voxel per row of probabilities."""
    return torch.tensor(rows).T[:, :, None, None]


def test_regions_are_painted_from_large_to_small() -> None:
    meaning = LabelMap.of(label(), kind="regions")
    assert meaning.names == ("whole", "core", "enhancing")
    assert meaning.paint == (2, 1, 4)
    given = voxels((0.1, 0.2, 0.3), (0.9, 0.2, 0.1), (0.9, 0.8, 0.1), (0.9, 0.8, 0.5), (0.1, 0.9, 0.1))
    assert meaning.painted(given).flatten().tolist() == [0, 2, 1, 4, 1]


def test_classes_are_the_likeliest_or_background() -> None:
    meaning = LabelMap.of(label())
    assert (meaning.names, meaning.paint, meaning.exclusive) == (("necrosis", "edema", "enhancing"), (1, 2, 4), True)
    given = voxels((0.2, 0.2, 0.2), (0.4, 0.3, 0.1), (0.0, 0.1, 0.8), (0.3, 0.32, 0.1))
    assert meaning.painted(given).flatten().tolist() == [0, 1, 4, 2]


def test_what_a_map_can_be_asked_for() -> None:
    both = {"necrosis": (1,), "edema": (2,), "enhancing": (4,)}
    assert LabelMap.of(label()).labels() == both
    assert LabelMap.of(label(), kind="regions").labels() == {**both, "core": (1, 4), "whole": (1, 2, 4)}
    coarse = LabelMap.of(label(regions={"whole": (1, 2, 4), "core": (1, 4)}), kind="regions")
    assert coarse.labels() == {"edema": (2,), "whole": (1, 2, 4), "core": (1, 4)}  # 1 may be either part of the core
    shared = LabelMap.of(label(regions={"whole": (1, 2, 4), "edema": (2, 4)}), kind="regions")
    assert shared.labels()["edema (region)"] == (2, 4)


def test_it_survives_being_written_down() -> None:
    for kind in ("classes", "regions"):
        meaning = LabelMap.of(label(classes={**CLASSES, "ignore": 9}), kind=kind)
        assert meaning.ignore == 9
        assert LabelMap.from_json(meaning.describe()) == meaning
    for wrong in ({}, {**meaning.describe(), "paint": [1]}, {**meaning.describe(), "values": [["x"]]}):
        with pytest.raises(CheckpointError, match="what its outputs mean"):
            LabelMap.from_json(wrong)


def test_labels_with_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match="background only"):
        LabelMap.of(Label(classes={"background": 0}))
    with pytest.raises(UsageError, match=r"no label\.regions"):
        LabelMap.of(label(regions={}), kind="regions")
    with pytest.raises(UsageError, match="other than the background"):
        LabelMap.of(label(regions={"all": (0, 1)}), kind="regions")
