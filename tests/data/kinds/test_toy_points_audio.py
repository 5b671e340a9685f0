"""Toy clouds and sounds: repeatable, balanced, of the promised form, and told apart by shape only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from medmae.data.kinds import toy_audio, toy_points


@pytest.mark.parametrize("toy", [toy_points, toy_audio])
def test_a_toy_is_a_function_of_index_and_seed_and_balanced(toy) -> None:
    first, again = toy.generate(5, seed=3), toy.generate(5, seed=3)
    assert (first[0] == again[0]).all()
    assert first[1] == again[1] == toy.CLASSES[5 % len(toy.CLASSES)]
    assert (first[0] != toy.generate(5, seed=4)[0]).any()
    assert (first[0] != toy.generate(5 + len(toy.CLASSES), seed=3)[0]).any()
    counts = Counter(toy.generate(i, seed=0)[1] for i in range(3 * len(toy.CLASSES)))
    assert set(counts.values()) == {3}
    assert set(counts) == set(toy.CLASSES)


def test_clouds_are_points_on_surfaces_of_believable_size() -> None:
    for index in range(2 * len(toy_points.CLASSES)):
        points, _ = toy_points.generate(index, seed=1)
        assert points.shape == (toy_points.COUNT, 3)
        assert points.dtype == np.float32
        assert np.isfinite(points).all()
        assert 0.4 < np.ptp(points, axis=0).max() < 7
        assert len(np.unique(points, axis=0)) == len(points)


def test_points_are_even_over_the_area() -> None:
    """On a sphere the height of a point is uniform (Archimedes); parameters would crowd at the poles."""
    random = np.random.default_rng(0)
    points = toy_points._spread(toy_points._ellipsoid(random), 20000, np.eye(3), random)
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=0.02)
    counts, _ = np.histogram(points[:, 2], bins=10, range=(-1, 1))
    assert np.abs(counts / 2000 - 1).max() < 0.08


def test_sounds_are_waves_of_two_seconds() -> None:
    for index in range(2 * len(toy_audio.CLASSES)):
        wave, _ = toy_audio.generate(index, seed=1)
        assert wave.shape == (32000,)
        assert wave.dtype == np.float32
        assert np.isfinite(wave).all()
        assert 0.02 < np.abs(wave).max() <= 1


def test_a_glide_goes_where_its_class_says() -> None:
    """The strongest frequency of the call's first and last tenth: up for rising, down for falling."""
    for index in range(0, 60, 6):
        for place, sign in ((0, 1), (1, -1)):
            wave = torch.from_numpy(toy_audio.generate(index + place, seed=0)[0])
            power = torch.stft(wave, 512, window=torch.hann_window(512), return_complex=True).abs()[5:]
            peak, where = power.max(0)
            ridge = where[peak > peak.max() / 3].float()
            tenth = len(ridge) // 10
            assert sign * (ridge[-tenth:].median() - ridge[:tenth].median()) > 0


def test_neither_loudness_nor_pitch_tells_the_class() -> None:
    """The spread within a class is larger than the spread between classes."""
    loud = np.array([[np.log(toy_audio.generate(6 * i + c, seed=0)[0].std()) for i in range(25)] for c in range(6)])
    assert loud.mean(1).std() < 0.5 * loud.std(1).mean()
