"""Clips: the right frames, cut and scaled as stated, and files that are broken are named."""

from __future__ import annotations

import builtins
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from medmae.core.errors import DataError, MissingDependency, UsageError
from medmae.data.kinds import video_files
from medmae.data.kinds.image import IMAGENET
from medmae.data.kinds.listing import Sample, list_samples
from medmae.data.kinds.source import SampleSource
from medmae.data.kinds.video import VideoKind

sys.path.insert(0, str(Path(__file__).parent))

from clips import damage, number, numbered, write_film

av = pytest.importorskip("av")

FORMATS = [
    ("a.mp4", "mpeg4", 0), ("b.mp4", "mpeg4", 2), ("c.avi", "mpeg4", 2), ("d.mkv", "mpeg4", 0),
    ("e.mpg", "mpeg2video", 2), ("f.mp4", "libx264", 3), ("g.webm", "libvpx-vp9", 0),
]  # fmt: skip


def sample(path: Path) -> Sample:
    return Sample(path.name, path, None, path.name)


def kind(**options: object) -> VideoKind:
    return VideoKind.of({"size": [4, 32, 32], "channels": 3}, options)


# ---------------------------------------------------------------- films


@pytest.mark.parametrize(("name", "codec", "b_frames"), FORMATS)
def test_frames_are_those_that_were_written(tmp_path: Path, name: str, codec: str, b_frames: int) -> None:
    """By number wherever reading starts, and in their values within what the codec loses."""
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV without {codec}")
    written = numbered(60)
    path = write_film(tmp_path / name, written, codec=codec, b_frames=b_frames)
    for wanted in ([0, 1, 2], [11, 12, 13], [37, 41, 41, 59], [59]):
        frames = video_files.read_frames(path, lambda n, wanted=wanted: wanted)
        assert [number(frame) for frame in frames] == wanted
        assert np.abs(frames.astype(int) - written[wanted]).mean() < 4
    film = video_files.look(path)
    assert (film.frames, film.size, film.channels, film.rate) == (60, (48, 128), 3, 25.0)


def test_little_is_decoded_of_a_long_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the key frame before the first to the last that is wanted: within one group of pictures, and what lies
    between."""
    path = write_film(tmp_path / "a.mp4", numbered(240), gop=12)
    decoded = 0
    original = video_files._upright

    def counting(file: Path, frame: object) -> np.ndarray:
        nonlocal decoded
        decoded += 1
        return original(file, frame)

    monkeypatch.setattr(video_files, "_upright", counting)
    monkeypatch.setattr(video_files, "_counted", lambda *_: pytest.fail("decoded from the beginning"))
    frames = video_files.read_frames(path, lambda n: [n - 10, n - 6, n - 2])
    assert [number(frame) for frame in frames] == [230, 234, 238]
    assert decoded == 3


def test_without_times_frames_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "a.mp4", numbered(40))
    monkeypatch.setattr(video_files, "_times", lambda *_: None)
    frames = video_files.read_frames(path, lambda n: [3, 3, n - 1])
    assert [number(frame) for frame in frames] == [3, 3, 39]


def test_a_seek_that_comes_too_late_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times from which the decoder's are shifted: the film is decoded from its beginning instead."""
    path = write_film(tmp_path / "a.mp4", numbered(40))
    honest = video_files._times(str(path), *video_files._mark(path))
    assert honest is not None
    monkeypatch.setattr(video_files, "_times", lambda *_: tuple(time + 1 for time in honest))
    frames = video_files.read_frames(path, lambda n: [20, 30])
    assert [number(frame) for frame in frames] == [20, 30]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_damaged_and_cut_films_are_named(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name, numbered(60))
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(DataError, match=f"{name}: .*(decoded|ends after)"):
        video_files.look(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name}: .*(decoded|ends after)"):
        video_files.look(path)
    path.write_bytes(whole)
    assert video_files.look(path).frames == 60


