"""Recordings of every format and rate, the parts that are drawn, and what broken files are told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

from medmae.core.errors import DataError, MissingDependency, UsageError
from medmae.core.sound import Frontend, log_mel
from medmae.data.kinds import kind_of
from medmae.data.kinds.audio import AudioKind, frame_and_hop, spectrograms
from medmae.data.kinds.listing import Sample
from medmae.find import find

soundfile = pytest.importorskip("soundfile")
RATE = 16000
RECIPE = {"rate": RATE, "size": (64, 32), "mean": -4.0, "std": 4.5}


def sample(path: Path) -> Sample:
    return Sample(path.name, path, None, path.name)


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    shape = (int(seconds * rate), channels)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32).squeeze()


def write(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Sample:
    soundfile.write(path, wave, rate, subtype=subtype)
    return sample(path)


def batch_of(kind: AudioKind, *samples: Sample, training: bool = False) -> dict[str, torch.Tensor]:
    read = [kind.read(s, key=i, training=training) for i, s in enumerate(samples)]
    batch = {name: torch.from_numpy(np.stack([r[name] for r in read])) for name in read[0]}
    return kind.finish({**batch, "key": torch.arange(len(samples))}, training=training)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    time = np.arange(2 * RATE) / RATE
    wave = (0.4 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    kind = AudioKind.of(RECIPE, {})
    one = write(tmp_path / name, wave)
    assert kind.facts(one) == {"seconds": 2.0, "rate": RATE, "channels": 1}
    read = kind.read(one, key=0, training=False)
    assert read["wave"].shape == (kind.length,)
    assert read["length"] == kind.length
    assert np.abs(read["wave"] - wave[: kind.length])[800:].max() < (0.05 if name.endswith("ogg") else 1e-4)


@pytest.mark.parametrize("fill", ["zero", "minimum"])
@pytest.mark.parametrize("rate", [16000, 32000, 22050])
def test_a_batch_gives_what_the_frontend_gives_each_sound_alone(rate: int, fill: str) -> None:
    frontend = Frontend(rate, 80, 32, -4.0, 4.5, fill=fill)
    frame, hop = frame_and_hop(rate)
    lengths = [frame, frame + 1, frame + 20 * hop + 7, frame + 79 * hop]
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 + 0.2 for n in lengths]
    padded = torch.stack([torch.nn.functional.pad(w, (0, lengths[-1] - len(w))) for w in waves])
    inside = torch.arange(lengths[-1]) < torch.tensor(lengths)[:, None]
    together = spectrograms(frontend, padded, inside)
    assert together.shape == (4, 1, 80, 32)
    for wave, x in zip(waves, together, strict=True):
        assert torch.allclose(x, frontend(wave), atol=1e-4)


def test_frames_are_counted_as_the_filterbank_counts_them() -> None:
    for rate in (8000, 11025, 16000, 22050, 32000, 44100):
        frame, hop = frame_and_hop(rate)
        for n in (frame, frame + hop - 1, frame + hop, frame + 10 * hop + 1):
            assert len(log_mel(torch.zeros(n), rate=rate, bins=8)) == (n - frame) // hop + 1


def test_a_short_sound_is_filled_up_as_the_method_wants_it(tmp_path: Path) -> None:
    short = write(tmp_path / "short.wav", noise(0.3))
    for fill in ("zero", "minimum"):
        kind = AudioKind.of({**RECIPE, "fill": fill}, {})
        x = batch_of(kind, short)["spectrogram"][0, 0]
        alone = kind.frontend(torch.from_numpy(soundfile.read(short.path, dtype="float32")[0]))[0]
        assert torch.allclose(x, alone, atol=1e-4)
        assert torch.equal(x[40:], x[40, 0].expand(24, 32))


@pytest.mark.parametrize("given", [16000, 8000, 44100, 48000, 22050])
def test_a_part_of_a_recording_is_a_part_of_the_resampled_whole(tmp_path: Path, given: int) -> None:
    wave = noise(3.0, given)
    one = write(tmp_path / "a.wav", wave, given, "FLOAT")
    kind = AudioKind.of(RECIPE, {})
    common = np.gcd(given, RATE)
    whole = resample_poly(wave.astype(np.float64), RATE // common, given // common) if given != RATE else wave
    starts = set()
    for key in range(8):
        part = kind.read(one, key=key, training=True)["wave"]
        windows = np.lib.stride_tricks.sliding_window_view(whole, kind.length)
        apart = np.abs(windows[:, ::500] - part[::500]).max(1)
        start = int(apart.argmin())
        assert np.abs(windows[start] - part).max() < 1e-5
        starts.add(start)
    assert len(starts) > 4
    assert max(starts) - min(starts) > 0.5 * RATE
    first = kind.read(one, key=3, training=False)["wave"]
    assert np.abs(first - whole[: kind.length]).max() < 1e-5


def test_a_tone_keeps_its_pitch_when_resampled(tmp_path: Path) -> None:
    kind = AudioKind.of(RECIPE, {})
    peaks = []
    for rate in (8000, 44100, 48000):
        tone = 0.5 * np.sin(2 * np.pi * 1500 * np.arange(2 * rate) / rate)
        wave = kind.read(write(tmp_path / f"{rate}.wav", tone, rate), key=1, training=True)["wave"]
        peaks.append(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))
    assert np.allclose(peaks, 1500, atol=3)


def test_draws_are_functions_of_the_key(tmp_path: Path) -> None:
    one = write(tmp_path / "a.wav", noise(3))
    kind = AudioKind.of(RECIPE, {})
    first = kind.read(one, key=5, training=True)["wave"]
    assert (first == kind.read(one, key=5, training=True)["wave"]).all()
    assert (first != kind.read(one, key=6, training=True)["wave"]).any()


def test_channels_are_averaged(tmp_path: Path) -> None:
    wave = noise(1, channels=2)
    one = write(tmp_path / "a.wav", wave, subtype="FLOAT")
    kind = AudioKind.of(RECIPE, {})
    assert kind.facts(one)["channels"] == 2
    assert np.allclose(kind.read(one, key=0, training=False)["wave"], wave.mean(1)[: kind.length], atol=1e-6)


def test_silence_is_refused_or_kept_as_told(tmp_path: Path) -> None:
    offset = write(tmp_path / "offset.wav", np.full(RATE, 0.25))
    opposite = write(tmp_path / "opposite.wav", noise(1)[:, None] * [1, -1], subtype="FLOAT")
    partly = write(tmp_path / "partly.wav", np.concatenate([np.zeros(2 * RATE, np.float32), noise(0.5)]))
    kind = AudioKind.of(RECIPE, {})
    for one in (write(tmp_path / "zero.wav", np.zeros(RATE)), offset, opposite):
        with pytest.raises(DataError, match=r"silence.*silence=keep"):
            kind.facts(one)
    kept = AudioKind.of(RECIPE, {"silence": "keep"})
    assert kept.facts(offset)["seconds"] == 1
    assert torch.isfinite(batch_of(kept, offset, opposite)["spectrogram"]).all()
    assert kind.facts(partly)["seconds"] == 2.5


def test_mixing_happens_in_training_only_and_by_the_key(tmp_path: Path) -> None:
    ones = [write(tmp_path / f"{i}.wav", noise(1 + i / 10) * (i + 1) / 6) for i in range(5)]
    plain, mixed = AudioKind.of(RECIPE, {}), AudioKind.of(RECIPE, {"mix": 1})
    still = batch_of(plain, *ones)["spectrogram"]
    assert torch.equal(batch_of(mixed, *ones)["spectrogram"], still)
    one, again = (batch_of(mixed, *ones, training=True)["spectrogram"] for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, batch_of(plain, *ones, training=True)["spectrogram"])


@pytest.mark.slow
def test_the_methods_frontends_are_what_is_used() -> None:
    for name in ("audio_mae", "bird_mae"):
        found = find(name)
        recipe = found.recipe(scale="test")
        kind = kind_of("audio", recipe, {})
        assert kind.frontend == found.build(**recipe).frontend


def test_options_and_recipes_are_checked() -> None:
    for recipe, options, word in (
        (RECIPE, {"sillence": "keep"}, "sillence"),
        (RECIPE, {"silence": "maybe"}, "silence"),
        (RECIPE, {"mix": 2}, "probability"),
        (RECIPE, {"mix": "often"}, "number"),
        ({"size": (64, 64)}, {}, "no rate, mean, std"),
        ({**RECIPE, "size": (1, 2, 3)}, {}, "mel bins"),
    ):
        with pytest.raises(UsageError, match=word):
            AudioKind.of(recipe, options)


def broken(name: str, folder: Path) -> tuple[Path, str]:
    """A file with a fault, and a word of the message that must come."""
    path = folder / name
    wave = noise(1)
    if name == "zero-length.wav":
        write(path, wave[:0])
        return path, "without a single sample"
    if name == "empty.wav":
        path.touch()
        return path, "empty file"
    if name.startswith("garbage"):
        path.write_bytes(b"garbage" * 100)
        return path, "cannot be decoded"
    if name == "nan.wav":
        wave[[3, 70]] = [np.nan, np.inf]
        write(path, wave, subtype="FLOAT")
        return path, r"2 sample\(s\) are NaN"
    if name == "frame.wav":
        write(path, wave[:399])
        return path, "399 samples at 16000 Hz, less than the 400"
    if name.startswith("cut"):
        write(path, wave)
        path.write_bytes(path.read_bytes()[:5000])
        return path, "cut off|cannot be decoded"
    if name == "gone.wav":
        return path, "no such file"
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    ["zero-length.wav", "empty.wav", "garbage.wav", "garbage.flac", "nan.wav", "frame.wav", "cut.wav", "cut.flac",
     "cut.ogg", "gone.wav"],
)  # fmt: skip
def test_broken_files_are_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    path, word = broken(name, tmp_path)
    kind = kind_of("audio", RECIPE, {})
    with pytest.raises(DataError, match=word) as caught:
        kind.facts(sample(path))
    assert name in str(caught.value)
    if name != "cut.flac":  # its beginning can be decoded
        with pytest.raises(DataError, match=word):
            kind.read(sample(path), key=0, training=False)


def test_a_recorder_that_never_wrote_the_length_is_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(1)).path
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 4 + data[8:40] + b"\xff" * 4 + data[44:])
    assert AudioKind.of(RECIPE, {}).facts(sample(path))["seconds"] == 1


def test_a_missing_package_comes_with_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path / "a.wav", noise(1))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[audio\]'"):
        AudioKind().facts(one)


def test_toys_need_no_files() -> None:
    toy = Sample("toy-audio/000003", Path("toy-audio/000003"), "vibrato", "s", None, {"toy": 3})
    for rate in (16000, 32000):
        kind = AudioKind.of({**RECIPE, "rate": rate}, {})
        assert kind.facts(toy)["seconds"] == 2
        assert batch_of(kind, toy, training=True)["spectrogram"].shape == (1, 1, 64, 32)
