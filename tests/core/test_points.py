"""Farthest points, neighbors, Chamfer distances and groups, against scipy."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

import medmae.core.points as module
from medmae.core.errors import DataError
from medmae.core.loss import chamfer
from medmae.core.points import PointGroups, ball, cloud_chamfer, farthest, nearest
from medmae.core.tokens import take


def naive_farthest(points: np.ndarray, count: int) -> list[int]:
    taken = [0]
    while len(taken) < count:
        taken.append(int(cdist(points, points[taken]).min(1).argmax()))
    return taken


def test_farthest_points_are_those_of_the_definition() -> None:
    points = torch.randn(3, 200, 3, dtype=torch.float64)
    found = farthest(points, 40)
    for cloud, ids in zip(points.numpy(), found, strict=True):
        assert ids.tolist() == naive_farthest(cloud, 40)


def test_padding_is_never_taken() -> None:
    points = torch.randn(2, 60, 3)
    points[1, 25:] = torch.nan
    valid = torch.ones(2, 60, dtype=torch.bool)
    valid[1, 25:] = False
    assert torch.equal(farthest(points, 20, valid=valid)[1], farthest(points[1:, :25], 20)[0])
    centers = take(points, farthest(points, 20, valid=valid))
    mine = nearest(centers, points, 5, valid=valid)[1]
    assert torch.equal(mine, nearest(centers[1:], points[1:, :25], 5)[0])
    valid = torch.tensor([[False, True, True, False]])
    assert sorted(farthest(torch.randn(1, 4, 3), 2, valid=valid)[0].tolist()) == [1, 2]


@pytest.mark.parametrize("block", [50, 10_000, 1 << 22])
@pytest.mark.parametrize("k", [1, 7])
def test_neighbors_are_those_of_scipy(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ON_CPU", block)
    points, queries = torch.randn(2, 300, 3), torch.randn(2, 41, 3)
    found = nearest(queries, points, k)
    for i in range(2):
        _, ids = cKDTree(points[i].numpy()).query(queries[i].numpy(), k)
        np.testing.assert_array_equal(found[i].numpy(), ids.reshape(41, k))


def test_neighbors_that_nearly_coincide_far_from_the_origin() -> None:
    """Millimeters in a scanner's frame: dot products in float32 would lose them."""
    points = torch.tensor([1000.0, -2000.0, 1500.0]) + 0.01 * torch.randn(1, 400, 3)
    _, ids = cKDTree(points[0].double().numpy()).query(points[0].double().numpy(), 2)
    assert (nearest(points, points, 2)[0].numpy()[:, 1] == ids[:, 1]).mean() > 0.999


def test_cloud_chamfer_is_the_small_one_with_its_gradient() -> None:
    a, b = torch.randn(3, 50, 3, requires_grad=True), torch.randn(3, 70, 3, requires_grad=True)
    large, small = cloud_chamfer(a, b), chamfer(a[:, None], b[:, None])[:, 0]
    torch.testing.assert_close(large, small)
    for mine, other in zip(
        torch.autograd.grad(large.sum(), (a, b)), torch.autograd.grad(small.sum(), (a, b)), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.slow
def test_cloud_chamfer_of_100000_points() -> None:
    a, b = torch.randn(1, 100_000, 3, requires_grad=True), torch.randn(1, 100_000, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = cloud_chamfer(a, b)
    value.sum().backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"{grown:.0f} MiB"  # all distances at once would be 40,000
    there, _ = cKDTree(b[0].numpy()).query(a[0].detach().numpy())
    back, _ = cKDTree(a[0].detach().numpy()).query(b[0].numpy())
    assert float(value.detach()) == pytest.approx((there**2).mean() + (back**2).mean(), rel=1e-5)


def test_groups_are_points_relative_to_their_center() -> None:
    points = torch.randn(2, 128, 3)
    tokens = PointGroups(8, 16)({"points": points})
    assert tokens.content.shape == (2, 8, 16, 3)
    assert not tokens.layout.ragged
    for i in range(2):
        centers = naive_farthest(points[i].numpy(), 8)
        np.testing.assert_array_equal(tokens.layout.coords[i].numpy(), points[i, centers].numpy())
        _, ids = cKDTree(points[i].numpy()).query(points[i, centers].numpy(), 16)
        np.testing.assert_allclose(
            tokens.content[i].numpy(), (points[i][torch.as_tensor(ids)] - points[i, centers][:, None]).numpy()
        )


def test_any_number_of_points() -> None:
    cut = PointGroups(8, 4)
    for n in (4, 5, 8, 9, 1000):
        tokens = cut({"points": torch.randn(2, n, 3)})
        assert tokens.layout.exists.sum(1).tolist() == [min(n, 8)] * 2
        assert bool(tokens.content.isfinite().all())
    clouds = [torch.randn(n, 3) for n in (6, 20, 50)]
    padded = torch.full((3, 50, 3), torch.nan)
    valid = torch.zeros(3, 50, dtype=torch.bool)
    for row, cloud in enumerate(clouds):
        padded[row, : len(cloud)], valid[row, : len(cloud)] = cloud, True
    together = cut({"points": padded, "valid": valid})
    for row, cloud in enumerate(clouds):
        alone = cut({"points": cloud[None]})
        assert torch.equal(together.layout.id[row], alone.layout.id[0])
        assert torch.equal(together.layout.coords[row], alone.layout.coords[0])
        assert torch.equal(together.content[row], alone.content[0])


def test_what_cannot_be_cut_is_refused() -> None:
    cut = PointGroups(8, 16)
    with pytest.raises(DataError, match="15 points, fewer than the 16 of one group"):
        cut({"points": torch.randn(2, 15, 3)})
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, 3:] = False
    with pytest.raises(DataError, match="3 points"):
        cut({"points": torch.randn(2, 40, 3), "valid": valid})
    with pytest.raises(DataError, match=r"\[clouds, points, 3\]"):
        cut({"points": torch.randn(2, 3, 40)})
    with pytest.raises(KeyError, match="no 'points'"):
        cut({"cloud": torch.randn(2, 40, 3)})
    with pytest.raises(ValueError, match="must be positive"):
        PointGroups(0, 4)


def test_a_ball_is_one_region() -> None:
    """Nothing hidden is farther from the seed than anything visible, and seeds differ."""
    tokens = PointGroups(64, 4)({"points": torch.randn(5, 400, 3)})
    order = ball()(tokens, torch.arange(5))
    seeds = order.argmax(1)
    assert len(set(seeds.tolist())) > 1
    apart = (tokens.layout.coords - take(tokens.layout.coords, seeds[:, None])).norm(dim=-1)
    hidden = order.argsort(1)[:, 26:]
    mask = torch.zeros(5, 64, dtype=torch.bool).scatter(1, hidden, True)
    assert bool((apart.masked_fill(~mask, 0).amax(1) <= apart.masked_fill(mask, torch.inf).amin(1)).all())
