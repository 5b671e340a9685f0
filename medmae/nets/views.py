"""Two views of one window: what contrastive methods learn to tell apart from other windows.

A view is a random box of the window, resampled to the window's size, mirrored, varied in intensity, and robbed of some
of its sequences. Everything random about it is a function of the sample's key, drawn first and applied after, on the
device: a sample gets the same views in whatever batch it is, and a run that is resumed sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from medmae.core.random import mix, normal, uniform

BOX, FLIP, FACTOR, OFFSET, BLUR, NOISE, VOXELS, DROP = range(8)  # streams of randomness, one per purpose
_TAPS = 3  # voxels on either side that a blurred voxel is made from


@dataclass(frozen=True)
class View:
    """One view of every sample.

    Attributes:
        image: one channel per sequence, in units of the normalized volume; 0 outside the foreground and in sequences
            that are not present.
        present: sequences the view shows.
        foreground: voxels that count.
    """

    image: Float[Tensor, "b m *size"]
    present: Bool[Tensor, "b m"]
    foreground: Bool[Tensor, "b 1 *size"]


@dataclass(frozen=True)
class Draws:
    """Everything random about one view of every sample, except the noise of single voxels.

    Attributes:
        zoom: edge of the box as a share of the window.
        place: center of the box on each axis; -1 and 1 touch the window's borders.
        flip: axes that are mirrored.
        factor: of the intensities of each sequence.
        offset: added to them, in standard deviations.
        blur: standard deviation of the blur, in voxels; 0 is none.
        noise: standard deviation of the noise.
        keep: sequences that stay, where the sample has them.
    """

    zoom: Float[Tensor, " b"]
    place: Float[Tensor, "b p"]
    flip: Bool[Tensor, "b p"]
    factor: Float[Tensor, "b m"]
    offset: Float[Tensor, "b m"]
    blur: Float[Tensor, "b m"]
    noise: Float[Tensor, "b m"]
    keep: Bool[Tensor, "b m"]


class Views(nn.Module):
    """Makes views.

    Args:
        zoom: smallest and largest edge of the box as a share of the window, in (0, 1].
        flip: probability per axis.
        contrast: intensities are multiplied by 1 + U(-contrast, contrast), per sequence.
        brightness: U(-brightness, brightness) standard deviations are added, per sequence.
        noise: largest standard deviation of Gaussian noise, which every second sequence gets.
        blur: largest standard deviation of a Gaussian blur in voxels, which every second sequence gets.
        drop: probability that a view loses every second of its sequences, at random; one always stays.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        *,
        zoom: tuple[float, float] = (0.6, 1.0),
        flip: float = 0.5,
        contrast: float = 0.2,
        brightness: float = 0.2,
        noise: float = 0.1,
        blur: float = 1.0,
        drop: float = 0.25,
    ) -> None:
        super().__init__()
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1] <= 1:
            raise ValueError(f"zoom must be two shares of the window, 0 < low <= high <= 1, not {zoom}")
        for name, share in (("flip", flip), ("drop", drop)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be a probability, not {share}")
        for name, value in (("contrast", contrast), ("brightness", brightness), ("noise", noise), ("blur", blur)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        self.zoom, self.flip, self.contrast, self.brightness = zoom, flip, contrast, brightness
        self.noise, self.blur, self.drop = noise, blur, drop

    def draw(self, key: Int[Tensor, " b"], present: Bool[Tensor, "b m"], *, axes: int, view: int) -> Draws:
        """Draw view number ``view`` of every sample."""
        m = present.shape[1]

        def some(purpose: int, n: int) -> Tensor:
            return uniform(key, n, stream=_stream(purpose, view))

        def half(purpose: int, most: float) -> Tensor:
            """U(0, most) for every second sequence, else 0."""
            return (2 * some(purpose, m) - 1).clamp_min(0) * most

        low, high = self.zoom
        box = some(BOX, 1 + axes)
        zoom = low + (high - low) * box[:, 0]
        chance = some(DROP, 1 + m)
        rank = chance[:, 1:].masked_fill(~present, 2.0)
        keep = (rank < 0.5) | (rank == rank.amin(1, keepdim=True)) | (chance[:, :1] >= self.drop)
        return Draws(
            zoom=zoom,
            place=(2 * box[:, 1:] - 1) * (1 - zoom[:, None]),
            flip=some(FLIP, axes) < self.flip,
            factor=1 + self.contrast * (2 * some(FACTOR, m) - 1),
            offset=self.brightness * (2 * some(OFFSET, m) - 1),
            blur=half(BLUR, self.blur),
            noise=half(NOISE, self.noise),
            keep=keep,
        )

    @torch.no_grad()
    def forward(
        self,
        image: Float[Tensor, "b m *size"],
        present: Bool[Tensor, "b m"],
        foreground: Shaped[Tensor, "b 1 *size"] | None,
        key: Int[Tensor, " b"],
        *,
        view: int,
    ) -> View:
        """View number ``view`` of every sample.

        Args:
            image: one channel per sequence; what is not present holds anything finite.
            present: sequences each sample has.
            foreground: voxels that count, or how much; None counts all.
            key: randomness of each sample in this step.
            view: another number gives an independent view.
        """
        with torch.autocast(image.device.type, enabled=False):
            draws = self.draw(key, present, axes=image.ndim - 2, view=view)
            inside = torch.ones_like(image[:, :1]) if foreground is None else foreground.to(image.dtype)
            cut = resample(torch.cat([image, inside], 1).float(), draws)
            values, inside = cut[:, :-1], cut[:, -1:] > 0.5
            if self.blur > 0:
                values = blurred(values, draws.blur)
            values = values * _wide(draws.factor, values) + _wide(draws.offset, values)
            if self.noise > 0:
                values = values + _wide(draws.noise, values) * _voxel_noise(key, values.shape, view=view)
            shown = present & draws.keep
            return View(values * (inside & _wide(shown, values)), shown, inside)


def resample(image: Float[Tensor, "b c *size"], draws: Draws) -> Float[Tensor, "b c *size"]:
    """The drawn boxes at the size of the window, mirrored, by linear interpolation."""
    axes = draws.place.shape[1]
    step = torch.where(draws.flip, -draws.zoom[:, None], draws.zoom[:, None])
    # Sampling coordinates name the last axis first.
    theta = torch.cat([torch.diag_embed(step.flip(1)), draws.place.flip(1)[..., None]], -1)
    grid = F.affine_grid(theta.to(image.dtype), [len(image), image.shape[1], *image.shape[2:]], align_corners=False)
    if axes not in (2, 3):
        raise ValueError(f"views are made of images with 2 or 3 axes, not {axes}")
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blurred(image: Float[Tensor, "b m *size"], sigma: Float[Tensor, "b m"]) -> Float[Tensor, "b m *size"]:
    """Gaussian blur with a width of its own for every sample and sequence, in voxels; 0 changes nothing."""
    place = torch.arange(-_TAPS, _TAPS + 1, device=image.device, dtype=image.dtype)
    weight = torch.exp(-0.5 * (place / sigma[..., None].clamp_min(1e-3)) ** 2)
    weight = weight / weight.sum(-1, keepdim=True)
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        column = torch.arange(n, device=image.device)
        image = torch.stack(
            [
                image.index_select(axis, (column + tap - _TAPS).clamp(0, n - 1)) * _wide(weight[..., tap], image)
                for tap in range(2 * _TAPS + 1)
            ]
        ).sum(0)
    return image


def _stream(purpose: int, view: int) -> int:
    return mix(0x5649455753, purpose, view)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample and channel, ready to be multiplied with an image."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - 2)).to(like.device)


def _voxel_noise(key: Int[Tensor, " b"], shape: torch.Size, *, view: int) -> Float[Tensor, "b m *size"]:
    """Standard normal noise, a sample and sequence at a time: the integers behind it take 16 times its memory."""
    _, m, *size = shape
    count = torch.Size(size).numel()
    rows = [
        normal(key[i : i + 1], count, stream=_stream(VOXELS + 16 * (1 + j), view))
        for i in range(len(key))
        for j in range(m)
    ]
    return torch.stack(rows).reshape(shape)
