"""Learning rates against the published numbers, and what the settings mean."""

from __future__ import annotations

import math

import pytest

from medmae.engine.schedule import factor, lr_factor
from medmae.engine.settings import TrainSettings


def test_published_schedule() -> None:
    s = TrainSettings(
        epochs=1000,
        batch=6,
        warmup=50,
        cosine_period=1500,
        schedule_unit="epoch",
        betas=(0.9, 0.999),
        clip=None,
    )
    size, per_epoch = 1000, 1000 / 6
    total = s.total_steps(size=size, world=1)
    assert total == math.ceil(1000 * 1000 / 6)
    for epoch in (0, 1, 48, 49, 50, 500, 999):
        step = math.ceil(epoch * per_epoch)
        want = min((epoch + 1) / 50, 0.5 * (math.cos(math.pi * epoch / 1500) + 1))
        assert lr_factor(s, step, total=total, per_epoch=per_epoch) == pytest.approx(want, abs=1e-12)
    last = lr_factor(s, total - 1, total=total, per_epoch=per_epoch)
    assert 1e-4 * last == pytest.approx(2.5e-5, rel=0.01)


def test_constant_within_an_epoch() -> None:
    s = TrainSettings(epochs=4, warmup=2, schedule_unit="epoch")
    rates = [lr_factor(s, step, total=20, per_epoch=5) for step in range(20)]
    assert len(set(rates[:5])) == 1
    assert rates[0] == 0.5
    assert len(set(rates)) <= 4


def test_steps() -> None:
    s = TrainSettings(steps=100, warmup=0.1, lr_floor=0.1)
    rates = [lr_factor(s, step, total=100, per_epoch=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5)
    assert rates.index(max(rates)) in range(8, 12)
    assert rates[-1] == pytest.approx(0.1, abs=2e-3)
    assert factor(5000, warmup=0, period=100, floor=0.1) == pytest.approx(0.1)
    assert factor(5000, warmup=10, period=100, kind="constant") == 1.0