def test_files_that_are_no_films_are_named(tmp_path: Path) -> None:
    empty, text, missing = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "missing.mp4"
    empty.touch()
    text.write_text("not a film " * 100)
    for path, why in ((empty, "0 bytes"), (text, "cannot be decoded"), (missing, "no such file")):
        with pytest.raises(DataError, match=f"{path.name}: .*{why}"):
            kind().facts(sample(path))
        with pytest.raises(DataError, match=path.name):
            kind().read(sample(path), key=1, training=True)


def test_sound_alone_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with pytest.raises(DataError, match=r"sound\.mkv: holds no film, only audio"):
        kind().facts(sample(path))


def test_without_pyav_there_is_a_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **more: object) -> object:
        if name == "av" or name.startswith("av."):
            raise ImportError("No module named 'av'")
        return original(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[video\]'"):
        kind().facts(sample(tmp_path / "a.mp4"))
    np.save(tmp_path / "a.npy", numbered(8))
    assert kind().facts(sample(tmp_path / "a.npy"))["frames"] == 8, "arrays need no decoder"


# ---------------------------------------------------------------- folders and arrays


def test_frame_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    from PIL import Image

    written = numbered(12)
    (tmp_path / "clip").mkdir()
    for i, frame in enumerate(written):
        Image.fromarray(frame).save(tmp_path / "clip" / f"frame{i}.png")
    frames = video_files.read_frames(tmp_path / "clip", lambda n: range(n))
    assert np.array_equal(frames, written)
    assert kind().facts(sample(tmp_path / "clip"))["frames"] == 12
    Image.fromarray(written[0, :20]).save(tmp_path / "clip" / "frame5.png")
    with pytest.raises(DataError, match=r"clip: the frame frame5\.png has shape"):
        kind().facts(sample(tmp_path / "clip"))


def test_arrays(tmp_path: Path) -> None:
    written = numbered(10)
    np.save(tmp_path / "a.npy", written)
    np.savez_compressed(tmp_path / "b.npz", video=written, fps=np.float32(25))
    np.save(tmp_path / "gray.npy", written[..., 0])
    for name in ("a.npy", "b.npz"):
        assert np.array_equal(video_files.read_frames(tmp_path / name, lambda n: [2, 9]), written[[2, 9]])
    assert kind().read(sample(tmp_path / "gray.npy"), key=0, training=False)["pixels"].shape == (3, 4, 32, 32)


def test_arrays_that_are_no_clips_are_named(tmp_path: Path) -> None:
    nan = np.ones((4, 8, 8, 1), np.float32)
    nan[2, 0, 0, 0] = np.nan
    bad = {
        "flat": (np.zeros((5, 5)), r"\[time rows columns channels\]"),
        "none": (np.zeros((0, 8, 8, 3), np.uint8), "without frames"),
        "words": (np.full((2, 8, 8, 3), "a"), "not numbers"),
        "nan": (nan, r"1 value\(s\) are NaN"),
        "float": (np.zeros((4, 8, 8, 3), np.float32), "8 bits"),
        "five": (np.zeros((4, 8, 8, 5), np.uint8), "5 channel"),
    }
    for name, (array, why) in bad.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(DataError, match=rf"{name}\.npy: .*{why}"):
            kind().facts(sample(tmp_path / f"{name}.npy"))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("two.npz", "broken.npz", "objects.npy"):
        with pytest.raises(DataError, match=name):
            kind().facts(sample(tmp_path / name))


# ---------------------------------------------------------------- the kind


def test_which_frames_make_a_clip() -> None:
    central = kind(stride=2)
    assert central.clip(20, start=None) == [6, 8, 10, 12]
    assert central.clip(20, start=0.0) == [0, 2, 4, 6]
    assert central.clip(20, start=0.9999) == [13, 15, 17, 19]
    assert central.clip(5, start=0.5) == [0, 1, 2, 3] or central.clip(5, start=0.5) == [1, 2, 3, 4]
    assert central.clip(2, start=None) == [0, 1, 1, 1]
    assert kind(stride=2, short="repeat").clip(5, start=None) == [0, 2, 4, 4]
    with pytest.raises(DataError, match=r"x\.mp4: 6 frames, .* needs 7"):
        kind(stride=2, short="error").clip(6, start=None, name="x.mp4")


def test_all_frames_share_one_box_and_one_flip(tmp_path: Path) -> None:
    """A film that stands still gives a clip that stands still, in training too."""
    still = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8), 9, 0)
    np.save(tmp_path / "still.npy", still)
    one = kind()
    keys, boxes = torch.arange(40), []
    for key in keys.tolist():
        read = one.read(sample(tmp_path / "still.npy"), key=key, training=True)
        assert (read["pixels"] == read["pixels"][:, :1]).all()
        boxes.append(read)
    assert len({b["pixels"].tobytes() for b in boxes}) > 30, "boxes are drawn"
    batch = {name: torch.stack([torch.from_numpy(b[name]) for b in boxes]) for name in boxes[0]} | {"key": keys}
    video, plain = (one.finish(batch, training=flag)["video"] for flag in (True, False))
    assert (video == video[:, :, :1]).all()
    flipped = (video == plain.flip(-1)).flatten(1).all(1)
    assert (flipped | (video == plain).flatten(1).all(1)).all()
    assert 8 < int(flipped.sum()) < 32


