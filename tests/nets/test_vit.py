"""The transformer as an encoder of visible tokens: ragged rows, prefix tokens, taps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.tokens import Tokens
from medmae.nets.embed import SharedEmbed
from medmae.nets.encoded import attention_mask
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder, xavier


def encoder(**options) -> ViTEncoder:
    return ViTEncoder(embed=SharedEmbed(16, 24), positions=SinCos(24), width=24, depth=2, heads=3, **options).eval()


def tokens(b: int = 2) -> Tokens:
    return ModalityGrid(("a",), Grid((12, 12), (4, 4)))({"a": torch.randn(b, 1, 12, 12)})


def test_output_is_of_the_visible_tokens_with_the_prefix_apart() -> None:
    net, everything = encoder(prefix=3), tokens()
    seen = everything.at(torch.tensor([[4, 1], [0, 8]]))
    out = net(seen, everything.layout)
    assert out.tokens.content.shape == (2, 2, 24)
    assert out.prefix.shape == (2, 3, 24)
    assert out.tokens.layout is seen.layout
    assert out.full is everything.layout
    assert out.seen is seen


def test_the_encoder_is_its_formula() -> None:
    net, everything = encoder(), tokens()
    x = net.embed(everything) + SinCos(24)(everything.layout.coords)
    x = torch.cat([net.prefix_tokens.expand(2, -1, -1), x], 1)
    for block in net.blocks:
        x = block(x)
    x = net.norm(x)
    out = net(everything, everything.layout)
    torch.testing.assert_close(out.prefix, x[:, :1])
    torch.testing.assert_close(out.tokens.content, x[:, 1:])


@pytest.mark.parametrize("prefix", [0, 1])
def test_ragged_rows_are_what_they_are_alone(prefix: int) -> None:
    net, everything = encoder(prefix=prefix), tokens(3)
    ids = torch.tensor([[4, 1, 7], [0, -1, -1], [-1, -1, -1]])
    out = net(everything.at(ids, ragged=True), everything.layout)
    assert bool(out.tokens.content.isfinite().all())
    for row, k in ((0, 3), (1, 1)):
        single = Tokens(everything.layout.at(ids), everything.content)  # layout is not used beyond its rows
        alone = ModalityGrid(("a",), Grid((12, 12), (4, 4)))
        image = alone.grid.unpatchify(single.content[row : row + 1])
        mine = alone({"a": image}).at(ids[row : row + 1, :k])
        expected = net(mine, everything.layout).tokens.content[0]
        torch.testing.assert_close(out.tokens.content[row, :k], expected, atol=1e-5, rtol=1e-5)


def test_taps_leave_the_prefix_out() -> None:
    net, everything = encoder(prefix=2), tokens()
    out = net(everything, everything.layout, tap=(0, 1))
    assert set(out.taps) == {0, 1}
    assert out.taps[0].shape == (2, 9, 24)
    torch.testing.assert_close(net.norm(out.taps[1]), out.tokens.content)


def test_positions_are_optional() -> None:
    net = ViTEncoder(embed=SharedEmbed(16, 24), positions=None, width=24, depth=1, heads=3).eval()
    everything = tokens()
    order = torch.randperm(9)
    content = net(everything, everything.layout).tokens.content
    moved = net(Tokens(everything.layout, everything.content[:, order]), everything.layout).tokens.content
    torch.testing.assert_close(moved, content[:, order], atol=1e-5, rtol=1e-5)


def test_attention_mask_allows_prefix_and_existing_tokens() -> None:
    everything = tokens()
    assert attention_mask(everything.layout, 1) is None
    part = everything.layout.at(torch.tensor([[4, -1], [-1, -1]]), ragged=True)
    assert attention_mask(part, 1)[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]
    assert attention_mask(part, 0)[:, 0, 0].tolist() == [[True, False], [True, False]]


def test_xavier_sets_every_linear_map() -> None:
    net = nn.Sequential(nn.Linear(30, 50), nn.LayerNorm(50), nn.Linear(50, 10, bias=False))
    nn.init.ones_(net[0].weight)
    xavier(net)
    bound = (6 / 80) ** 0.5
    assert float(net[0].weight.detach().abs().max()) <= bound
    assert float(net[0].weight.detach().std()) > 0.5 * bound
    assert bool((net[0].bias == 0).all())
