"""Modality dropout inside nnU-Net's transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("batchgeneratorsv2")

from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform

from medmae.transfer.nnunet.dropout import ModalityDropout, with_modality_dropout


class Noise(ImageOnlyTransform):
    def _apply_to_image(self, img, **_):
        return img + 1.0


def sample(channels: int = 4) -> dict[str, torch.Tensor]:
    return {"image": torch.ones(channels, 3, 3, 3), "segmentation": torch.zeros(1, 3, 3, 3)}


def alive(image: torch.Tensor) -> tuple[bool, ...]:
    return tuple(bool(channel.any()) for channel in image)


def test_it_drops_every_part_but_the_whole() -> None:
    np.random.seed(0)
    drop = ModalityDropout(1.0)
    seen = [alive(drop(**sample())["image"]) for _ in range(300)]
    assert len(set(seen)) == 2**4 - 2  # neither none nor all
    counts = np.bincount([sum(one) for one in seen], minlength=5)
    assert counts[0] == counts[4] == 0
    assert min(counts[1:4]) > 70


def test_it_happens_as_often_as_asked_for() -> None:
    np.random.seed(0)
    drop = ModalityDropout(0.3)
    share = np.mean([not all(alive(drop(**sample())["image"])) for _ in range(1000)])
    assert abs(share - 0.3) < 0.05


def test_what_is_absent_already_is_not_counted_as_kept() -> None:
    np.random.seed(0)
    for _ in range(30):
        given = sample(3)
        given["image"][0] = 0
        assert sum(alive(ModalityDropout(1.0)(**given)["image"])) == 1
    lonely = sample(1)
    assert alive(ModalityDropout(1.0)(**lonely)["image"]) == (True,)


def test_channels_that_are_no_images_stay() -> None:
    for _ in range(20):
        assert alive(ModalityDropout(1.0, channels=2)(**sample(4))["image"])[2:] == (True, True)


def test_nothing_that_changes_intensities_comes_after_it() -> None:
    given = ComposeTransforms([Noise(), RemoveLabelTransform(-1, 0)])
    found = with_modality_dropout(given, 1.0, channels=4)
    assert [type(step) for step in found.transforms] == [Noise, ModalityDropout, RemoveLabelTransform]
    assert len(given.transforms) == 2
    for _ in range(10):
        assert 1 <= sum(alive(found(**sample())["image"])) <= 3


def test_off_means_untouched() -> None:
    given = ComposeTransforms([RemoveLabelTransform(-1, 0)])
    assert with_modality_dropout(given, 0.0, channels=4) is given
    assert with_modality_dropout(given, 0.5, channels=1) is given


def test_transforms_without_a_known_place_are_refused() -> None:
    with pytest.raises(RuntimeError, match="newer than medmae knows"):
        with_modality_dropout(ComposeTransforms([Noise()]), 0.5, channels=4)
