"""Distances per token, and the one mean that ignores what does not count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.core.loss import bce, chamfer, cosine, cross_entropy, l1, masked_mean, mse, smooth_l1

A, B = torch.randn(2, 5, 7), torch.randn(2, 5, 7)


@pytest.mark.parametrize("distance", [mse, l1, smooth_l1, cosine])
def test_distances_are_zero_for_equals_and_positive_otherwise(distance) -> None:
    assert distance(A, A).shape == (2, 5)
    torch.testing.assert_close(distance(A, A), torch.zeros(2, 5), atol=1e-6, rtol=0)
    assert bool((distance(A, B) > 0).all())


def test_distances_are_means_over_the_content() -> None:
    torch.testing.assert_close(mse(A, B).mean(), F.mse_loss(A, B))
    torch.testing.assert_close(l1(A, B).mean(), F.l1_loss(A, B))
    torch.testing.assert_close(smooth_l1(A, B, beta=0.5).mean(), F.smooth_l1_loss(A, B, beta=0.5))
    torch.testing.assert_close(bce(A, B.sigmoid()).mean(), F.binary_cross_entropy_with_logits(A, B.sigmoid()))
    assert torch.allclose(cosine(A, -A), torch.full((2, 5), 2.0))


def test_cross_entropy_is_per_token() -> None:
    truth = torch.randint(7, (2, 5))
    expected = -A.log_softmax(-1).gather(-1, truth[..., None])[..., 0]
    torch.testing.assert_close(cross_entropy(A, truth), expected)


def test_chamfer_by_hand() -> None:
    guess = torch.tensor([[[[0.0, 0.0], [1.0, 0.0]]]])
    truth = torch.tensor([[[[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]]]])
    assert chamfer(guess, truth).tolist() == [[pytest.approx(0.5 + 4 / 3)]]
    points = torch.randn(2, 3, 6, 3)
    torch.testing.assert_close(chamfer(points, points[:, :, torch.randperm(6)]), torch.zeros(2, 3))


def test_masked_mean_is_the_weighted_mean_of_the_batch() -> None:
    values, weight = torch.rand(3, 4), torch.rand(3, 4)
    torch.testing.assert_close(masked_mean(values, weight), (values * weight).sum() / weight.sum())


def test_groups_are_averaged_inside_and_summed_or_averaged_outside() -> None:
    values, weight = torch.rand(3, 8), torch.rand(3, 8)
    by = torch.randint(0, 3, (3, 8))
    by[0, :3] = torch.arange(3)
    means = torch.stack([(values * weight)[by == g].sum() / weight[by == g].sum() for g in range(3)])
    torch.testing.assert_close(masked_mean(values, weight, by=by, groups=3), means.sum())
    torch.testing.assert_close(masked_mean(values, weight, by=by, groups=3, reduce="mean"), means.mean())


def test_empty_groups_do_not_count() -> None:
    values, by = torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[0, 0, 1]])
    weight = torch.tensor([[1.0, 1.0, 0.0]])
    assert masked_mean(values, weight, by=by, groups=4) == 3
    assert masked_mean(values, weight, by=by, groups=4, reduce="mean") == 3


def test_where_nothing_counts_the_loss_is_zero_with_a_zero_gradient() -> None:
    for options in ({}, {"by": torch.zeros(2, 3, dtype=torch.long), "groups": 2}):
        values = torch.rand(2, 3, requires_grad=True)
        loss = masked_mean(values, torch.zeros(2, 3), **options)
        loss.backward()
        assert loss == 0
        assert bool((values.grad == 0).all())


@given(st.floats(1e-3, 1e3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_scale_of_the_weights_does_not_matter(scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values, weight = torch.rand(3, 4, generator=draw), torch.rand(3, 4, generator=draw)
    by = torch.randint(0, 2, (3, 4), generator=draw)
    for options in ({}, {"by": by, "groups": 2}):
        torch.testing.assert_close(
            masked_mean(values, weight, **options), masked_mean(values, weight * scale, **options)
        )


def test_values_of_weight_zero_do_not_matter() -> None:
    values, weight, by = torch.rand(2, 4), torch.tensor([[1.0, 0, 1, 0]] * 2), torch.tensor([[0, 0, 1, 1]] * 2)
    other = torch.where(weight > 0, values, 1e6)
    assert masked_mean(values, weight) == masked_mean(other, weight)
    assert masked_mean(values, weight, by=by, groups=2) == masked_mean(other, weight, by=by, groups=2)


@pytest.mark.parametrize("options", [{"reduce": "max", "groups": 2}, {"groups": 0}])
def test_impossible_reductions_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="reduce must be 'sum' or 'mean'"):
        masked_mean(torch.rand(1, 2), torch.ones(1, 2), by=torch.zeros(1, 2, dtype=torch.long), **options)
