"""Embedding a patch is a strided convolution; each modality has its own, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.tokens import Tokens
from medmae.nets.embed import ModalityEmbed, SharedEmbed

NAMES = ("t1n", "t1c", "t2f")


def scene(*, patch: tuple[int, ...] = (2, 4, 3), b: int = 2) -> tuple[dict[str, torch.Tensor], Tokens]:
    batch = {name: torch.randn(b, 1, 4, 8, 6) for name in NAMES}
    return batch, ModalityGrid(NAMES, Grid((4, 8, 6), patch))(batch)


def test_shared_embedding_is_a_strided_convolution() -> None:
    image = torch.randn(2, 3, 8, 12)
    grid = Grid((8, 12), (4, 3), 3)
    embed = SharedEmbed(grid.content, 10)
    kernel = embed.linear.weight.reshape(10, 4, 3, 3).permute(0, 3, 1, 2)  # inside a patch the channel comes last
    conv = nn.functional.conv2d(image, kernel, embed.linear.bias, stride=(4, 3)).flatten(2).transpose(1, 2)
    tokens = ModalityGrid(("a",), grid)({"a": image})
    torch.testing.assert_close(embed(tokens), conv, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["_gather", "_select"])
def test_modality_embedding_is_one_convolution_per_modality(path: str) -> None:
    batch, tokens = scene()
    embed = ModalityEmbed(NAMES, 24, 10)
    features = getattr(embed, path)(tokens).unflatten(1, (3, -1))
    for i, name in enumerate(NAMES):
        linear = embed.linear[name]
        conv = nn.functional.conv3d(batch[name], linear.weight.view(10, 1, 2, 4, 3), linear.bias, stride=(2, 4, 3))
        torch.testing.assert_close(features[:, i], conv.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ids", [torch.arange(24).flip(0).expand(2, -1), torch.tensor([[1, 20, -1], [9, -1, -1]])])
def test_both_paths_agree_in_value_and_gradient(ids: torch.Tensor) -> None:
    _, tokens = scene()
    some = tokens.at(ids, ragged=True)
    embed = ModalityEmbed(NAMES, 24, 10)
    results = []
    for path in ("_gather", "_select"):
        out = getattr(embed, path)(some)
        direction = torch.linspace(-1, 1, out.numel()).view_as(out)
        results.append((out, *torch.autograd.grad((out * direction).sum(), list(embed.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_modality_without_tokens_gets_a_zero_gradient() -> None:
    _, tokens = scene()
    embed = ModalityEmbed(NAMES, 24, 10, tag=True)
    embed(tokens.at(torch.tensor([[0, 1], [2, 3]]))).sum().backward()
    assert bool((embed.linear["t2f"].weight.grad == 0).all())
    assert bool((embed.tag["t2f"].grad == 0).all())
    assert bool((embed.linear["t1n"].weight.grad != 0).any())


def test_tags_are_added_by_modality() -> None:
    _, tokens = scene()
    plain, tagged = ModalityEmbed(NAMES, 24, 10), ModalityEmbed(NAMES, 24, 10, tag=True)
    tagged.load_state_dict(plain.state_dict(), strict=False)
    added = tagged(tokens) - plain(tokens)
    expected = torch.stack([tagged.tag[name] for name in NAMES])[tokens.layout.modality]
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=1e-5)


def test_parameters_are_known_by_name() -> None:
    keys = set(ModalityEmbed(("t1n", "adc"), 8, 4, tag=True).state_dict())
    assert keys == {f"linear.{n}.{p}" for n in ("t1n", "adc") for p in ("weight", "bias")} | {"tag.t1n", "tag.adc"}


@pytest.mark.parametrize("way", ["_gather", "_select"])
def test_nothing_visible_is_embedded_to_nothing(way: str) -> None:
    _, tokens = scene()
    embed = ModalityEmbed(NAMES, 24, 10, tag=True)
    none = tokens.at(torch.zeros(2, 0, dtype=torch.long))
    assert getattr(embed, way)(none).shape == (2, 0, 10)
    assert embed(none).shape == (2, 0, 10)
