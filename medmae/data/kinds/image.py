"""Images: photographs, X-rays, stains and bands, cut and scaled for a method.

Cutting and resizing are written out here with torch's antialiased interpolation rather than taken from torchvision or
MONAI: torchvision comes only with another package and may not import beside a CPU build of torch, MONAI's 2-D
transforms keep random states of their own, and both would draw from generators that a resumed run cannot repeat. What
is needed is a box and a flip, and both are functions of the sample's key.

Channels are what the method's recipe says. A gray image fills three channels with itself, and colors of 8 bits become
gray by their luminance where one channel is read; nothing else is guessed. A method that knows its channels by name
(``sequences``) gets the channels of a file in that order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medmae.core.errors import DataError, UsageError
from medmae.core.random import uniform
from medmae.data.kinds import toys
from medmae.data.kinds.dates import COLUMN, read_stamps
from medmae.data.kinds.listing import Sample
from medmae.data.kinds.pixels import SUFFIXES, Pixels, checked, read_pixels

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # mean and deviation of red, green, blue in 0 to 255
_LUMINANCE = (0.299, 0.587, 0.114)
_BOX, _FLIP = 0x696D626F78, 0x696D666C6970
_TRIES = 10  # boxes drawn before the central one is taken


@dataclass(frozen=True)
class Channels:
    """One entry of a batch: so many of the file's channels, ``coarser`` times smaller, numbers or class labels."""

    name: str
    count: int
    coarser: int = 1
    labels: bool = False


@dataclass(frozen=True)
class Reading:
    """How images are cut and scaled.

    Attributes:
        area: smallest and largest share of the image's area that a training crop has.
        ratio: smallest and largest ratio of its width to its height.
        flip: probability that it is mirrored left to right.
        normalize: ``auto``: photographs that fill three channels by ImageNet's mean and deviation, everything else by
            the mean and deviation of each channel over its whole image; ``image`` is the second for all.
    """

    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    normalize: str = "auto"

    @staticmethod
    def of(options: Mapping[str, Any]) -> Reading:
        """From options of the user; UsageError for one that does not exist or cannot be meant."""
        known = Reading.__dataclass_fields__
        if strange := [name for name in options if name not in known]:
            raise UsageError(f"data.reading has no {', '.join(strange)}; of images it takes {', '.join(known)}")
        wanted: dict[str, tuple[Callable[[Any], bool], str]] = {
            "area": (lambda v: _range(v) and v[1] <= 1, "two shares of the area, such as [0.2, 1.0]"),
            "ratio": (_range, "two ratios, such as [0.75, 1.33]"),
            "flip": (lambda v: _number(v) and 0 <= v <= 1, "a probability"),
            "normalize": (lambda v: v in ("auto", "image"), "auto or image"),
        }
        wrong = [f"data.reading.{k} = {v!r} is not {wanted[k][1]}" for k, v in options.items() if not wanted[k][0](v)]
        if wrong:
            raise UsageError("; ".join(wrong))
        values: dict[str, Any] = dict(options)
        for name in ("area", "ratio"):
            if name in values:
                values[name] = tuple(float(v) for v in values[name])
        if "flip" in values:
            values["flip"] = float(values["flip"])
        return Reading(**values)


