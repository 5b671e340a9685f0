"""Position codes are the published formula, of coordinates and not of table rows."""

from __future__ import annotations

import math

import pytest
import torch

from medmae.core.grid import Grid
from medmae.nets.positions import Counted, Learned, SinCos, row_major, sincos


@pytest.mark.parametrize("shape", [(8, 8, 8), (2, 3, 5)])
@pytest.mark.parametrize("width", [768, 384, 48])
def test_the_code_of_three_axes_is_that_of_bm_mae(shape: tuple[int, ...], width: int) -> None:
    """[sin(j w), cos(j w), sin(i w), cos(i w), sin(k w), cos(k w)]: second axis first, then first, then third."""
    n = width // 6
    code = sincos(Grid(tuple(2 * s for s in shape), (2, 2, 2)).indices(), width).reshape(*shape, width)
    for i, j, k in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 3)):
        expected = []
        for position in (j, i, k):
            angles = [position * 10000 ** (-q / n) for q in range(n)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(code[i, j, k], torch.tensor(expected), atol=1e-6, rtol=0)


def test_odd_widths_are_filled_with_zeros() -> None:
    code = sincos(torch.rand(2, 5, 3), 50)
    assert code.shape == (2, 5, 50)
    assert bool((code[..., 48:] == 0).all())


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_positions_are_told_apart_on_every_axis(axes: int) -> None:
    coords = Grid((4,) * axes, (2,) * axes).indices()
    code = sincos(coords, 16 * axes)
    apart = torch.cdist(code, code) + torch.eye(len(code)) * 9
    assert float(apart.min()) > 0.5


def test_the_order_of_axes_can_be_chosen() -> None:
    coords = torch.rand(7, 3)
    default, plain = sincos(coords, 24), sincos(coords, 24, order=(0, 1, 2))
    assert torch.equal(default[:, :8], plain[:, 8:16])
    assert torch.equal(default[:, 8:16], plain[:, :8])
    assert torch.equal(default[:, 16:], plain[:, 16:])


def test_any_coordinates_are_coded_smoothly() -> None:
    near = sincos(torch.tensor([[1.0, 2.0, 3.0], [1.001, 2.0, 3.0], [500.0, -20.0, 0.25]]), 48)
    assert bool(near.isfinite().all())
    assert float((near[0] - near[1]).norm()) < 0.01


@pytest.mark.parametrize(("width", "order", "match"), [(4, None, "at least 6"), (48, (0, 1, 1), "not a permutation")])
def test_impossible_codes_are_refused(width: int, order: tuple | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sincos(torch.zeros(1, 3), width, order=order)


def test_the_module_has_no_parameters_and_no_state() -> None:
    module = SinCos(48, temperature=100.0)
    assert not module.state_dict()
    coords = torch.rand(2, 4, 3)
    assert torch.equal(module(coords), sincos(coords, 48, temperature=100.0))


@pytest.mark.parametrize("width", [8, 15, 48])
def test_counted_positions_are_those_of_a_sentence(width: int) -> None:
    grid = Grid((4, 6, 10), (2, 2, 2))
    code = Counted(grid.shape, width)(grid.indices()[None])[0]
    assert code.shape == (30, width)
    for place in (0, 1, 17, 29):
        angles = [place / 10000 ** (2 * (j // 2) / width) for j in range(width)]
        expected = [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)]
        torch.testing.assert_close(code[place], torch.tensor(expected), atol=1e-6, rtol=0)


def test_cells_are_counted_along_the_last_axis_first() -> None:
    grid = Grid((2, 3, 5), (1, 1, 1))
    assert row_major(grid.indices(), grid.shape).tolist() == list(range(30))


def test_learned_positions_are_the_sum_of_their_tables() -> None:
    grid = Grid((3, 4, 5), (1, 1, 1))
    positions = Learned(grid.shape, 6, groups=((0,), (1, 2)))
    assert [tuple(table.shape) for table in positions.tables] == [(3, 6), (20, 6)]
    time, space = positions.tables
    summed = (time[:, None] + space[None]).flatten(0, 1)
    assert torch.equal(positions(grid.indices()[None])[0], summed)
    picked = torch.tensor([[7, 59, 0]])
    torch.testing.assert_close(positions(grid.indices()[picked]), summed[picked])
    whole = Learned(grid.shape, 6)
    assert torch.equal(whole(grid.indices()[None])[0], whole.tables[0])
    positions(grid.indices()[None]).sum().backward()
    assert all(float(table.grad.abs().min()) > 0 for table in positions.tables)


@pytest.mark.parametrize("groups", [((0,), (1,)), ((0,), (0, 1, 2)), ((0, 1, 3),)])
def test_every_axis_has_one_table(groups: tuple) -> None:
    with pytest.raises(ValueError, match="axes once"):
        Learned((2, 2, 2), 4, groups=groups)
