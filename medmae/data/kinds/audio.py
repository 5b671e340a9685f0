"""Sound: recordings of any rate and length, as the log-mel spectrograms that audio methods read.

A worker decodes only the part that is wanted and brings it to the method's rate; channels are averaged into one. The
part is drawn by the sample's key in training, and is the beginning otherwise. The filterbank runs on the device, over
the whole batch, and gives what the method's :class:`~medmae.core.sound.Frontend` gives for each sound alone: a short
sound is filled up as spectrogram, after its own frames, because zeros in the wave would be the loudest contrast of all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from medmae.core.errors import DataError, MissingDependency, UsageError
from medmae.core.random import uniform
from medmae.core.sound import Frontend, log_mel, mix_waves
from medmae.data.kinds import toy_audio, toys
from medmae.data.kinds.listing import Sample
from medmae.data.kinds.options import checked_options
from medmae.data.layouts import printable

_CROP = 0x736F756E64
_BLOCK = 1 << 20  # samples decoded at once while a file is looked at
_ENDLESS = 0x7FF00000  # bytes from which on the length in a WAV header means "not known yet", as recorders write it
_RATES = (100, 1_000_000)  # Hertz; anything else is a broken header


@dataclass(frozen=True)
class AudioKind:
    """How sound is read. The batch entry is ``spectrogram``, Float[b 1 frames bins].

    Attributes:
        frontend: how the method wants its sound: rate, frames, bins, mean, deviation, filling.
        silence: what is done with a recording that holds one value only, from start to end: ``error`` refuses it, as it
            teaches nothing and most often comes from a broken recorder; ``keep`` trains on it. Silent parts of other
            recordings are always kept.
        mix: probability that others of the batch are laid, more quietly, over a sound in training (Bird-MAE: 0.3).
    """

    frontend: Frontend = field(default_factory=lambda: Frontend(16000, 1024, 128, -4.2677393, 4.5689974))
    silence: str = "error"
    mix: float = 0.0

    name: ClassVar[str] = "audio"
    suffixes: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg")
    entries: ClassVar[tuple[str, ...]] = ("spectrogram",)

    def __post_init__(self) -> None:
        if self.silence not in ("error", "keep"):
            raise UsageError(f"data.reading.silence is 'error' or 'keep', not {self.silence!r}")
        if not 0 <= self.mix <= 1:
            raise UsageError(f"data.reading.mix is a probability, not {self.mix}")

    @classmethod
    def of(cls, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> AudioKind:
        """The kind for a method whose recipe has ``rate``, ``size`` (frames, bins), ``mean``, ``std`` and perhaps
        ``fill``, with the user's options.

        An empty recipe makes a kind for looking at files. Raises UsageError for an option that is unknown or has no
        such value, or a recipe of a method that reads no sound.
        """
        taken = checked_options(cls, options, without=("frontend",))
        if not recipe:
            return cls(**taken)
        if missing := [name for name in ("rate", "size", "mean", "std") if name not in recipe]:
            raise UsageError(f"the method's recipe has no {', '.join(missing)}: it is not made for sound")
        size = tuple(recipe["size"])
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise UsageError(f"method.size = {list(size)} is not frames and mel bins, such as [1024, 128]")
        frontend = Frontend(
            int(recipe["rate"]), size[0], size[1], float(recipe["mean"]), float(recipe["std"]),
            fill=recipe.get("fill", "zero"),
        )  # fmt: skip
        return cls(frontend, **taken)

    @property
    def length(self) -> int:
        """Samples, at the method's rate, that fill a spectrogram."""
        frame, hop = frame_and_hop(self.frontend.rate)
        return frame + (self.frontend.frames - 1) * hop

    def read(self, sample: Sample, *, key: int, training: bool) -> dict[str, np.ndarray]:
        """``wave`` Float32[samples] with zeros after its end, and ``length`` Int64[]: how many samples are sound."""
        if "toy" in sample.extra:
            whole = toys.generate("toy-audio", int(sample.extra["toy"]))[0]
            wave = self._part(_Memory(whole, toy_audio.RATE), key=key, training=training)
        else:
            with _opened(sample) as file:
                _check_header(file, sample)
                wave = self._part(file, key=key, training=training)
        if broken := int((~np.isfinite(wave)).sum()):
            raise _not_finite(sample, broken)
        self._long_enough(len(wave), sample)
        filled = np.zeros(self.length, np.float32)
        filled[: len(wave)] = wave
        return {"wave": filled, "length": np.array(len(wave), np.int64)}

    def finish(self, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        """``spectrogram``, in training perhaps of mixed sounds; a mixture ends where its loudest sound ends."""
        wave, length = batch["wave"].float(), batch["length"]
        inside = torch.arange(wave.shape[1], device=wave.device) < length[:, None]
        if training and self.mix > 0:
            wave = mix_waves(wave, batch["key"], probability=self.mix) * inside
        return {"spectrogram": spectrograms(self.frontend, wave, inside)}

    def facts(self, sample: Sample) -> dict[str, Any]:
        """Seconds, rate in Hertz and channels; the whole file is decoded.

        Raises DataError where it is broken, empty, not finite, silent, or shorter than one frame.
        """
        if "toy" in sample.extra:
            return {"seconds": toy_audio.SECONDS, "rate": toy_audio.RATE, "channels": 1}
        with _opened(sample) as file:
            _check_header(file, sample)
            count, broken, low, high = 0, 0, math.inf, -math.inf
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                broken += int((~np.isfinite(block)).sum())
                mono = block.mean(1)
                count, low, high = count + len(block), min(low, float(mono.min())), max(high, float(mono.max()))
            promised, rate, channels = file.frames, file.samplerate, file.channels
        if count < promised:
            raise DataError(f"{_shown(sample)}: {count} of {promised} samples could be decoded; the file was cut off")
        if broken:
            raise _not_finite(sample, broken)
        if low == high and self.silence == "error":
            raise DataError(
                f"{_shown(sample)}: nothing but silence ({count / rate:.2f} s of the value {low:g}); "
                "leave it out, or keep such recordings with --set data.reading.silence=keep"
            )
        self._long_enough(-(-count * self.frontend.rate // rate), sample)
        return {"seconds": round(count / rate, 3), "rate": rate, "channels": channels}

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": self.name, **dataclasses.asdict(self), "channels": "averaged"}

    def _part(self, file: Any, *, key: int, training: bool) -> Float32[np.ndarray, " samples"]:
        """What is wanted of a recording, at the method's rate, drawn by the key: at most ``length`` samples.

        Parts start where a sample of the method's rate falls on one of the recording, and more than is needed is
        decoded around them, so that a part of the resampled whole is what comes out, to the last bit but rounding.
        """
        up, down = _ratio(file.samplerate, self.frontend.rate)
        total = -(-file.frames * up // down)
        first = 0
        if training and total > self.length:
            chance = float(uniform(torch.tensor([key]), 1, stream=_CROP)[0, 0])
            first = int(chance * ((total - self.length) // up + 1))
        margin = 0 if up == down else -(-(10 * max(up, down) // up + 2) // down)
        before = min(first, margin)
        start, want = (first - before) * down, -(-self.length * down // up) + (before + margin) * down
        file.seek(start)
        wave = file.read(min(want, file.frames - start), dtype="float32", always_2d=True).mean(1)
        if up != down and len(wave):
            from scipy.signal import resample_poly

            wave = resample_poly(wave.astype(np.float64), up, down).astype(np.float32)
        return np.ascontiguousarray(wave[before * up : before * up + self.length])

    def _long_enough(self, count: int, sample: Sample) -> None:
        frame = frame_and_hop(self.frontend.rate)[0]
        if count < frame:
            raise DataError(
                f"{_shown(sample)}: {count} samples at {self.frontend.rate} Hz, less than the {frame} of one frame "
                "(25 ms); leave it out"
            )


def frame_and_hop(rate: int) -> tuple[int, int]:
    """Samples of a frame, and from frame to frame, at ``rate``, as :func:`medmae.core.sound.log_mel` counts them."""
    return int(rate * 25.0 / 1000), int(rate * 10.0 / 1000)


def spectrograms(
    frontend: Frontend, wave: Float[Tensor, "b samples"], inside: Bool[Tensor, "b samples"]
) -> Float[Tensor, "b 1 frames bins"]:
    """What ``frontend`` makes of every sound alone, for sounds of different length that zeros follow.

    Args:
        frontend: how the method wants its sound.
        wave: sounds, each from the first sample on.
        inside: where there is sound.
    """
    length: Int[Tensor, " b"] = inside.sum(1)
    mean = (wave * inside).sum(1, keepdim=True) / length[:, None]
    x = log_mel((wave - mean) * inside, rate=frontend.rate, bins=frontend.bins)[:, : frontend.frames]
    frame, hop = frame_and_hop(frontend.rate)
    there = torch.arange(x.shape[1], device=x.device) < ((length - frame) // hop + 1)[:, None]
    if frontend.fill == "zero":
        x = x * there[..., None]
    else:
        least = x.masked_fill(~there[..., None], torch.inf).amin((1, 2))
        x = torch.where(there[..., None], x, least[:, None, None])
    return ((x - frontend.mean) / (2 * frontend.std))[:, None]


class _Memory:
    """A sound in memory that is read like a file."""

    def __init__(self, wave: Float32[np.ndarray, " samples"], rate: int) -> None:
        self.samplerate, self.frames, self._wave, self._at = rate, len(wave), wave, 0

    def seek(self, at: int) -> None:
        """Read from there."""
        self._at = at

    def read(self, count: int, **_: Any) -> Float32[np.ndarray, "samples 1"]:
        """The next samples."""
        return self._wave[self._at : self._at + count, None]


@contextmanager
def _opened(sample: Sample) -> Iterator[Any]:
    """The recording, open; DataError where it, or what is then read from it, is broken."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its C library is missing
        raise MissingDependency(f"sound files need soundfile ({error}): pip install 'medmae[audio]'") from error
    try:
        if sample.path.stat().st_size == 0:
            raise DataError(f"{_shown(sample)}: an empty file (0 bytes); copy or download it again")
        with soundfile.SoundFile(sample.path) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{_shown(sample)}: no such file") from error
    except (soundfile.SoundFileError, OSError) as error:
        text = str(getattr(error, "error_string", error))
        raise DataError(f"{_shown(sample)}: cannot be decoded ({text}); is it whole?") from error


def _check_header(file: Any, sample: Sample) -> None:
    if file.frames <= 0:
        raise DataError(
            f"{_shown(sample)}: a recording without a single sample, or one that was cut off; record or export it again"
        )
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if found is not None and int(found[2]) < int(found[1]) < _ENDLESS:
        raise DataError(
            f"{_shown(sample)}: holds {found[2]} of the {found[1]} bytes of sound that its header promises; it was cut "
            "off, so copy or export it again"
        )
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise DataError(f"{_shown(sample)}: {file.samplerate} samples per second cannot be meant; its header is broken")


def _not_finite(sample: Sample, broken: int) -> DataError:
    return DataError(f"{_shown(sample)}: {broken} sample(s) are NaN or infinite; record or export it again")


def _ratio(given: int, wanted: int) -> tuple[int, int]:
    """Smallest numbers with ``given * up = wanted * down``."""
    common = math.gcd(given, wanted)
    return wanted // common, given // common


def _shown(sample: Sample) -> str:
    return printable(str(sample.path), limit=400)
