"""Modality dropout: a network that has seen incomplete patients copes with incomplete patients.

After nnU-Net's normalization an absent sequence is zero everywhere, so a dropped channel is set to zero. That must be
the last thing that happens to the image: noise, brightness and gamma drawn later would make it non-zero again and give
the absence away as something that never occurs at test time.

It draws from numpy's global generator, the only one that nnU-Net seeds anew in each of its worker processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from jaxtyping import Bool, Float
from torch import Tensor


class ModalityDropout(ImageOnlyTransform):
    """Set a random part of the channels of a sample to zero, never all of them.

    Where a sample is chosen, the number of channels it keeps is uniform from 1 to one fewer than it has, and which
    ones is uniform too. Channels that are zero already (a sequence this patient lacks) are not counted as kept.

    Args:
        probability: how often a sample loses channels, in [0, 1].
        channels: how many of the leading channels are sequences; further ones (a cascade's previous segmentation) stay.
    """

    def __init__(self, probability: float, *, channels: int | None = None) -> None:
        super().__init__()
        self.probability, self.channels = probability, channels

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """Draw which channels are dropped: ``drop``, True for those."""
        image: Tensor = data["image"]
        count = len(image) if self.channels is None else min(self.channels, len(image))
        drop = torch.zeros(len(image), dtype=torch.bool)
        present = (image[:count] != 0).flatten(1).any(1).nonzero().flatten()
        if len(present) > 1 and np.random.random() < self.probability:
            kept = int(np.random.randint(1, len(present)))
            drop[present[torch.from_numpy(np.random.permutation(len(present))[kept:])]] = True
        return {"drop": drop}

    def _apply_to_image(self, img: Float[Tensor, "c ..."], *, drop: Bool[Tensor, " c"], **_: Any) -> Tensor:
        img[drop] = 0
        return img


def with_modality_dropout(transforms: ComposeTransforms, probability: float, *, channels: int) -> ComposeTransforms:
    """nnU-Net's training transforms with modality dropout after everything that changes intensities.

    It goes right before the step that turns the label -1 into background, which follows all augmentation and precedes
    everything that makes inputs of labels.

    Raises:
        RuntimeError: nnU-Net's list of transforms has no such step; this release of it is not understood.
    """
    if probability <= 0 or channels < 2:
        return transforms
    steps = list(transforms.transforms)
    places = [i for i, step in enumerate(steps) if isinstance(step, RemoveLabelTransform)]
    if not places:
        raise RuntimeError(
            "nnU-Net's training transforms have no RemoveLabelTransform, so there is no known place for modality "
            "dropout: this nnU-Net is newer than medmae knows; train without --modality-dropout"
        )
    steps.insert(places[0], ModalityDropout(probability, channels=channels))
    return ComposeTransforms(steps)
