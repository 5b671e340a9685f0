"""Networks for clouds of points: what turns a group into a feature, and what turns its center into one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.tokens import Tokens

from .kernels import Linear


class MiniPointNet(nn.Module):
    """A group of points to one feature, whatever the order of its points (PointNet; Point-MAE, section 3.1).

    Each point goes through two layers, meets the largest value of its group, and goes through two more; the largest
    value of the group is the result. Statistics of the batch norms are taken over the groups that come in, which in a
    masked autoencoder are the visible ones: what is hidden does not reach them.

    Args:
        width: features that go out.
        hidden: widths of the first, second and third layer.
    """

    def __init__(self, width: int, *, hidden: tuple[int, int, int] = (128, 256, 512)) -> None:
        super().__init__()
        one, two, three = hidden
        # No bias in front of a batch norm: it would cancel.
        self.point = nn.Sequential(Linear(3, one, bias=False), nn.BatchNorm1d(one), nn.ReLU(), Linear(one, two))
        self.group = nn.Sequential(
            Linear(2 * two, three, bias=False), nn.BatchNorm1d(three), nn.ReLU(), Linear(three, width)
        )

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """Features of every group; content is [b n size 3]. Missing tokens get zeros and enter no statistic."""
        content, exists = tokens.content, tokens.layout.exists
        if not tokens.layout.ragged:
            return self._features(content.flatten(0, 1)).view(*content.shape[:2], -1)
        features = self._features(content[exists])
        out = features.new_zeros(*content.shape[:2], features.shape[-1])
        return out.masked_scatter(exists[..., None], features)

    def _features(self, groups: Float[Tensor, "n s 3"]) -> Float[Tensor, "n d"]:
        n, s, _ = groups.shape
        x = self.point(groups.flatten(0, 1)).unflatten(0, (n, s))
        x = torch.cat([x.amax(1, keepdim=True).expand(-1, s, -1), x], -1)
        return self.group(x.flatten(0, 1)).unflatten(0, (n, s)).amax(1)


class PointPositions(nn.Module):
    """The code of a place as a small network of its coordinates, for tokens that stand on no grid.

    Args:
        width: features that go out.
        hidden: width of the layer between.
        axes: coordinates of a place.
    """

    def __init__(self, width: int, *, hidden: int = 128, axes: int = 3) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(axes, hidden), Linear(hidden, width)

    def forward(self, coords: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """The code of every place."""
        return self.fc2(nn.functional.gelu(self.fc1(coords)))
