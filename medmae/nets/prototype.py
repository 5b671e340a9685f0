"""Probing frozen features by prototypes (Bird-MAE, section 4).

An average over tokens drowns what is in one token: a short call, a small lesion. Here every class owns a few
prototypes; the most similar token anywhere says how much of each is there, and the class adds them up with weights that
cannot be negative. So an answer has a place, and no class argues with the prototypes of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .encoded import Encoded

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class PrototypeHead(nn.Module):
    """Logits of classes that need not exclude one another, from the features of a frozen encoder.

    Args:
        width: features per token.
        classes: number of classes.
        prototypes: per class.
        focal: look at what a token has beyond the [CLS] token (the first of the prefix, which there must be then).
        grid: tokens per axis, row-major: features are enlarged to twice as many places per axis before they are
            compared. None compares the tokens as they are.
        slack: what similarities are divided by.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        prototypes: int = 20,
        focal: bool = True,
        grid: Sequence[int] | None = None,
        slack: float = 1.01,
    ) -> None:
        super().__init__()
        if min(width, classes, prototypes) < 1:
            raise ValueError(f"width {width}, classes {classes} and prototypes {prototypes} must be positive")
        if grid is not None and len(grid) not in MODES:
            raise ValueError(f"a grid of {len(grid)} axes cannot be enlarged")
        self.focal, self.grid, self.slack = focal, None if grid is None else tuple(grid), slack
        self.prototypes = nn.Parameter(torch.randn(classes, prototypes, width))
        self.weight = nn.Parameter(torch.ones(classes, prototypes))
        self.bias = nn.Parameter(torch.full((classes,), -2.0))

    def evidence(self, encoded: Encoded) -> Float[Tensor, "b classes prototypes places"]:
        """How similar every place is to every prototype, from 0 to 1; zero where a token is missing."""
        layout, x = encoded.tokens.layout, encoded.tokens.content.float()
        if self.focal:
            if not encoded.prefix.shape[1]:
                raise ValueError("focal features need an encoder with a [CLS] token; build the head with focal=False")
            x = x - encoded.prefix[:, :1].float()
        if layout.ragged:
            x = x.masked_fill(~layout.exists[..., None], 0)
        if self.grid is not None:
            image = x.transpose(1, 2).reshape(len(x), -1, *self.grid)
            image = F.interpolate(image, scale_factor=2, mode=MODES[len(self.grid)], align_corners=False)
            x = image.flatten(2).transpose(1, 2)
        similar = torch.einsum("bnd,cjd->bcjn", F.normalize(x, dim=-1), F.normalize(self.prototypes.float(), dim=-1))
        return (similar / self.slack).relu()

    def forward(self, encoded: Encoded) -> Float[Tensor, "b classes"]:
        """One logit for each class."""
        found = self.evidence(encoded).amax(-1)
        return (found * self.weight.relu()).sum(-1) + self.bias

    def spread(self) -> Float[Tensor, ""]:
        """How far the prototypes of a class are from being at right angles; to be added to the loss."""
        unit = F.normalize(self.prototypes, dim=-1)
        off = unit @ unit.transpose(1, 2) - torch.eye(unit.shape[1], device=unit.device)
        return (off.square().sum() + 1e-12).sqrt() / off.numel()  # the square root has no gradient at zero


def asymmetric(
    logits: Float[Tensor, "b classes"],
    labels: Float[Tensor, "b classes"],
    *,
    negative: float = 4.0,
    positive: float = 1.0,
    margin: float = 0.05,
) -> Float[Tensor, ""]:
    """Binary cross-entropy that soon stops caring about easy negatives (Ridnik et al., 2021); mean of all elements.

    Args:
        logits: of every class.
        labels: 0 or 1.
        negative: power by which negatives that are right are weighed down.
        positive: the same for positives.
        margin: probability up to which a negative costs nothing.
    """
    p = logits.sigmoid()
    absent = (1 - p + margin).clamp_max(1)
    right = torch.where(labels > 0.5, p, absent)
    power = torch.where(labels > 0.5, positive, negative)
    return -((1 - right) ** power * right.clamp_min(1e-8).log()).mean()
