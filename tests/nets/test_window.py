"""Window attention equals timm's, and reaches exactly as far as its windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medmae.nets.window import WindowBlock, WindowStack
from medmae.torchvision_guard import guard

guard()


def awake(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return module.eval()


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, 1), (1, 3)])
@pytest.mark.parametrize("shape", [(16, 8), (8, 12), (12, 4)])
def test_a_block_is_that_of_timm(shape: tuple[int, int], shift: tuple[int, int]) -> None:
    theirs = pytest.importorskip("timm.models.swin_transformer_v2_cr")
    block = awake(WindowBlock(24, 3, shape=shape, window=(4, 4), shift=shift, mlp_ratio=2.0, eps=1e-5))
    other = theirs.SwinTransformerV2CrBlock(
        dim=24, num_heads=3, feat_size=shape, window_size=(4, 4), shift_size=shift, mlp_ratio=2.0, init_values=None
    ).eval()
    other.shift_size = block.shift  # timm shifts by half a window, whatever it is asked for
    other.attn_mask = other.get_attn_mask()
    state = block.state_dict()
    names = {"attn.bias1": "attn.meta_mlp.fc1", "attn.bias2": "attn.meta_mlp.fc2"}
    renamed = {}
    for name, value in state.items():
        head = name.rpartition(".")[0]
        renamed[name.replace(head, names.get(head, head))] = value
    missing, unexpected = other.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all("mask" in name or "relative" in name for name in missing)
    x = torch.randn(2, shape[0] * shape[1], 24)
    torch.testing.assert_close(block(x), other(x.view(2, *shape, 24)).flatten(1, 2), atol=1e-5, rtol=1e-4)


def reached(stack: WindowStack, place: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Which tokens change when the one at ``place`` does."""
    x = torch.randn(1, int(torch.tensor(shape).prod()), 16)
    number = torch.arange(x.shape[1]).view(shape)[place]
    other = x.clone()
    other[0, number] += 1.0
    return ((stack(x)[0] - stack(other)[0]).abs().amax(-1) > 0).view(shape)


def test_one_token_reaches_its_windows_and_no_more() -> None:
    shape = (16, 8)
    stack = awake(WindowStack(1, 16, 2, shape=shape, window=(4, 4), shift=(2, 0)))
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[4:8, 4:8] = True
    assert torch.equal(reached(stack, (5, 6), shape), expected)
    stack = awake(WindowStack(2, 16, 2, shape=shape, window=(4, 4), shift=(2, 0)))
    expected[2:10, 4:8] = True  # the shifted windows of frames 2 to 5 and 6 to 9, never another band
    assert torch.equal(reached(stack, (5, 6), shape), expected)


def test_a_shift_does_not_join_the_ends() -> None:
    shape = (16, 8)
    stack = awake(WindowStack(2, 16, 2, shape=shape, window=(4, 4), shift=(2, 0)))
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[:6, :4] = True
    assert torch.equal(reached(stack, (0, 0), shape), expected)


def test_three_axes() -> None:
    shape = (4, 4, 4)
    stack = awake(WindowStack(1, 16, 2, shape=shape, window=(2, 2, 2), shift=(1, 1, 1)))
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[:2, 2:, :2] = True
    assert torch.equal(reached(stack, (1, 2, 0), shape), expected)


def test_missing_tokens_do_not_matter_and_give_no_nan() -> None:
    shape = (8, 8)
    stack = awake(WindowStack(2, 16, 2, shape=shape, window=(4, 4), shift=(2, 0)))
    x, mask = torch.randn(2, 64, 16), torch.ones(2, 1, 1, 64, dtype=torch.bool)
    torch.testing.assert_close(stack(x, mask)[0], stack(x)[0])
    mask[0, ..., :40] = False
    other = x.clone()
    other[0, :40] = torch.randn(40, 16)
    first, second = stack(x, mask)[0], stack(other, mask)[0]
    assert bool(first.isfinite().all())
    assert torch.equal(first[0, 40:], second[0, 40:])
    assert torch.equal(first[1], second[1])


def test_a_small_axis_is_one_window() -> None:
    block = WindowBlock(16, 2, shape=(8, 2), window=(4, 4), shift=(2, 1))
    assert block.order.shape == (2, 8)
    assert not bool(block.allowed.all())
    whole = WindowBlock(16, 2, shape=(4, 2), window=(4, 4), shift=(2, 1))
    assert whole.allowed is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (10, 8), "window": (4, 4), "shift": (2, 0)}, "do not divide"),
        ({"shape": (8, 8), "window": (4, 4), "shift": (4, 0)}, "not smaller"),
        ({"shape": (8, 8), "window": (4,), "shift": (2, 0)}, "numbers of axes"),
    ],
)
def test_windows_that_do_not_fit(options: dict[str, tuple[int, ...]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WindowBlock(16, 2, **options)


def test_recomputing_changes_nothing() -> None:
    stack = awake(WindowStack(2, 16, 2, shape=(8, 4), window=(4, 4), shift=(2, 0))).train()
    x = torch.randn(1, 32, 16, requires_grad=True)
    plain = torch.autograd.grad(stack(x)[0].square().sum(), x)[0]
    stack.recompute = True
    torch.testing.assert_close(torch.autograd.grad(stack(x)[0].square().sum(), x)[0], plain)
