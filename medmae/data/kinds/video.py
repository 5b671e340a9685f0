"""Video: films, folders of frames and arrays, as the clips that video methods read.

A clip is ``size[0]`` frames, ``stride`` apart. In training its place in the film, the box that is cut out of every
frame and a flip are drawn by the sample's key; otherwise the clip and the box are central. One clip has one box and one
flip: what moves in it is what moved before the camera. A film too short for the stride is read with a smaller one, and
one with fewer frames than a clip is filled up with its last frame, unless ``short`` says otherwise.

Colors of 8 bits come normalized by ImageNet's mean and deviation. Anything else (``channels`` other than 3) comes
normalized by mean and deviation of each channel over the frames of the clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from medmae.core.errors import DataError, UsageError
from medmae.core.random import uniform
from medmae.data.kinds import toys
from medmae.data.kinds.image import IMAGENET, resize
from medmae.data.kinds.listing import Sample
from medmae.data.kinds.options import checked_options
from medmae.data.kinds.video_files import ARRAYS, FILMS, FRAMES, Film, look, read_frames, shown

_CLIP, _FLIP = 0x766964656F, 0x766966
_LUMINANCE = (0.299, 0.587, 0.114)
SHORT = ("denser", "repeat", "error")
LOOKS = ("whole", "ends")


@dataclass(frozen=True)
class VideoKind:
    """How video is read. The batch entry is ``video``, Float[b channels time rows columns].

    Attributes:
        size: frames, rows and columns of a clip.
        channels: values per pixel; 0: any, for looking at files without a method.
        stride: frames from one frame of the clip to the next.
        short: what is done with a film that ends before a clip of this stride does: ``denser`` takes the largest stride
            that fits and, where even 1 is too large, repeats the last frame; ``repeat`` keeps the stride and repeats
            the last frame; ``error`` refuses it.
        smallest: smallest share of the frame's largest box that a training crop has; 1: always the largest box.
        flip: probability that a training clip is mirrored left to right; 0 where directions mean something.
        look: how files are checked before training: ``whole`` decodes every frame, ``ends`` the first and last.
    """

    size: tuple[int, int, int] = (1, 1, 1)
    channels: int = 0
    stride: int = 4
    short: str = "denser"
    smallest: float = 0.5
    flip: float = 0.5
    look: str = "whole"

    name: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = (*FILMS, *ARRAYS)
    folder_suffixes: ClassVar[tuple[str, ...]] = FRAMES
    entries: ClassVar[tuple[str, ...]] = ("video",)

    def __post_init__(self) -> None:
        rules = {
            "stride": (self.stride >= 1, "a number of frames of at least 1"),
            "short": (self.short in SHORT, " or ".join(SHORT)),
            "smallest": (0 < self.smallest <= 1, "a share of the frame, above 0 and at most 1"),
            "flip": (0 <= self.flip <= 1, "a probability"),
            "look": (self.look in LOOKS, " or ".join(LOOKS)),
        }
        if wrong := [
            f"data.reading.{k} = {getattr(self, k)!r} is not {what}" for k, (ok, what) in rules.items() if not ok
        ]:
            raise UsageError("; ".join(wrong))

    @classmethod
    def of(cls, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> VideoKind:
        """The kind for a method whose recipe has ``size`` (frames, rows, columns) and ``channels``, with the user's
        options.

        An empty recipe makes a kind for looking at files. Raises UsageError for an option that is unknown or cannot be
        meant, or a recipe that clips cannot fill.
        """
        taken = checked_options(cls, options, without=("size", "channels"))
        if not recipe:
            return cls(**taken)
        size = tuple(recipe.get("size") or ())
        if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
            raise UsageError(f"clips have three axes: method.size = {list(size)} is not a size such as [16, 224, 224]")
        channels = recipe.get("channels", 3)
        if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
            raise UsageError(f"method.channels = {channels!r} is not a number of channels")
        return cls((size[0], size[1], size[2]), channels, **taken)

    # ---------------------------------------------------------------- reading

    def read(self, sample: Sample, *, key: int, training: bool) -> dict[str, np.ndarray]:
        """``pixels`` [channels time rows columns], uint8 of colors and float32 of anything else, and ``scale``
        float32[channels 2]: mean and deviation of each channel."""
        draws = uniform(torch.tensor([key]), 4, stream=_CLIP)[0].double().tolist() if training else None

        def pick(n: int) -> list[int]:
            return self.clip(n, start=None if draws is None else draws[0], name=shown(sample.path))

        if "toy" in sample.extra:
            whole = toys.generate("toy-video", int(sample.extra["toy"]))[0]
            frames = whole[pick(len(whole))]
        else:
            frames = read_frames(sample.path, pick)
        frames, scale = self._fitted(frames, sample)
        top, left, rows, columns = self._box(frames.shape[1], frames.shape[2], draws)
        part = np.ascontiguousarray(frames[:, top : top + rows, left : left + columns].transpose(3, 0, 1, 2))
        pixels = torch.from_numpy(part).float().flatten(0, 1)
        pixels = resize(pixels, self.size[1:]).unflatten(0, (self.channels, self.size[0]))
        return {"pixels": pixels.round().byte().numpy() if self.colors else pixels.numpy(), "scale": scale}

    def finish(self, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        """``video``, standardized and, where ``training``, perhaps mirrored, all frames of a clip alike."""
        scale = batch["scale"][..., None, None, None]
        video = (batch["pixels"].float() - scale[:, :, 0]) / scale[:, :, 1]
        if training and self.flip > 0:
            flip = uniform(batch["key"], 1, stream=_FLIP)[:, 0] < self.flip
            video = torch.where(flip[:, None, None, None, None], video.flip(-1), video)
        return {"video": video.contiguous()}

    @property
    def colors(self) -> bool:
        """Whether clips are colors of 8 bits."""
        return self.channels == 3

    def clip(self, n: int, *, start: float | None, name: str = "") -> list[int]:
        """Numbers of the frames of a clip in a film of ``n``.

        Args:
            n: frames of the film.
            start: in [0, 1), where among all possible places it begins; None: in the middle.
            name: of the film, for the DataError where it is too short and ``short`` is "error".
        """
        t, stride = self.size[0], self.stride
        if self.short == "error" and n < (t - 1) * stride + 1:
            raise DataError(
                f"{name}: {n} frames, and a clip of {t} frames with stride {stride} needs {(t - 1) * stride + 1}; "
                "leave it out, or set data.reading.short=denser"
            )
        if self.short == "denser" and t > 1:
            stride = max(1, min(stride, (n - 1) // (t - 1)))
        room = max(0, n - ((t - 1) * stride + 1))
        first = room // 2 if start is None else int(start * (room + 1))
        return [min(first + i * stride, n - 1) for i in range(t)]

    def _fitted(self, frames: np.ndarray, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Frames with the method's number of channels, and mean and deviation of each."""
        if problem := self._misfit(frames.shape[3], str(frames.dtype)):
            raise DataError(f"{shown(sample.path)}: {problem}")
        if self.colors:
            return np.broadcast_to(frames, (*frames.shape[:3], 3)), np.asarray(IMAGENET, np.float32).T.copy()
        values = frames.astype(np.float32)
        if self.channels == 1 and values.shape[3] == 3:
            values = np.tensordot(values, np.asarray(_LUMINANCE, np.float32), 1)[..., None]
        mean, deviation = values.mean((0, 1, 2), dtype=np.float64), values.std((0, 1, 2), dtype=np.float64)
        return values, np.stack([mean, np.where(deviation > 0, deviation, 1.0)], 1).astype(np.float32)

    def _misfit(self, channels: int, kind: str) -> str:
        """What is wrong with the channels of a file; nothing where the method can read them."""
        if not self.channels:
            return ""
        if self.colors:
            if kind != "uint8":
                return f"holds {kind}, and colors have 8 bits; store uint8, or read other values with method.channels=1"
            fits = channels in (1, 3)
        else:
            fits = channels == self.channels or (self.channels == 1 and channels == 3 and kind == "uint8")
        return "" if fits else f"it has {channels} channel(s), and the method reads {self.channels} (method.channels)"

    def _box(self, rows: int, columns: int, draws: Sequence[float] | None) -> tuple[int, int, int, int]:
        """Top, left, rows and columns of what is cut out, in the proportions of the method's frames."""
        zoom = min(rows / self.size[1], columns / self.size[2])
        share = 1.0 if draws is None else self.smallest + (1 - self.smallest) * draws[1]
        h, w = (max(1, round(n * zoom * share**0.5)) for n in self.size[1:])
        if draws is None:
            return (rows - h) // 2, (columns - w) // 2, h, w
        return int(draws[2] * (rows - h + 1)), int(draws[3] * (columns - w + 1)), h, w

    # ---------------------------------------------------------------- telling

    def facts(self, sample: Sample) -> dict[str, Any]:
        """Frames, rows and columns, channels, type of number and, of films, frames per second and seconds.

        Raises DataError where it is broken, empty, too short or has other channels than the method reads.
        """
        if "toy" in sample.extra:
            film = Film(16, (64, 64), 3, "uint8", None)
        else:
            film = look(sample.path, whole=self.look == "whole")
        if problem := self._misfit(film.channels, film.kind):
            raise DataError(f"{shown(sample.path)}: {problem}")
        if self.channels:
            self.clip(film.frames, start=None, name=shown(sample.path))
        clock = {} if not film.rate else {"rate": film.rate, "seconds": round(film.frames / film.rate, 3)}
        return {"frames": film.frames, "size": list(film.size), "channels": film.channels, "type": film.kind, **clock}

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            "kind": self.name,
            **dataclasses.asdict(self),
            "size": list(self.size),
            "validation": "central clip, largest central crop",
            "interpolation": "antialiased cubic, within the range of each frame",
            "normalize": {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])} if self.colors else "channels of a clip",
        }
