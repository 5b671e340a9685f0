"""The kernels chosen for a CPU compute what torch's own do, gradients included, whatever the strides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.nets import kernels
from medmae.nets.kernels import Linear, attend, linear, onednn_is_faster


@pytest.fixture(params=["chosen", "forced", "plain"])
def choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As the machine says; every special path for problems of any size; none."""
    if request.param == "forced":
        monkeypatch.setattr(kernels, "SMALL_PRODUCT", 0)
    if request.param == "plain":
        monkeypatch.setattr(kernels, "onednn_is_faster", lambda: False)
    return str(request.param)


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, value.numel()).view(value.shape).to(value.dtype)
    return torch.autograd.grad(value, inputs, weight)


def test_linear_equals_torch(choice: str) -> None:
    del choice
    x = torch.randn(3, 200, 70).transpose(1, 2)[..., ::2].requires_grad_()  # neither contiguous nor transposed
    weight, bias = torch.randn(130, 100, requires_grad=True), torch.randn(130, requires_grad=True)
    for b in (bias, None):
        inputs = (x, weight) if b is None else (x, weight, b)
        mine, theirs = linear(x, weight, b), F.linear(x, weight, b)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)
        for own, other in zip(gradients(mine, *inputs), gradients(theirs, *inputs), strict=True):
            torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-5)


def test_linear_takes_empty_double_and_expanded(choice: str) -> None:
    del choice
    layer = Linear(100, 130)
    assert layer(torch.zeros(2, 0, 100)).shape == (2, 0, 130)
    layer(torch.randn(90, 100)).sum().backward()  # an expanded gradient has strides of zero
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()
    assert Linear(100, 130).double()(torch.randn(90, 100).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(90, 100)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_attention_equals_torch(
    choice: str, dtype: torch.dtype, masked: bool, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    del choice
    if not keep:
        monkeypatch.setattr(kernels, "KEEP_WEIGHTS_BELOW", 0)
    b, h, t, s, e = 2, 3, 150, 260, 32
    qkv = torch.randn(b, s, 3, h, e).to(dtype).requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = torch.rand(b, 1, 1, s) < 0.6 if masked else None
    mine = attend(q[:, :, :t], k, v, mask)
    theirs = F.scaled_dot_product_attention(q[:, :, :t].float(), k.float(), v.float(), attn_mask=mask)
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.05}
    torch.testing.assert_close(mine.float(), theirs, **close)
    own, other = gradients(mine, qkv)[0], gradients(theirs, qkv)[0]
    torch.testing.assert_close(own.float(), other.float(), **close)
    if mask is not None:  # a key that is masked gets no gradient at all
        assert not own[:, :, 1:].movedim(1, -1)[~mask[:, 0, 0][:, None, None, None].expand(-1, 2, h, e, -1)].any()


def test_dropout_still_drops() -> None:
    q = torch.randn(1, 2, 200, 32)
    assert not torch.equal(attend(q, q, q, dropout=0.5), attend(q, q, q, dropout=0.5))


def test_the_choice_is_made_without_a_clock() -> None:
    assert isinstance(onednn_is_faster(), bool)
    assert onednn_is_faster() == onednn_is_faster()
