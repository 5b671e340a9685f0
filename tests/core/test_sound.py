"""The filterbank equals Kaldi's, and sounds become spectrograms as the methods want them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medmae.core.errors import DataError
from medmae.core.sound import Frontend, centers, log_mel, mix_waves

RATES = (16000, 22050, 32000, 44100)


def sound(kind: str, rate: int) -> Tensor:
    t = torch.arange(rate) / rate
    noise = torch.randn(rate)
    return {
        "noise": 0.1 * noise,
        "call": 0.5 * torch.sin(2 * math.pi * (1000 * t + 900 * t**2)) * (t < 0.6) + 0.001 * noise,
        "silence": 0.0 * noise,
    }[kind]


@pytest.mark.parametrize("kind", ["noise", "call", "silence"])
@pytest.mark.parametrize("rate", RATES)
def test_the_filterbank_is_that_of_kaldi(rate: int, kind: str) -> None:
    """Within 1e-4 wherever a bin has a ten-thousandth of the energy of the loudest bin of its frame.

    Below, the float32 transform of the other side is what limits: its error is a share of the loudest energy.
    """
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = 128
    options.use_energy = False
    theirs = kaldi.OnlineFbank(options)
    wave = sound(kind, rate)
    theirs.accept_waveform(rate, wave.numpy())
    theirs.input_finished()
    frames = torch.from_numpy(np.stack([theirs.get_frame(i) for i in range(theirs.num_frames_ready)]))
    mine = log_mel(wave, rate=rate)
    assert mine.shape == frames.shape
    apart = (mine - frames).abs()
    loud = frames > frames.amax(-1, keepdim=True) + math.log(1e-4)
    assert float(apart[loud].max()) < 1e-4
    error = (mine.exp() - frames.exp()).abs()
    assert bool((error <= 1e-4 * frames.exp() + 1e-8 * frames.exp().amax(-1, keepdim=True)).all())


def test_the_filterbank_by_its_definition() -> None:
    """One frame at a time, with a plain Fourier sum."""
    rate, bins = 8000, 20
    wave = sound("noise", rate)[:1000]
    mine = log_mel(wave, rate=rate, bins=bins)
    assert mine.shape == (11, bins)
    mel = 1127 * np.log(1 + np.arange(128) * rate / 256 / 700)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 4000 / 700), bins + 2)
    for frame in (0, 5, 10):
        x = wave[frame * 80 : frame * 80 + 200].double().numpy()
        x = x - x.mean()
        x = x - 0.97 * np.concatenate([x[:1], x[:-1]])
        x = x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 199))
        turns = np.exp(-2j * np.pi * np.outer(np.arange(128), np.arange(200)) / 256)
        power = np.abs(turns @ x) ** 2
        for j in range(bins):
            weight = np.interp(mel, edges[j : j + 3], [0, 1, 0], left=0, right=0)
            assert float(mine[frame, j]) == pytest.approx(math.log(weight @ power), abs=1e-4)


def test_several_waves_at_once_and_too_short_ones() -> None:
    waves = torch.randn(2, 3, 4000)
    together = log_mel(waves, rate=16000, bins=40)
    assert together.shape == (2, 3, 23, 40)
    torch.testing.assert_close(together[1, 2], log_mel(waves[1, 2], rate=16000, bins=40))
    with pytest.raises(DataError, match="399 samples at 16000 Hz"):
        log_mel(torch.randn(399), rate=16000)
    with pytest.raises(DataError, match="shorter than one frame"):
        log_mel(torch.zeros(0), rate=16000)


def test_the_frontend_cuts_fills_and_normalizes() -> None:
    wave = torch.randn(8000) + 0.3
    zero = Frontend(16000, 64, 32, -4.0, 2.0)
    least = Frontend(16000, 64, 32, -4.0, 2.0, fill="minimum")
    bare = log_mel(wave - wave.mean(), rate=16000, bins=32)
    assert bare.shape == (48, 32)
    for frontend, value in ((zero, 0.0), (least, float(bare.min()))):
        x = frontend(wave)
        assert x.shape == (1, 64, 32)
        torch.testing.assert_close(x[0, :48], (bare + 4.0) / 4.0)
        torch.testing.assert_close(x[0, 48:], torch.full((16, 32), (value + 4.0) / 4.0))
    short = Frontend(16000, 16, 32, -4.0, 2.0)(wave)
    torch.testing.assert_close(short[0], (bare[:16] + 4.0) / 4.0)
    assert zero(torch.stack([wave, wave])).shape == (2, 1, 64, 32)


def test_mixtures_are_as_loud_as_asked_and_functions_of_the_key() -> None:
    waves = torch.randn(64, 500) * torch.rand(64, 1)
    key = torch.arange(64)
    assert torch.equal(mix_waves(waves, key), mix_waves(waves, key))
    changed = (mix_waves(waves, key) != waves).any(1)
    assert 0.1 < float(changed.float().mean()) < 0.5
    assert not bool((mix_waves(waves, key, probability=0.0) != waves).any())
    two = mix_waves(waves, key, probability=1.0, most=2) - waves
    ratio = 10 * torch.log10(waves.square().mean(1) / two.square().mean(1))
    assert float(ratio.min()) >= 5 - 1e-3
    assert float(ratio.max()) <= 25 + 1e-3
    for i in range(64):  # never itself, and a copy of another one
        gains = [float((two[i] / waves[j]).std()) for j in range(64)]
        assert min(range(64), key=gains.__getitem__) != i
        assert min(gains) < 1e-4
    assert torch.equal(mix_waves(waves[:1], key[:1], probability=1.0), waves[:1])


@pytest.mark.parametrize("hertz", [500.0, 2000.0, 6000.0])
def test_a_tone_is_loudest_in_the_bin_of_its_frequency(hertz: float) -> None:
    wave = torch.sin(2 * math.pi * hertz * torch.arange(16000) / 16000)
    loudest = int(log_mel(wave, rate=16000, bins=64).mean(0).argmax())
    middle = centers(rate=16000, bins=64)
    assert loudest == int((middle - hertz).abs().argmin())
    assert (middle.diff() > 0).all()
