"""Chosen frames of a clip, whatever holds it: a film, a folder of pictures, an array.

Frames are counted from 0 in the order in which they are shown. A film is read twice: first its packets, which costs
reading but no decoding and gives the time of every frame, then the pictures, from the last key frame before the first
one that is wanted. A film whose packets do not tell this (no times, times twice, or a decoder that gives other times)
is decoded from its beginning, so that a frame's number never depends on where the reading starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medmae.core.errors import DataError, MissingDependency
from medmae.data.kinds.pixels import PHOTOGRAPHS, TIFF, read_pixels
from medmae.data.layouts import printable

FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".gif")
ARRAYS = (".npy", ".npz")
FRAMES = (*PHOTOGRAPHS, *TIFF)
_REACHED = 0.9  # of a film's stated length that must be there
_INSIDE = "video"  # the array of an .npz that holds several

Pick = Callable[[int], Sequence[int]]
"""The numbers of the frames that are wanted, in rising order (repeated ones too), from how many there are."""


@dataclass(frozen=True)
class Film:
    """What looking at a clip has found: number of frames, rows and columns, channels, type of number, frames per
    second (None where no clock is known)."""

    frames: int
    size: tuple[int, int]
    channels: int
    kind: str
    rate: float | None


def read_frames(path: Path, pick: Pick) -> np.ndarray:
    """The frames that ``pick`` chooses: [t rows columns channels], in the numbers of the file.

    Raises:
        DataError: broken, empty, not a clip, values that are no numbers; names the file.
        MissingDependency: a film, and PyAV is not installed.
    """
    if path.is_dir():
        files = frame_files(path)
        return _stacked(path, [files[i] for i in pick(len(files))])
    if path.suffix.lower() in ARRAYS:
        whole = _array(path)
        return _finite(path, np.ascontiguousarray(whole[list(pick(len(whole)))]))
    with _decoding(path):
        times = _times(str(path), *_mark(path))
        found = None if times is None else _at(path, [times[i] for i in pick(len(times))])
        return _counted(path, pick(_count(path))) if found is None else found


def look(path: Path, *, whole: bool = True) -> Film:
    """Look at a clip; with ``whole`` every frame is decoded, otherwise the first and the last.

    Raises what :func:`read_frames` raises, and DataError where frames are fewer than the file says or differ in size.
    """
    if path.is_dir():
        files = frame_files(path)
        chosen = files if whole else [files[0], files[-1]]
        first = _stacked(path, chosen[:1])[0]
        for file in chosen[1:]:
            _same(path, file, _frame(file), first)
        return Film(len(files), (first.shape[0], first.shape[1]), first.shape[2], str(first.dtype), None)
    if path.suffix.lower() in ARRAYS:
        array = _array(path)
        for frame in array if whole else (array[0], array[-1]):
            _finite(path, frame)
        return Film(len(array), (array.shape[1], array.shape[2]), array.shape[3], str(array.dtype), None)
    with _decoding(path):
        times = _times(str(path), *_mark(path))
        promised = 0 if times is None else len(times)
        ends = not whole and promised
        count = promised if ends else _count(path)
        if count < promised:
            raise DataError(f"{shown(path)}: {count} of {promised} frames could be decoded; it is damaged")
        frames = read_frames(path, (lambda n: (0, n - 1)) if ends else (lambda n: (0,)))
        with _opened(path) as (_, stream):
            rate = None if stream.average_rate is None else round(float(stream.average_rate), 3)
        _reaches_end(path)
        return Film(count, (frames.shape[1], frames.shape[2]), 3, "uint8", rate)


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder, ``frame2`` before ``frame10``; DataError where there are none."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in FRAMES and not p.name.startswith(".")]
    if not files:
        raise DataError(f"{shown(folder)}: a folder without pictures ({', '.join(FRAMES)})")
    return sorted(files, key=lambda p: ([int(d) if d.isdigit() else d for d in re.split(r"(\d+)", p.name)], p.name))


def shown(path: Path) -> str:
    """A path as messages show it."""
    return printable(str(path), limit=400)


# ---------------------------------------------------------------- pictures and arrays


def _frame(file: Path) -> np.ndarray:
    return read_pixels(file).values.transpose(1, 2, 0)


def _stacked(folder: Path, files: Sequence[Path]) -> np.ndarray:
    frames: dict[Path, np.ndarray] = {}
    for file in files:
        if file not in frames:
            frame = _frame(file)
            if frames:
                _same(folder, file, frame, next(iter(frames.values())))
            frames[file] = frame
    return np.stack([frames[file] for file in files])


def _same(folder: Path, file: Path, frame: np.ndarray, first: np.ndarray) -> None:
    if frame.shape != first.shape or frame.dtype != first.dtype:
        raise DataError(
            f"{shown(folder)}: the frame {printable(file.name)} has shape {frame.shape} and type {frame.dtype}, others "
            f"{first.shape} and {first.dtype}; the frames of one clip are alike"
        )


def _array(path: Path) -> np.ndarray:
    """[t rows columns channels] of a .npy (mapped, not read) or .npz."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as stored:
                names = list(stored.files)
                if _INSIDE not in names and len(names) != 1:
                    raise DataError(
                        f"{shown(path)}: holds {len(names)} arrays, none called {_INSIDE!r}; name the clip so"
                    )
                array = stored[_INSIDE if _INSIDE in names else names[0]]
    except DataError:
        raise
    except Exception as error:  # damaged archives raise whatever their bytes lead to
        what = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{shown(path)}: cannot be read as an array ({what})") from error
    array = array[..., None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[3] > 512:
        raise DataError(f"{shown(path)}: a clip is [time rows columns channels]; this has shape {array.shape}")
    if 0 in array.shape:
        raise DataError(f"{shown(path)}: a clip without frames or pixels, of shape {array.shape}; leave it out")
    if array.dtype.kind not in "uif":
        raise DataError(f"{shown(path)}: holds {array.dtype}, not numbers")
    return array


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" and (bad := int((~np.isfinite(values)).sum())):
        raise DataError(f"{shown(path)}: {bad} value(s) are NaN or infinite; correct or leave it out")
    return values


# ---------------------------------------------------------------- films


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn what a decoder raises into a DataError that names the file."""
    try:
        import av.error
    except ImportError as error:
        raise MissingDependency(
            f"films such as {shown(path)} need PyAV ({error}): pip install 'medmae[video]'"
        ) from error
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{shown(path)}: an empty file (0 bytes); copy or download it again")
        yield
    except FileNotFoundError as error:
        raise DataError(f"{shown(path)}: no such file") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise DataError(f"{shown(path)}: cannot be decoded ({what}); is it whole?") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The file and its first film; damage is an error here, where players would show gray instead."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DataError(f"{shown(path)}: holds no film, only {_others(container)}; leave it out")
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1  # files are read side by side already
        yield container, stream


def _others(container: Any) -> str:
    return ", ".join(sorted({s.type for s in container.streams})) or "nothing"


def _mark(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4096)
def _times(path: str, size: int, changed: int) -> tuple[int, ...] | None:
    """When each frame is shown, from the packets alone; None where they do not say it without doubt."""
    times = []
    with _opened(Path(path)) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
    if not times or None in times or len(set(times)) < len(times):
        return None
    return tuple(sorted(times))


def _at(path: Path, times: Sequence[int]) -> np.ndarray | None:
    """The frames shown at some times, in rising order; None where the decoder gives other times."""
    wanted, found = set(times), {}
    with _opened(path) as (container, stream):
        container.seek(times[0], stream=stream, backward=True, any_frame=False)
        early = False
        for frame in container.decode(stream):
            early = early or (frame.pts is not None and frame.pts <= times[0])
            if not early:
                break  # it begins too late: a key frame in name only
            if frame.pts in wanted:
                found[frame.pts] = _upright(path, frame)
                if len(found) == len(wanted):
                    return np.stack([found[time] for time in times])
    return None


def _reaches_end(path: Path) -> None:
    """Raise DataError for a film that was cut off where its container does not tell: nothing in it, no sound either,
    comes near the length that its header states.
    """
    with _opened(path) as (container, _):
        stated = (container.duration or 0) / 1_000_000  # microseconds
        last = 0.0
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        last -= (container.start_time or 0) / 1_000_000
    if last < _REACHED * stated:
        raise DataError(
            f"{shown(path)}: ends after {last:.2f} of the {stated:.2f} s that its header states; it was cut off; copy "
            "or download it again"
        )


def _count(path: Path) -> int:
    """Number of frames that can be decoded."""
    with _opened(path) as (container, stream):
        count = sum(1 for _ in container.decode(stream))
    if count == 0:
        raise DataError(f"{shown(path)}: a film without a single frame; leave it out")
    return count


def _counted(path: Path, numbers: Sequence[int]) -> np.ndarray:
    """Frames by their number, decoded from the beginning."""
    wanted, found = set(numbers), {}
    with _opened(path) as (container, stream):
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                found[i] = _upright(path, frame)
                if len(found) == len(wanted):
                    break
    return np.stack([found[i] for i in numbers])


def _upright(path: Path, frame: Any) -> np.ndarray:
    """uint8[rows columns 3], turned as the camera was held."""
    values: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90) % 4)
    return values
