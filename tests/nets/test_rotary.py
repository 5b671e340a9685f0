"""Rotary positions and the blocks that use them; parity with the published networks is in ``tests/parity``."""

from __future__ import annotations

import pytest
import torch

from medmae.nets.rotary import RotaryBlock, RotaryStack, angles, rotate


def test_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 12).unbind(0)
    here, there = torch.tensor([[[1.0, 2.0, 0.0]]]), torch.tensor([[[4.0, 0.0, 5.0]]])
    step = torch.tensor([3.0, 7.0, 2.0])

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (rotate(q, angles(a, 12)) * rotate(k, angles(b, 12))).sum()

    torch.testing.assert_close(score(here, there), score(here + step, there + step), atol=1e-5, rtol=1e-5)
    assert abs(float(score(here, there) - score(here, there + step))) > 1e-3


def test_turning_keeps_lengths_and_the_origin_stays() -> None:
    x = torch.randn(2, 3, 5, 12)
    coords = torch.randint(0, 9, (2, 5, 3)).float()
    torch.testing.assert_close(rotate(x, angles(coords, 12)).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(x, angles(coords * 0, 12)), x)


def test_width_must_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 6"):
        angles(torch.zeros(1, 1, 3), 16)


def test_half_precision_is_kept() -> None:
    x = torch.randn(1, 2, 3, 12, dtype=torch.bfloat16)
    assert rotate(x, angles(torch.ones(1, 3, 3), 12)).dtype == torch.bfloat16


def test_tokens_without_a_place_are_not_turned() -> None:
    """Two registers in front: where they stand in line does not matter to them, and masks hold."""
    block = RotaryBlock(24, 2).eval()
    x = torch.randn(1, 6, 24)
    turn = angles(torch.randn(1, 4, 3), 12)
    swapped = block(x[:, [1, 0, 2, 3, 4, 5]], turn)[:, [1, 0, 2, 3, 4, 5]]
    torch.testing.assert_close(block(x, turn), swapped, atol=1e-6, rtol=1e-5)
    mask = torch.tensor([True, True, True, True, False, False])[None, None, None]
    noise = torch.cat([x[:, :4], torch.randn(1, 2, 24)], 1)
    torch.testing.assert_close(block(x, turn, mask)[:, :4], block(noise, turn, mask)[:, :4])


def test_recomputing_changes_no_gradient() -> None:
    stack = RotaryStack(2, 24, 2, drop_path=0.0).train()
    x, turn = torch.randn(2, 4, 24), angles(torch.randn(2, 4, 3), 12)
    gradients = []
    for recompute in (False, True):
        stack.recompute = recompute
        out, taps = stack(x, turn, tap=(0,))
        (out.square().sum() + taps[0].square().sum()).backward()
        gradients.append([p.grad.clone() for p in stack.parameters() if p.grad is not None])
        stack.zero_grad()
    assert len(gradients[0]) == len(list(stack.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
