"""Stacking sequences to cubes, and positions of any grid."""

from __future__ import annotations

import pytest
import torch

from medmae.core.grid import Grid, ModalityGrid
from medmae.nets.primus import PositionTable, PrimusDecoder, PrimusEncoder, stack

GRID = Grid((4, 4, 8), (2, 2, 2))
NAMES = ("a", "b", "c")


def tokens(present: torch.Tensor | None = None, samples: int = 2):
    tokenizer = ModalityGrid(NAMES, GRID)
    batch = {name: torch.randn(samples, 1, *GRID.size) for name in NAMES}
    if present is not None:
        batch["present"] = present
    return tokenizer(batch)


def test_a_cube_holds_its_sequences_in_order_and_zero_where_hidden() -> None:
    full = tokens()
    ids = torch.tensor([[3, 16 + 3, 5, 32 + 5], [16 + 9, 2, 32 + 2, 16 + 2]])
    cubes, layout = stack(full.at(ids), full.layout, 3)
    assert layout.total == 16
    assert not layout.ragged
    assert cubes.layout.id.tolist() == [[3, 5], [2, 9]]
    assert not cubes.layout.ragged
    content = cubes.content.view(2, 2, 3, 8)
    torch.testing.assert_close(content[0, 0], torch.stack([full.content[0, 3], full.content[0, 19], torch.zeros(8)]))
    torch.testing.assert_close(content[0, 1], torch.stack([full.content[0, 5], torch.zeros(8), full.content[0, 37]]))
    torch.testing.assert_close(content[1, 1], torch.stack([torch.zeros(8), full.content[1, 25], torch.zeros(8)]))
    torch.testing.assert_close(cubes.layout.coords[0, 0], GRID.indices()[3])


def test_samples_with_fewer_cubes_are_padded_and_missing_tokens_are_ignored() -> None:
    full = tokens(torch.tensor([[True, False, True], [True, True, True]]))
    ids = torch.tensor([[3, -1, 32 + 3, -1], [3, 4, 5, 6]])
    cubes, _ = stack(full.at(ids), full.layout, 3)
    assert cubes.layout.id.tolist() == [[3, -1, -1, -1], [3, 4, 5, 6]]
    assert cubes.layout.ragged
    assert cubes.content[0, 0, 8:16].abs().max() == 0
    assert cubes.content[0, 1:].abs().max() == 0


def test_one_sequence_goes_through_as_it_is() -> None:
    tokenizer = ModalityGrid(("a",), GRID)
    full = tokenizer({"a": torch.randn(1, 1, *GRID.size)})
    visible = full.at(torch.tensor([[7, 2, 11]]))
    cubes, layout = stack(visible, full.layout, 1)
    assert cubes.layout.id.tolist() == [[7, 2, 11]]
    assert layout.total == 16
    assert cubes.content is visible.content


def test_the_table_is_exact_on_its_grid_and_stretched_over_others() -> None:
    table = PositionTable((3, 2, 4), 6)
    points = Grid((3, 2, 4), (1, 1, 1)).indices()[None]
    extent = torch.tensor([3.0, 2.0, 4.0])
    torch.testing.assert_close(table(points, extent)[0], table.weight.flatten(0, 2), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        table.weight.copy_(torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 6))
    twice = Grid((6, 2, 4), (1, 1, 1)).indices()[None]
    found = table(twice, torch.tensor([6.0, 2.0, 4.0]))[0].view(6, 2, 4, 6)[:, 0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.0]), atol=1e-5, rtol=1e-5)


def test_a_single_point_serves_every_grid() -> None:
    table = PositionTable((1, 1, 1), 6)
    codes = table(GRID.indices()[None], torch.tensor([2.0, 2.0, 4.0]))
    torch.testing.assert_close(codes, table.weight.view(1, 1, 6).expand(1, 16, 6))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="two or three axes"):
        PositionTable((4,), 6)
    with pytest.raises(ValueError, match="not an order"):
        PrimusEncoder(names=NAMES, content=8, width=24, depth=1, heads=2, axes=(0, 1, 1))
    with pytest.raises(ValueError, match="three axes"):
        PrimusDecoder(names=NAMES, patch=(8, 8), width=24, depth=1, heads=2)
    with pytest.raises(ValueError, match="has 2 axes"):
        PositionTable((4, 4), 6)(torch.zeros(1, 1, 3), torch.ones(3))


def test_asking_several_sequences_of_a_cube_gives_what_asking_one_gives() -> None:
    full = tokens()
    shared = {"names": NAMES, "width": 24, "depth": 1, "heads": 2, "table": (2, 2, 4)}
    encoder = PrimusEncoder(content=8, **shared).eval()
    decoder = PrimusDecoder(patch=(2, 2, 2), **shared).eval()
    encoded = encoder(full.at(torch.tensor([[0, 16, 32]] * 2)), full.layout)
    everything = decoder(encoded, full.layout)
    few = torch.tensor([[40, 3, 21]] * 2)
    torch.testing.assert_close(decoder(encoded, full.layout.at(few)), everything[:, few[0]], atol=1e-6, rtol=1e-5)
