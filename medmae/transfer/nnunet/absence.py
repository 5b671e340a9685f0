"""Placeholders stay placeholders while nnU-Net augments.

A missing sequence reaches the training as a channel of zeros, and nnU-Net's noise, brightness and gamma would make an
image of it that never occurs when the network is used. So channels that hold nothing are remembered before the
augmentation and set back to zero after it. They are told by their values, not by a record of names, because the
transforms see a crop and not which patient it is of.
"""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from jaxtyping import Float
from torch import Tensor

from .presence import NOTHING

KEY = "absent"


class RememberAbsent(BasicTransform):
    """Note which of the leading ``channels`` hold nothing anywhere in the crop."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``absent``, one flag per channel."""
        image: Tensor = data_dict["image"]
        absent = torch.zeros(len(image), dtype=torch.bool)
        absent[: self.channels] = image[: self.channels].abs().flatten(1).amax(1) < NOTHING
        return {**data_dict, KEY: absent}


class RestoreAbsent(ImageOnlyTransform):
    """Set the channels that held nothing before the augmentation to zero."""

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """The flags of :class:`RememberAbsent`."""
        return {KEY: data[KEY]}

    def _apply_to_image(self, img: Float[Tensor, "c ..."], **parameters: Any) -> Tensor:
        img[parameters[KEY]] = 0
        return img


def keep_absent(transforms: ComposeTransforms, *, channels: int) -> ComposeTransforms:
    """nnU-Net's training transforms, after which a channel without content is zero again.

    Raises:
        RuntimeError: nnU-Net's list has no step by which the end of the augmentation is known.
    """
    steps = list(transforms.transforms)
    places = [i for i, step in enumerate(steps) if isinstance(step, RemoveLabelTransform)]
    if channels < 2:
        return transforms
    if not places:
        raise RuntimeError(
            "nnU-Net's training transforms have no RemoveLabelTransform, so the end of the augmentation is not known: "
            "this nnU-Net is newer than medmae knows"
        )
    steps.insert(places[0], RestoreAbsent())
    return ComposeTransforms([RememberAbsent(channels=channels), *steps])
