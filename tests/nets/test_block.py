"""The transformer block, against attention and blocks written out in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medmae.core.tokens import take
from medmae.nets.block import Attention, Block, DropPath, LayerScale, Mlp, Stack


def attend_by_hand(layer: Attention, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    b, s, d = x.shape
    q, k, v = (layer.qkv(x)[..., i * d : (i + 1) * d].view(b, s, layer.heads, -1).transpose(1, 2) for i in range(3))
    q, k = layer.q_norm(q), layer.k_norm(k)
    score = q @ k.transpose(-1, -2) / (d // layer.heads) ** 0.5
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf)
    return layer.proj((score.softmax(-1) @ v).transpose(1, 2).reshape(b, s, d))


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"qk_norm": True}])
def test_attention_is_softmax_of_products(options: dict) -> None:
    layer, x = Attention(12, 3, **options), torch.randn(2, 5, 12)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[0, ..., 3:] = False
    torch.testing.assert_close(layer(x), attend_by_hand(layer, x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer(x, mask), attend_by_hand(layer, x, mask), atol=1e-6, rtol=1e-5)
    assert (layer.qkv.bias is None) == ("qkv_bias" in options)


def test_masked_keys_do_not_matter() -> None:
    stack, x = Stack(3, 12, 3), torch.randn(2, 6, 12)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[:, ..., 4:] = False
    other = torch.cat([x[:, :4], 100 * torch.randn(2, 2, 12)], 1)
    assert torch.equal(stack(x, mask)[0][:, :4], stack(other, mask)[0][:, :4])
    torch.testing.assert_close(stack(x, mask)[0][:, :4], stack(x[:, :4])[0], atol=1e-5, rtol=1e-5)


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of 3 heads"):
        Attention(10, 3)


def test_the_order_of_tokens_does_not_matter_to_a_block() -> None:
    block, x, order = Block(12, 3), torch.randn(2, 5, 12), torch.randperm(5)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], atol=1e-6, rtol=1e-5)


def test_a_block_is_pre_norm_with_exact_gelu() -> None:
    block, x = Block(12, 3, eps=1e-3, mlp_ratio=2.0), torch.randn(2, 5, 12)
    h = x + attend_by_hand(block.attn, F.layer_norm(x, (12,), block.norm1.weight, block.norm1.bias, 1e-3))
    z = F.layer_norm(h, (12,), block.norm2.weight, block.norm2.bias, 1e-3)
    expected = h + block.mlp.fc2(0.5 * block.mlp.fc1(z) * (1 + torch.erf(block.mlp.fc1(z) / 2**0.5)))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert block.mlp.fc1.out_features == 24


def test_layer_scale_starts_small_and_scales_both_branches() -> None:
    block, x = Block(12, 3, layer_scale=1e-4), torch.randn(2, 5, 12)
    assert bool(((block(x) - x).abs() < 1e-2).all())
    assert torch.equal(LayerScale(12, 0.5)(x), 0.5 * x)
    with torch.no_grad():
        block.scale1.gamma.fill_(0)
        block.scale2.gamma.fill_(0)
    assert torch.equal(block(x), x)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 2, 3)
    y = DropPath(0.25)(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert bool((y == y[:, :1, :1]).all())
    assert abs(float(y.mean()) - 1) < 0.05
    assert DropPath(0.25).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_grows_over_the_stack() -> None:
    rates = [block.drop_path.probability for block in Stack(4, 12, 3, drop_path=0.3)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [block.drop_path.probability for block in Stack(1, 12, 3, drop_path=0.3)] == [0]


@pytest.mark.parametrize("part", [Mlp(12, 24, dropout=0.5), Attention(12, 3, dropout=0.5), Block(12, 3, dropout=0.5)])
def test_dropout_is_for_training_only(part: torch.nn.Module) -> None:
    x = torch.randn(2, 5, 12)
    part.train()
    assert not torch.equal(part(x), part(x))
    part.eval()
    assert torch.equal(part(x), part(x))


def test_taps_are_the_outputs_of_the_blocks() -> None:
    stack, x = Stack(3, 12, 3), torch.randn(2, 5, 12)
    out, taps = stack(x, tap=(0, 2))
    assert list(taps) == [0, 2]
    assert torch.equal(taps[0], stack[0](x))
    assert torch.equal(taps[2], out)


def test_recomputing_changes_neither_output_nor_gradient() -> None:
    stack, x = Stack(2, 12, 3, dropout=0.3), torch.randn(2, 5, 12, requires_grad=True)
    grads = []
    for recompute in (False, True):
        stack.recompute = recompute
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(stack(x)[0].square().sum(), [x, *stack.parameters()]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_only_the_rows_that_are_wanted_come_out(depth: int) -> None:
    stack, x = Stack(depth, 12, 3), torch.randn(2, 6, 12, requires_grad=True)
    rows = torch.tensor([[5, 0, 0], [1, 2, 4]])
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[0, ..., 3] = False
    some, everything = stack(x, mask, rows=rows)[0], take(stack(x, mask)[0], rows)
    torch.testing.assert_close(some, everything, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (some, everything)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("probability", [1.0, -0.1])
def test_drop_path_refuses_impossible_probabilities(probability: float) -> None:
    with pytest.raises(ValueError, match="drop_path"):
        DropPath(probability)
