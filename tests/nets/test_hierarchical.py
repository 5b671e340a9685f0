"""The decoder that looks into the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medmae.core.grid import Grid, ModalityGrid
from medmae.nets.embed import ModalityEmbed
from medmae.nets.hierarchical import HierarchicalDecoder
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder

GRID = Grid((4, 4, 4), (2, 2, 2))


def networks(levels: tuple[int, ...] = (0, 2)) -> tuple[Any, Any, Any]:
    encoder = ViTEncoder(
        embed=ModalityEmbed(("a", "b"), 8, 24, tag=True),
        positions=SinCos(24),
        width=24,
        depth=4,
        heads=2,
        always=levels,
    )
    decoder = HierarchicalDecoder(
        encoder_width=24, levels=levels, width=12, depth=1, heads=2, content=8, positions=SinCos(12), names=("a", "b")
    )
    tokens = ModalityGrid(("a", "b"), GRID)({name: torch.randn(2, 1, 4, 4, 4) for name in ("a", "b")})
    return encoder.eval(), decoder.eval(), tokens


def test_levels_are_asked_deep_to_shallow() -> None:
    _, decoder, _ = networks((2, 0, 3))
    assert decoder.levels == (3, 2, 0)


def test_some_queries_get_the_answers_that_all_get() -> None:
    encoder, decoder, tokens = networks()
    encoded = encoder(tokens.at(torch.tensor([[0, 9, 3]] * 2)), tokens.layout)
    everything = decoder(encoded, tokens.layout)
    few = torch.tensor([[14, 1]] * 2)
    torch.testing.assert_close(decoder(encoded, tokens.layout.at(few)), everything[:, few[0]], atol=1e-6, rtol=1e-5)


def test_every_level_matters_with_its_prefix() -> None:
    encoder, decoder, tokens = networks()
    encoded = encoder(tokens.at(torch.tensor([[0, 9, 3]] * 2)), tokens.layout)
    before = decoder(encoded, tokens.layout)
    for level in (0, 2):
        for store in (encoded.taps, encoded.tap_prefix):
            kept = store[level]
            store[level] = kept + 1
            assert float((decoder(encoded, tokens.layout) - before).detach().abs().max()) > 1e-6
            store[level] = kept


def test_padding_is_not_looked_at() -> None:
    encoder, decoder, tokens = networks()
    ids = torch.tensor([[0, 9, 3]] * 2)
    padded = torch.nn.functional.pad(ids, (0, 2), value=-1)
    one = decoder(encoder(tokens.at(ids), tokens.layout), tokens.layout)
    other = decoder(encoder(tokens.at(padded, ragged=True), tokens.layout), tokens.layout)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_recomputing_changes_no_gradient() -> None:
    encoder, decoder, tokens = networks()
    gradients = []
    for recompute in (False, True):
        decoder.train().zero_grad()
        decoder.recompute = decoder.blocks.recompute = recompute
        decoder(encoder(tokens.at(torch.tensor([[0, 9]] * 2)), tokens.layout), tokens.layout).square().sum().backward()
        gradients.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(decoder.parameters()))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_levels_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one depth"):
        networks(())
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        networks((1, 4))
