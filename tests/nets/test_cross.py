"""Cross-attention without a residual, in plain torch; the networks made of it are tested with their methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from medmae.nets.cross import CrossLayer


def layer() -> CrossLayer:
    torch.manual_seed(0)
    return CrossLayer(16, 4, mlp_ratio=2.0).eval()


def test_the_formula() -> None:
    one = layer()
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    state = dict(one.named_parameters())

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(values, (16,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    told = one.cross(norm(x, "query_norm"), norm(context, "context_norm"))
    torch.testing.assert_close(one(x, context), told + one.mlp(norm(told, "norm")))


def test_a_query_keeps_nothing_of_itself() -> None:
    """With one token to ask, every query gets the same answer: there is no residual."""
    x, context = torch.randn(2, 5, 16), torch.randn(2, 1, 16)
    told = layer()(x, context)
    torch.testing.assert_close(told, told[:, :1].expand_as(told))


def test_masked_context_and_its_order_do_not_matter() -> None:
    one, x, context = layer(), torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    allowed = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    allowed[..., 5:] = False
    told = one(x, context, allowed)
    torch.testing.assert_close(told, one(x, context[:, :5]))
    torch.testing.assert_close(told, one(x, context[:, :5].flip(1)))
