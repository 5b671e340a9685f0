"""Toys are functions of index and seed, and balanced; colors do not tell their classes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medmae.core.errors import UsageError
from medmae.data.kinds import toy_image, toy_shapes, toy_video, toys


@pytest.mark.parametrize("name", sorted(toys.TOYS))
def test_a_toy_is_a_function_of_index_and_seed(name: str) -> None:
    first, label = toys.generate(name, 7, seed=3)
    toys.generate(name, 8, seed=3)
    toys._made.cache_clear()
    again, _ = toys.generate(name, 7, seed=3)
    again[...] = again  # what is handed out may be changed ...
    assert again is not toys.generate(name, 7, seed=3)[0], "... and what is remembered is not"
    assert np.array_equal(first, again)
    assert label == toys.label_of(name, 7)
    for index, seed in ((7, 4), (7 + len(toys.classes(name)), 3)):
        other, _ = toys.generate(name, index, seed=seed)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", sorted(toys.TOYS))
def test_classes_are_balanced(name: str) -> None:
    known = toys.classes(name)
    assert len(known) >= 4
    counts = Counter(toys.label_of(name, index) for index in range(10 * len(known)))
    assert counts == dict.fromkeys(known, 10)


def test_shapes_and_types() -> None:
    image, _ = toy_image.generate(0, seed=0)
    video, _ = toy_video.generate(0, seed=0)
    assert (image.shape, image.dtype) == ((3, 64, 64), np.uint8)
    assert (video.shape, video.dtype) == ((16, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(("text", "meant"), [("toy-image", ("toy-image", 600)), ("toy-video:12", ("toy-video", 12))])
def test_names_that_can_be_meant(text: str, meant: tuple[str, int]) -> None:
    assert toys.parse(text) == meant
    assert toys.is_toy(text)


@pytest.mark.parametrize("text", ["toy-images", "toy-image:", "toy-image:0", "toy-image:-3", "toy-image:2.5", "data"])
def test_names_that_cannot(text: str) -> None:
    with pytest.raises(UsageError, match=r"toy|positive"):
        toys.parse(text)


def test_color_and_brightness_do_not_tell_the_class() -> None:
    """A nearest-centroid classifier on mean and deviation of the colors is right about as often as chance."""
    for name, most in (("toy-image", 0.30), ("toy-video", 0.30)):
        values, labels = [], []
        for index in range(240):
            array, label = toys.generate(name, index, seed=1)
            flat = array.reshape(3, -1) if name == "toy-image" else array.reshape(-1, 3).T
            values.append([*flat.mean(1), *flat.std(1)])
            labels.append(label)
        x, y = np.asarray(values), np.asarray(labels)
        x = (x - x.mean(0)) / x.std(0)
        known = sorted(set(labels))
        centers = np.stack([x[:120][y[:120] == c].mean(0) for c in known])
        guess = np.asarray(known)[((x[120:, None] - centers) ** 2).sum(-1).argmin(1)]
        assert (guess == y[120:]).mean() < most, name


def test_outlines_of_one_radius_have_about_the_same_area() -> None:
    areas = {
        outline: toy_shapes.cover(outline, 64, center=(32.0, 32.0), radius=18.0, angle=0.3).sum()
        for outline in toy_shapes.OUTLINES
    }
    assert max(areas.values()) < 1.6 * min(areas.values()), areas


def test_things_move_as_the_motion_is_called() -> None:
    """Asked of the path that is drawn, not of the pixels."""
    random = np.random.default_rng(0)
    for _ in range(20):
        row, column, radius, angle = toy_video.path("drift", random)
        for line in (row, column):
            assert np.allclose(np.diff(line), np.diff(line)[0])
        assert np.ptp(radius) == np.ptp(angle) == 0
        row, column, *_ = toy_video.path("circle", random)
        apart = np.hypot(row - (row.max() + row.min()) / 2, column - (column.max() + column.min()) / 2)
        assert apart.min() > 0.8 * apart.max()
        row, column, *_ = toy_video.path("bounce", random)
        assert np.ptp(column) == 0
        assert np.ptp(row) > 5
        assert (np.diff(toy_video.path("grow", random)[2]) > 0).all()
        assert np.ptp(toy_video.path("spin", random)[3]) > 1.5


def test_things_stay_in_the_picture() -> None:
    random = np.random.default_rng(1)
    for motion in toy_video.MOTIONS:
        for _ in range(50):
            row, column, *_ = toy_video.path(motion, random)
            for place in (row, column):
                assert place.min() > 4, motion
                assert place.max() < toy_video.SIZE - 4, motion
