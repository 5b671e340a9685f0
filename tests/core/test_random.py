"""Randomness is good, and a pure function of (key, stream, position)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medmae.core.random import dirichlet, gamma, mix, normal, uniform

KEYS = torch.arange(20_000)
MIX_0_1_2 = 8825289091277911490
UNIFORM_STREAM_3 = [[13885543, 5937487], [10767803, 2699157]]
int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(int64, min_size=1, max_size=4))
def test_mix_is_a_seed_and_every_part_counts(parts: list[int]) -> None:
    seed = mix(*parts)
    assert 0 <= seed < 2**63
    assert seed == mix(*parts)
    for i in range(len(parts)):
        other = list(parts)
        other[i] ^= 1
        assert mix(*other) != seed


def test_mix_depends_on_order_and_number_of_parts() -> None:
    assert len({mix(1, 2), mix(2, 1), mix(1), mix(1, 0), mix(0, 1), mix(0), mix(0, 0)}) == 7


def test_mix_has_no_collisions_on_small_numbers() -> None:
    assert len({mix(seed, ordinal) for seed in range(50) for ordinal in range(400)}) == 20_000


def test_known_values_never_change() -> None:
    """Resuming a run with a newer version needs the same draws for ever."""
    assert mix(0, 1, 2) == MIX_0_1_2
    drawn = (uniform(torch.tensor([0, 12345]), 2, stream=3) * 2**24).long()
    assert drawn.tolist() == UNIFORM_STREAM_3


@given(st.lists(int64, min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=50)
def test_uniform_does_not_depend_on_the_batch(keys: list[int], n: int, stream: int) -> None:
    together = uniform(torch.tensor(keys), n, stream=stream)
    for row, key in enumerate(keys):
        assert torch.equal(uniform(torch.tensor([key]), n, stream=stream)[0], together[row])
        assert torch.equal(uniform(torch.tensor([key]), n + 3, stream=stream)[0, :n], together[row])
    assert bool(((together >= 0) & (together < 1)).all())
    assert together.dtype == torch.float32


def test_uniform_is_uniform_over_keys_and_over_positions() -> None:
    over_keys = uniform(KEYS, 1, stream=5)[:, 0].numpy()
    over_positions = uniform(torch.tensor([77]), 20_000, stream=5)[0].numpy()
    for sample in (over_keys, over_positions):
        assert stats.kstest(sample, "uniform").pvalue > 0.001
        assert abs(float(stats.pearsonr(sample[1:], sample[:-1])[0])) < 0.03


def test_streams_and_positions_are_independent() -> None:
    a, b = uniform(KEYS, 2, stream=1), uniform(KEYS, 2, stream=2)
    for x, y in ((a[:, 0], a[:, 1]), (a[:, 0], b[:, 0]), (a[1:, 0], b[:-1, 0])):
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.03
    joint = torch.histogramdd(torch.stack([a[:, 0], b[:, 1]], 1), bins=[8, 8], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert stats.chisquare(joint.flatten().numpy()).pvalue > 0.001


def test_every_bit_of_uniform_is_fair() -> None:
    bits = (uniform(KEYS, 4, stream=9) * 2**24).long().flatten()
    for bit in range(24):
        assert abs(float(((bits >> bit) & 1).double().mean()) - 0.5) < 0.01


def test_normal_is_normal() -> None:
    x = normal(KEYS, 2, stream=4)
    assert bool(x.isfinite().all())
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.001
    assert abs(float(torch.corrcoef(x.T)[0, 1])) < 0.03


@pytest.mark.parametrize("shape", [0.1, 0.25, 0.5, 1.0, 2.0, 7.5])
def test_gamma_is_gamma(shape: float) -> None:
    x = gamma(KEYS, 1, shape=shape, stream=6)[:, 0]
    assert bool((x > 0).all())
    assert bool(x.isfinite().all())
    assert stats.kstest(x.double().numpy(), "gamma", args=(shape,)).pvalue > 0.001


def test_gamma_parts_are_independent() -> None:
    x = gamma(KEYS, 3, shape=0.5, stream=6)
    off = torch.corrcoef(x.T) - torch.eye(3)
    assert float(off.abs().max()) < 0.03


@pytest.mark.parametrize("shape", [0.0, -1.0])
def test_gamma_refuses_impossible_shapes(shape: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        gamma(KEYS[:2], 1, shape=shape, stream=0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0])
def test_dirichlet_has_beta_margins_and_sums_to_one(alpha: float) -> None:
    x = dirichlet(KEYS, 4, alpha=alpha, stream=8)
    torch.testing.assert_close(x.sum(1), torch.ones(len(KEYS)), atol=1e-5, rtol=0)
    for part in range(4):
        margin = x[:, part].double().clamp(1e-12, 1 - 1e-7).numpy()
        middle = margin[(margin > 1e-6) & (margin < 1 - 1e-5)]
        low, high = stats.beta.cdf([1e-6, 1 - 1e-5], alpha, 3 * alpha)
        scaled = (stats.beta.cdf(middle, alpha, 3 * alpha) - low) / (high - low)
        assert stats.kstest(scaled, "uniform").pvalue > 1e-4
        assert abs(len(middle) / len(margin) - (high - low)) < 0.02


@pytest.mark.parametrize("draw", [lambda k: normal(k, 3, stream=1), lambda k: dirichlet(k, 3, alpha=0.3, stream=1)])
def test_draws_do_not_depend_on_the_batch(draw) -> None:
    keys = torch.tensor([3, -5, 2**62, 3])
    together = draw(keys)
    assert torch.equal(together[0], together[3])
    for row in range(4):
        assert torch.equal(draw(keys[row : row + 1])[0], together[row])


def test_dirichlet_gives_shares_only_among_the_parts_named() -> None:
    among = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0]]).bool()
    x = dirichlet(torch.arange(3), 3, alpha=0.01, stream=8, among=among)
    assert torch.equal(x > 0, among & (x > 0))
    torch.testing.assert_close(x.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    whole = dirichlet(torch.arange(3), 3, alpha=0.5, stream=8)
    part = dirichlet(torch.arange(3), 3, alpha=0.5, stream=8, among=among)
    torch.testing.assert_close(part[0], (whole[0] * among[0]) / (whole[0] * among[0]).sum())
