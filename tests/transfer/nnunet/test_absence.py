"""Channels of nothing are nothing after nnU-Net's augmentation, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2")

from medmae.torchvision_guard import guard

guard()

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

from medmae.transfer.nnunet.absence import keep_absent  # noqa: E402
from medmae.transfer.nnunet.dropout import with_modality_dropout  # noqa: E402

PATCH = (16, 16, 16)


def transforms():
    return nnUNetTrainer.get_training_transforms(
        PATCH, (-0.5, 0.5), [[1, 1, 1]], (0, 1, 2), False, use_mask_for_norm=[False, False, False]
    )


def sample(seed: int) -> dict[str, torch.Tensor]:
    image = torch.randn(3, *PATCH, generator=torch.Generator().manual_seed(seed))
    image[0] = 0
    image[2] = 0.01  # a CT placeholder, off by the sampling error
    return {"image": image, "segmentation": torch.zeros(1, *PATCH, dtype=torch.int16)}


def test_absent_channels_are_zero_after_all_augmentation() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    plain, kept = transforms(), keep_absent(transforms(), channels=3)
    spoiled = [bool(plain(**sample(i))["image"][0].any()) for i in range(30)]
    assert any(spoiled)  # why this is needed
    for i in range(30):
        image = kept(**sample(i))["image"]
        assert not image[0].any()
        assert not image[2].any()
        assert image[1].any()


def test_it_comes_before_modality_dropout_which_counts_what_is_there() -> None:
    both = with_modality_dropout(keep_absent(transforms(), channels=3), 1.0, channels=3)
    for i in range(20):
        assert both(**sample(i))["image"][1].any()  # the only image is never dropped


def test_one_channel_and_an_unknown_nnunet() -> None:
    given = transforms()
    assert keep_absent(given, channels=1) is given
    given.transforms = given.transforms[:1]
    with pytest.raises(RuntimeError, match="newer than medmae knows"):
        keep_absent(given, channels=2)
