"""Instance norm over what is visible: the same as gathering it, in every precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medmae.nets.sparse.normalization import _map, normalize_map, normalize_rows


def norm_of(dtype: torch.dtype) -> nn.InstanceNorm1d:
    norm = nn.InstanceNorm1d(5, affine=True).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5) + 0.5)
        norm.bias.copy_(torch.randn(5))
    return norm


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    mask = torch.rand(3, 1, 4, 6, 6) < torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1, 1)
    return (3 * torch.randn(3, 5, 4, 6, 6, dtype=dtype) + 7) * mask, mask


def gathered(x: Tensor, mask: Tensor, norm: nn.InstanceNorm1d) -> Tensor:
    """The stock layer over the visible voxels of each sample, put back."""
    out = torch.zeros_like(x)
    for row in range(len(x)):
        out[row][:, mask[row, 0]] = norm(x[row][:, mask[row, 0]][None])[0]
    return out


@pytest.mark.parametrize("formula", [normalize_map, _map])
def test_masked_norm_is_the_gathered_one(formula: Any) -> None:
    (x, mask), norm = inputs(), norm_of(torch.float64)
    results = []
    for compute in (
        lambda x: gathered(x, mask, norm),
        lambda x: formula(x, mask, norm.weight, norm.bias, eps=norm.eps) if formula is normalize_map
        else formula(x, mask, norm.weight, norm.bias, norm.eps),
    ):  # fmt: skip
        leaf = x.clone().requires_grad_()
        norm.zero_grad()
        y = compute(leaf)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()).sum().backward()
        results.append((y.detach(), leaf.grad * mask, norm.weight.grad, norm.bias.grad))
    for mine, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert float(results[1][0].masked_select(~mask).abs().max()) == 0


def test_norm_of_rows_is_the_gathered_one() -> None:
    (x, mask), norm = inputs(), norm_of(torch.float64)
    rows = torch.cat([x[i][:, mask[i, 0]].t() for i in range(3)])
    counts = mask.flatten(1).sum(1).tolist()
    y = normalize_rows(rows, [*counts, 0], norm.weight, norm.bias, eps=norm.eps)
    expected = torch.cat([gathered(x, mask, norm)[i][:, mask[i, 0]].t() for i in range(3)])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    assert torch.autograd.gradcheck(
        lambda r, w, b: normalize_rows(r, [3, 0, 5], w, b, eps=1e-3),
        (torch.randn(8, 5, dtype=torch.float64, requires_grad=True), norm.weight, norm.bias),
    )


def test_norms_without_weights() -> None:
    x, mask = inputs()
    plain = nn.InstanceNorm1d(5).double()
    torch.testing.assert_close(normalize_map(x, mask, None, None, eps=1e-5), gathered(x, mask, plain))
    rows = x[0][:, mask[0, 0]].t().requires_grad_()
    y = normalize_rows(rows, [len(rows)], None, None, eps=1e-5)
    torch.testing.assert_close(y.t()[None], plain(rows.t()[None]))
    y.square().sum().backward()


def test_one_visible_voxel_and_none() -> None:
    x = torch.zeros(2, 5, 2, 2, 2)
    mask = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 1, 0, 1], x[0, :, 1, 0, 1] = True, 3.0
    weight, bias = torch.rand(5), torch.rand(5)
    y = normalize_map(x, mask, weight, bias, eps=1e-5)
    torch.testing.assert_close(y[0, :, 1, 0, 1], bias, atol=2e-3, rtol=0)
    assert float(y[1].abs().max()) == 0
    torch.testing.assert_close(
        normalize_rows(x[0, :, 1, 0, 1][None], [1, 0], weight, bias, eps=1e-5)[0], bias, atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [False, True])
def test_statistics_of_a_large_map_do_not_overflow(dtype: torch.dtype, rows: bool) -> None:
    """160^3 voxels of about 60 sum to 2.5e8, far beyond float16."""
    edge = 160
    draw = torch.Generator().manual_seed(0)
    x = (60 + 4 * torch.randn(1, 1, edge, edge, edge, generator=draw)).to(dtype).requires_grad_()
    weight, bias = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    if rows:
        y = normalize_rows(x.view(-1, 1), [edge**3], weight, bias, eps=1e-5)
    else:
        y = normalize_map(x, torch.ones(1, 1, edge, edge, edge, dtype=torch.bool), weight, bias, eps=1e-5)
    assert y.dtype == dtype
    assert abs(float(y.detach().float().mean())) < 0.05
    assert abs(float(y.detach().float().std()) - 1) < 0.05
    y.float().square().mean().backward()
    for leaf in (x, weight, bias):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