class ImageKind:
    """Images as a method reads them.

    Args:
        size: height and width of the method's input.
        channels: what each entry of a batch holds, in the order of a file's channels; none: any image will do, for
            looking at files without a method.
        reading: how images are cut and scaled.
        stamps: how many groups of channels have a date, and how many numbers a date is; (0, 0): there are no dates.
            They come from the column ``time`` of a table, and go into the entry of that name.
        setting: of the method, that says how many channels it reads: ``groups``, ``channels``, ``pairs`` of a name and
            its channels, ``sequences``; "" where none does.
    """

    name = "image"
    suffixes: tuple[str, ...] = SUFFIXES

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: tuple[Channels, ...],
        reading: Reading | None = None,
        stamps: tuple[int, int] = (0, 0),
        setting: str = "",
    ) -> None:
        self.size, self.channels, self.stamps, self.setting = size, channels, stamps, setting
        self.reading = Reading() if reading is None else reading
        self.entries: tuple[str, ...] = tuple(c.name for c in channels)
        self.count = sum(c.count for c in channels)

    @classmethod
    def of(cls, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> ImageKind:
        """From the recipe of a method (size, channels, sequences, groups) and the user's ``data.reading``.

        An empty recipe makes a kind for looking at files. UsageError where images cannot fill the method's input.
        """
        reading = Reading.of(options)
        if not recipe:
            return cls(size=(1, 1), channels=(), reading=reading)
        size = tuple(recipe.get("size") or ())
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise UsageError(f"images have two axes: method.size = {list(size)} is not a size such as [224, 224]")
        if recipe.get("foreground_loss"):
            raise UsageError("method.foreground_loss: images come without a foreground; leave it out")
        stamps = (len(recipe["groups"]), int(recipe["stamps"])) if recipe.get("stamps") else (0, 0)
        setting = next((name for name in ("groups", "channels", "sequences") if name in recipe), "")
        if isinstance(recipe.get("channels"), list | tuple | Mapping):
            setting = "pairs"
        return cls(size=(size[0], size[1]), channels=_channels(recipe), reading=reading, stamps=stamps, setting=setting)

    # ---------------------------------------------------------------- reading

    def read(self, sample: Sample, *, key: int, training: bool) -> dict[str, np.ndarray]:
        """``pixels`` float32[channels height width] in the file's units, ``scale`` float32[channels 2]: their mean and
        deviation; with dates ``time`` float32[groups stamps]."""
        image = self._image(sample)
        values, scale = self._fitted(image, sample)
        top, left, height, width = self._box(values.shape[1], values.shape[2], key=key, training=training)
        part = np.ascontiguousarray(values[:, top : top + height, left : left + width])
        pixels = torch.from_numpy(part.astype(np.float32))
        labels = self._label_rows()
        done = torch.empty(len(pixels), *self.size)
        if not all(labels):
            rows = [i for i, flag in enumerate(labels) if not flag]
            done[rows] = resize(pixels[rows], self.size)
        if any(labels):
            rows = [i for i, flag in enumerate(labels) if flag]
            done[rows] = interpolate(pixels[rows][None], self.size, mode="nearest-exact")[0]
        return {"pixels": done.numpy(), "scale": scale, **self._time(sample)}

    def finish(self, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        """Every entry Float[b channels height width], standardized and, where ``training``, perhaps mirrored."""
        pixels, scale = batch["pixels"], batch["scale"]
        pixels = (pixels - scale[:, :, :1, None]) / scale[:, :, 1:, None]
        if training and self.reading.flip > 0:
            flip = uniform(batch["key"], 1, stream=_FLIP)[:, 0] < self.reading.flip
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        parts = torch.split(pixels, [c.count for c in self.channels], 1)
        done = {c.name: _coarse(part, c) for c, part in zip(self.channels, parts, strict=True)}
        return {**done, COLUMN: batch[COLUMN]} if any(self.stamps) else done

    def _time(self, sample: Sample) -> dict[str, np.ndarray]:
        if not any(self.stamps):
            return {}
        try:
            return {COLUMN: read_stamps(sample.extra.get(COLUMN), groups=self.stamps[0], count=self.stamps[1])}
        except DataError as error:
            raise DataError(f"{sample.path}: {error}") from error

    def _image(self, sample: Sample) -> Pixels:
        if "toy" in sample.extra:
            return checked(toys.generate("toy-image", int(sample.extra["toy"]))[0], name=sample.key)
        return read_pixels(sample.path)

    def _fitted(self, image: Pixels, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The image with the method's number of channels, and mean and deviation of each."""
        values = image.values
        if not self._fits(len(values), photograph=image.photograph):
            raise DataError(f"{sample.path}: {self._misfit(len(values))}")
        if len(values) == 1:
            values = values.repeat(self.count, 0)
        elif self.count == 1 and len(values) == 3:
            values = np.tensordot(np.asarray(_LUMINANCE, np.float32), values.astype(np.float32), 1)[None]
        colors = image.photograph and len(self.channels) == 1 and self.count == 3 and self.reading.normalize == "auto"
        if colors:
            scale = np.asarray(IMAGENET, np.float32).T.copy()
        else:
            flat = values.reshape(len(values), -1)
            deviation = flat.std(1, dtype=np.float64)
            scale = np.stack([flat.mean(1, dtype=np.float64), np.where(deviation > 0, deviation, 1.0)], 1)
        labels = np.asarray(self._label_rows())
        return values, np.where(labels[:, None], [[0.0, 1.0]], scale).astype(np.float32)

    def _label_rows(self) -> list[bool]:
        return [c.labels for c in self.channels for _ in range(c.count)]

    def _box(self, height: int, width: int, *, key: int, training: bool) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is cut out: drawn by the key, or the largest central box of the shape
        that the method reads."""
        if training:
            low, high = self.reading.area
            draws = uniform(torch.tensor([key]), 4 * _TRIES, stream=_BOX)[0].double().view(_TRIES, 4).tolist()
            for share, ratio, top, left in draws:
                area = height * width * (low + (high - low) * share)
                first, last = (math.log(r) for r in self.reading.ratio)
                aspect = math.exp(first + (last - first) * ratio) * self.size[1] / self.size[0]
                h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
                if 0 < h <= height and 0 < w <= width:
                    return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
        zoom = min(height / self.size[0], width / self.size[1])
        h, w = max(1, round(self.size[0] * zoom)), max(1, round(self.size[1] * zoom))
        return (height - h) // 2, (width - w) // 2, h, w

    # ---------------------------------------------------------------- telling

    def facts(self, sample: Sample) -> dict[str, Any]:
        """Height and width, channels, type of number, and whether it is a photograph."""
        image = self._image(sample)
        self._time(sample)
        c, h, w = image.values.shape
        return {"size": [h, w], "channels": c, "type": str(image.values.dtype), "photograph": image.photograph}

    def disagreements(self, facts: Sequence[tuple[Sample, Mapping[str, Any]]]) -> dict[str, str]:
        """Images whose number of channels does not fit the method or, without one, most of the others."""
        if not facts:
            return {}
        if self.count:
            wrong = [(s, f) for s, f in facts if not self._fits(f["channels"], photograph=f["photograph"])]
        else:
            # Gray and colored photographs may be mixed: gray fills the colors.
            group = {s.key: "photograph" if f["photograph"] else str(f["channels"]) for s, f in facts}
            most = Counter(group.values()).most_common(1)[0][0]
            wrong = [(s, f) for s, f in facts if group[s.key] != most]
        blamed = {s.key for s, _ in wrong}
        other = next(((s, f) for s, f in facts if s.key not in blamed), None)
        beside = "" if other is None else f", where {other[0].path} has {other[1]['channels']}"
        return {s.key: f"{s.path}: {self._misfit(f['channels'], beside=beside)}" for s, f in wrong}

    def describe(self) -> dict[str, Any]:
        """How images are read, as JSON values."""
        return {
            "kind": self.name,
            "size": list(self.size),
            "entries": [{"name": c.name, "channels": c.count, "coarser": c.coarser, "labels": c.labels}
                        for c in self.channels],
            "stamps": list(self.stamps),
            "area": list(self.reading.area),
            "ratio": list(self.reading.ratio),
            "flip": self.reading.flip,
            "validation": "largest central crop",
            "interpolation": "antialiased cubic, within the range of the crop; labels nearest",
            "normalize": self.reading.normalize,
            "photographs": {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])},
            "others": "mean and deviation of each channel over the whole image",
        }  # fmt: skip

    def _fits(self, channels: int, *, photograph: bool) -> bool:
        if channels == self.count or not self.count:
            return True
        alone = len(self.channels) == 1 and not self.channels[0].labels
        return alone and ((channels == 1 and self.count == 3) or (channels == 3 and self.count == 1 and photograph))

    def _misfit(self, channels: int, *, beside: str = "") -> str:
        text = f"it has {channels} channel(s){beside}"
        if not self.count:
            return f"{text}; the images of one data set have the same channels"
        if len(self.channels) > 1:
            names = ", ".join(f"{c.name} ({c.count})" if c.count > 1 else c.name for c in self.channels)
            told = f"Name what the files hold: --set 'method.sequences=[{self.channels[0].name}]'"
            return f"{text}, and the method reads {self.count}: {names}. {told}"
        ways = {
            "groups": f", the bands 0 to {self.count - 1} of method.groups: name there those that the files have",
            "channels": f" (--set method.channels={channels})",
            "pairs": f" (--set 'method.channels=[[{self.entries[0]},{channels}]]')",
            "sequences": ": name one for each channel, --set 'method.sequences=[...]'",
        }
        return f"{text}, and the method reads {self.count}{ways.get(self.setting, '')}"


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """[c h w] at another size, antialiased; cubic curves overshoot at edges, so values stay within their range."""
    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels
    done = interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    return torch.minimum(torch.maximum(done, low), high)


def _channels(recipe: Mapping[str, Any]) -> tuple[Channels, ...]:
    """What a recipe reads: named sequences with their channels, groups of bands, or one image."""
    if recipe.get("groups"):
        return (Channels("image", 1 + max(band for group in recipe["groups"] for band in group)),)
    said = recipe.get("channels")
    if "sequences" not in recipe:
        return (Channels("image", _whole(said, 3)),)
    names = recipe["sequences"] or ()
    values = dict(said) if isinstance(said, list | tuple | Mapping) else {}
    labels, coarser = dict(recipe.get("classes") or ()), dict(recipe.get("coarser") or ())
    every = _whole(said, 1) if not isinstance(said, list | tuple | Mapping) else 1
    return tuple(Channels(n, int(values.get(n, every)), int(coarser.get(n, 1)), n in labels) for n in names)


def _whole(value: Any, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"method.channels = {value!r} is not a number of channels")
    return value


def _coarse(part: Tensor, channels: Channels) -> Tensor:
    """An entry at its own resolution: means of blocks, of labels the value at their corner."""
    by = channels.coarser
    if by == 1:
        return part.contiguous()
    if channels.labels:
        return part[:, :, ::by, ::by].contiguous()
    return torch.nn.functional.avg_pool2d(part, by)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_number, value)) and 0 < value[0] <= value[1]
