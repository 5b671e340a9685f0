"""Whoever computes them, linear maps and attention are what torch says they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medmae.nets import kernels
from medmae.nets.kernels import Linear, attend, linear

WAYS = [False, True] if kernels.onednn_is_faster() else [False]


@pytest.mark.parametrize("onednn", WAYS)
@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 70), (2, 3, 4, 70), (1, 0, 70)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_maps_are_those_of_torch(
    shape: tuple[int, ...], bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SMALL_PRODUCT", 1)
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: onednn)
    x, layer = torch.randn(shape, requires_grad=True), Linear(70, 33, bias=bias)
    results = []
    for out in (layer(x), F.linear(x, layer.weight, layer.bias)):
        direction = torch.linspace(-1, 1, out.numel()).view_as(out)
        results.append((out, *torch.autograd.grad((out * direction).sum(), [x, *layer.parameters()])))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_linear_takes_views_and_skips_what_needs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALL_PRODUCT", 1)
    weight = torch.randn(64, 33).t()
    x = torch.randn(64, 8, 5).permute(2, 1, 0)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-4, rtol=1e-5)
    weight = weight.detach().requires_grad_()
    gradient = torch.autograd.grad(linear(x, weight).sum(), weight)[0]
    torch.testing.assert_close(gradient, x.sum((0, 1)).expand(33, -1), atol=1e-4, rtol=1e-4)


def test_a_linear_layer_keeps_the_names_of_torch() -> None:
    assert Linear(4, 3).state_dict().keys() == torch.nn.Linear(4, 3).state_dict().keys()
    assert isinstance(Linear(4, 3), torch.nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(dtype: torch.dtype, masked: bool) -> None:
    q = torch.randn(2, 3, 4, 8, dtype=dtype)
    k, v = torch.randn(2, 3, 6, 8, dtype=dtype), torch.randn(2, 3, 6, 8, dtype=dtype)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[0, ..., 4:] = False
    mine = attend(q, k, v, mask if masked else None)
    theirs = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask if masked else None)
    near = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(mine.float(), theirs, atol=near, rtol=near)
    if masked:
        other = v.clone()
        other[0, :, 4:] = 99.0
        assert torch.equal(attend(q, k, other, mask), mine)


def test_attention_drops_weights_in_training_only() -> None:
    q = torch.randn(1, 2, 50, 8, dtype=torch.bfloat16)
    assert torch.equal(attend(q, q, q), attend(q, q, q))
    assert not torch.equal(attend(q, q, q, dropout=0.5), attend(q, q, q, dropout=0.5))
