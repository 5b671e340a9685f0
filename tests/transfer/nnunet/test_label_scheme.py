"""Classes and regions as nnU-Net wants them."""

from __future__ import annotations

import numpy as np
import pytest

from medmae.core.errors import UsageError
from medmae.data.spec import Label
from medmae.transfer.nnunet.label_scheme import LabelScheme

BRATS = Label(
    classes={"background": 0, "ncr": 1, "ed": 2, "et": 4},
    remap={3: 4},
    regions={"enhancing": (4,), "whole": (1, 2, 4), "core": (1, 4)},
)


def test_classes_become_consecutive() -> None:
    scheme = LabelScheme.of(BRATS)
    assert scheme.labels == {"background": 0, "ncr": 1, "ed": 2, "et": 3}
    assert scheme.order is None
    assert scheme.mapping == {0: 0, 1: 1, 2: 2, 4: 3, 3: 3}
    assert scheme.place == {1: 1, 2: 2, 4: 3}
    assert "regions_class_order" not in scheme.dataset()


def test_regions_stand_from_large_to_small_and_paint_the_classes_back() -> None:
    scheme = LabelScheme.of(BRATS, kind="regions")
    assert scheme.labels == {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    assert scheme.order == (2, 1, 3)
    truth = np.array([0, 1, 2, 3])
    painted = np.zeros(4, int)  # as nnU-Net writes perfect outputs
    names = [name for name in scheme.labels if name != "background"]
    for name, value in zip(names, scheme.order, strict=True):
        painted[np.isin(truth, scheme.labels[name])] = value
    assert (painted == truth).all()


def test_nnunet_takes_it() -> None:
    pytest.importorskip("nnunetv2")
    from medmae.torchvision_guard import guard

    guard()
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    scheme = LabelScheme.of(BRATS, kind="regions").dataset()
    manager = LabelManager(scheme["labels"], scheme["regions_class_order"])
    assert manager.has_regions
    assert manager.all_labels == [0, 1, 2, 3]
    ignoring = LabelScheme.of(Label(classes={"background": 0, "ignore": 1, "a": 2, "b": 3}))
    assert ignoring.labels == {"background": 0, "a": 1, "b": 2, "ignore": 3}
    assert LabelManager(dict(ignoring.labels), None).has_ignore_label


def test_classes_outside_every_region_become_background() -> None:
    label = Label(classes={"background": 0, "a": 1, "b": 2, "c": 3}, regions={"bc": (2, 3)})
    scheme = LabelScheme.of(label, kind="regions")
    assert scheme.mapping == {0: 0, 1: 0, 2: 1, 3: 2}
    assert scheme.labels == {"background": 0, "bc": [1, 2]}


@pytest.mark.parametrize(
    ("label", "kind", "words"),
    [
        (Label(classes={"background": 0}), "classes", "background only"),
        (Label(classes={"background": 0, "a": 1}), "regions", "no label.regions"),
        (Label(classes={"background": 0, "a": 1}, regions={"all": (0, 1)}), "regions", "other than the background"),
    ],
)
def test_what_cannot_be_meant(label: Label, kind, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LabelScheme.of(label, kind=kind)