def test_reading_is_a_function_of_the_key(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", numbered(60))
    first, again, other = (kind().read(sample(path), key=key, training=True)["pixels"] for key in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    fixed = [kind().read(sample(path), key=key, training=False)["pixels"] for key in (5, 6)]
    assert np.array_equal(*fixed)


def test_colors_are_normalized_by_imagenet(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((8, 40, 40, 3), (10, 128, 255), np.uint8))
    read = kind().read(sample(tmp_path / "a.npy"), key=0, training=False)
    batch = {name: torch.from_numpy(value)[None] for name, value in read.items()} | {"key": torch.tensor([0])}
    video = kind().finish(batch, training=False)["video"]
    assert video.shape == (1, 3, 4, 32, 32)
    wanted = (torch.tensor([10.0, 128, 255]) - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    assert torch.allclose(video.mean((0, 2, 3, 4)), wanted, atol=1e-5)


def test_one_channel_is_normalized_by_its_clip(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(500, 20, (8, 32, 32)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    gray = VideoKind.of({"size": [4, 32, 32], "channels": 1}, {"stride": 1})
    read = gray.read(sample(tmp_path / "a.npy"), key=0, training=False)
    batch = {name: torch.from_numpy(value)[None] for name, value in read.items()} | {"key": torch.tensor([0])}
    video = gray.finish(batch, training=False)["video"]
    assert video.shape == (1, 1, 4, 32, 32)
    assert abs(float(video.mean())) < 1e-4
    assert abs(float(video.std()) - 1) < 1e-2


@pytest.mark.parametrize(
    "options", [{"stride": 0}, {"short": "loop"}, {"smallest": 0}, {"flip": 2}, {"look": "none"}, {"speed": 2}]
)
def test_options_that_cannot_be_meant(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        kind(**options)


def test_recipes_that_clips_cannot_fill() -> None:
    for recipe in ({"size": [32, 32]}, {"size": [4, 32, 32], "channels": 0}, {"width": 3}):
        with pytest.raises(UsageError, match=r"method\.(size|channels)"):
            VideoKind.of(recipe, {})


def test_batches_from_films_folders_arrays_and_toys(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        write_film(tmp_path / f"film{i}.mp4", numbered(20))
        np.save(tmp_path / f"array{i}.npy", numbered(20))
        (tmp_path / "frames" / f"clip{i}").mkdir(parents=True)
        for t, frame in enumerate(numbered(6)):
            Image.fromarray(frame).save(tmp_path / "frames" / f"clip{i}" / f"{t}.png")
    for data, count in ((tmp_path, 18), ("toy-video:30", 30)):
        listing = list_samples(str(data), kind="video")
        assert len(listing.samples) == count
        source = SampleSource(listing, kind(), quiet=True)
        batch = next(source.train(start=0, batch=5, rank=0, world=1, seed=0))
        video = source.finish(batch, device="cpu", training=True)["video"]
        assert video.shape == (5, 3, 4, 32, 32)
        assert source.describe()["reading"]["stride"] == 4
