"""Computing on rows of visible voxels gives what whole maps times the mask give: features and all gradients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.tokens import Tokens
from medmae.nets.build import Architecture
from medmae.nets.sparse import Blocks, Cells, Masked
from medmae.nets.sparse.unet import sparse_unet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nets"))

from sparse_networks import (
    FLAT,
    UNEVEN,
    architecture,
    assert_same,
    built,
    grid,
    image_for,
    run,
    score,
)  # fmt: skip

TWO = (2, 2, 2)
MASKS = {
    "one cube": grid("10000000", TWO),
    "all": grid("11111111", TWO),
    "opposite corners": grid("10000001", TWO),
    "different counts": grid("10010110 00000001 11111110", TWO),
    "touching at an edge": grid("10010000 01100000", TWO),
}


def compare(chosen: Architecture, cells: Cells, *, channels: int = 2) -> None:
    network, image = built(chosen, channels=channels), image_for(cells, channels=channels)
    assert_same(
        run(network, Blocks(Cells(cells.visible, cells.block)), image),
        run(network, Masked(Cells(cells.visible, cells.block)), image),
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", list(MASKS))
def test_executions_are_one_function(name: str, plain: bool) -> None:
    compare(architecture(plain=plain), Cells(MASKS[name], (16, 16, 16)))


def test_large_cubes_and_one_channel() -> None:
    compare(architecture(), Cells(grid("101", (1, 1, 3)), (32, 32, 32)), channels=1)


def test_four_channels() -> None:
    compare(architecture(), Cells(MASKS["different counts"], (16, 16, 16)), channels=4)


@pytest.mark.parametrize("block", [(4, 16, 16), (2, 4, 4), (8, 32, 32)])
def test_anisotropic_networks(block: tuple[int, ...]) -> None:
    compare(architecture(kernels=FLAT, strides=UNEVEN), Cells(grid("10010110 00000001", (2, 2, 2)), block))


def test_kernels_of_five() -> None:
    kernels = ((5, 5, 5), (3, 3, 3), (1, 5, 5), (3, 3, 3))
    compare(architecture(kernels=kernels), Cells(MASKS["touching at an edge"], (16, 16, 16)))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=64, max_size=64).filter(any), min_size=1, max_size=3), st.booleans())
def test_any_mask_and_cubes_smaller_than_a_deep_voxel(marks: list[list[bool]], plain: bool) -> None:
    compare(architecture(plain=plain), Cells(torch.tensor(marks).reshape(-1, 4, 4, 4), (4, 4, 4)))


def test_a_sample_of_which_nothing_is_visible() -> None:
    compare(architecture(), Cells(grid("00000000 10010110", TWO), (16, 16, 16)))
    compare(architecture(), Cells(grid("00000000", TWO), (8, 8, 8)))


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_bottleneck_blocks_and_pooling(stride: tuple[int, ...]) -> None:
    residual = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
    chosen = architecture(strides=((1, 1, 1), stride, (2, 2, 2), (2, 2, 2)))
    names = ("block", *chosen.requires_import)
    kwargs = {**chosen.kwargs, "block": residual, "bottleneck_channels": 3}
    compare(Architecture(chosen.class_name, kwargs, names), Cells(MASKS["different counts"], (8, 16, 16)))
    network: Any = built(architecture(plain=True))
    for pool in (torch.nn.AvgPool3d(2, 2), torch.nn.MaxPool3d(2, 2)):
        network.encoder.stages[1] = torch.nn.Sequential(pool, network.encoder.stages[1])
    cells = Cells(grid("10010110 00000001", TWO), (8, 8, 8))
    wide = image_for(Cells(cells.visible, (16, 16, 16)))
    assert_same(
        run(network, Blocks(Cells(cells.visible, (16, 16, 16))), wide),
        run(network, Masked(Cells(cells.visible, (16, 16, 16))), wide),
    )


@pytest.mark.parametrize("plain", [False, True])
def test_everything_visible_is_the_stock_network(plain: bool) -> None:
    network = built(architecture(plain=plain))
    cells = Cells(torch.ones(2, *TWO, dtype=torch.bool), (16, 16, 16))
    image = image_for(cells)
    with torch.no_grad():
        stock = network.encoder(image)
    for kind in (Blocks, Masked):
        found = run(network, kind(cells), image)
        for mine, theirs in zip(found.maps, stock, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert_same(run(network, Masked(cells.all()), image), run(network, Blocks(cells), image))


def tokens_of(shape: Grid, *, channels: int = 2) -> Tokens:
    """All tokens of noise."""
    draw = torch.Generator().manual_seed(3)
    names = ("a", "b")[:channels]
    batch = {name: torch.randn(2, 1, *shape.size, generator=draw, dtype=torch.float64) for name in names}
    return ModalityGrid(names, shape)(batch)


@pytest.mark.parametrize("densify", ["conv", "norm_conv", "token"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_autoencoders_are_one_function(everywhere: bool, densify: str) -> None:
    shape = Grid((8, 16, 32), (4, 8, 8))
    tokens = tokens_of(shape)
    visible = tokens.at(torch.tensor([[0, 3, 16, 19, 15], [0, 16, -1, -1, -1]]), ragged=True)
    queries = tokens.layout.at(torch.tensor([[1, 2, 18, 30], [5, 21, -1, -1]]), ragged=True)
    found = []
    for execution in ("block", "masked"):
        torch.manual_seed(0)
        encoder, decoder = sparse_unet(
            names=("a", "b"), grid=shape, architecture=architecture(kernels=FLAT, strides=UNEVEN), densify=densify,
            everywhere=everywhere, execution=execution,
        )  # fmt: skip
        decoder.double()
        guess = decoder(encoder(visible, tokens.layout), queries)[queries.exists]
        score([guess]).backward()
        found.append((guess.detach(), {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}))
    (first, mine), (second, other) = found
    assert float((first - second).abs().max()) <= 1e-9 * float(second.abs().max())
    assert set(mine) == set(other)
    largest = max(float(g.abs().max()) for g in other.values())
    for name, gradient in other.items():
        assert float((mine[name] - gradient).abs().max()) <= 1e-8 * largest, name


def test_decoding_all_cubes_in_blocks_is_the_published_decoder() -> None:
    """Where visible and asked are everything together, the decoder over both is the one over all cubes."""
    shape = Grid((16, 16, 16), (4, 4, 4))
    tokens = tokens_of(shape, channels=1)
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(s)) for s in (4, 5)])
    answers = []
    for everywhere in (True, False):
        torch.manual_seed(0)
        encoder, decoder = sparse_unet(names=("a",), grid=shape, architecture=architecture(), everywhere=everywhere)
        decoder.double()
        answers.append(decoder(encoder(tokens.at(order[:, :16]), tokens.layout), tokens.layout.at(order[:, 16:])))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-9, atol=1e-9)
