"""Tokens are gathered and painted by id; missing ones stay missing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.core.tokens import MaskPlan, TokenLayout, Tokens, take


def full(b: int = 2, n: int = 6, *, width: int = 3) -> Tokens:
    layout = TokenLayout(
        id=torch.arange(n).expand(b, -1),
        coords=torch.arange(n).float()[None, :, None].expand(b, -1, 2),
        modality=(torch.arange(n) % 2).expand(b, -1),
        weight=torch.linspace(0, 1, n).expand(b, -1),
        total=n,
    )
    return Tokens(layout, torch.randn(b, n, width))


@given(st.lists(st.lists(st.integers(-1, 5), min_size=4, max_size=4), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_gathering_follows_ids_and_keeps_missing_ones_missing(rows: list[list[int]]) -> None:
    tokens, ids = full(), torch.tensor(rows)
    some = tokens.at(ids, ragged=True)
    assert torch.equal(some.layout.id, ids)
    assert some.layout.ragged
    for row in range(2):
        for place, column in enumerate(rows[row]):
            if column >= 0:
                assert torch.equal(some.content[row, place], tokens.content[row, column])
                assert some.layout.modality[row, place] == column % 2
                assert some.layout.coords[row, place, 0] == column
                assert some.layout.weight[row, place] == tokens.layout.weight[row, column]


def test_an_id_of_a_token_that_is_missing_gives_a_missing_token() -> None:
    tokens = full()
    ids = tokens.layout.id.clone()
    ids[0, 2] = -1
    layout = TokenLayout(ids, tokens.layout.coords, tokens.layout.modality, None, 6, ragged=True)
    assert layout.at(torch.tensor([[2, 3], [2, 3]])).id.tolist() == [[-1, 3], [2, 3]]
    assert layout.at(torch.tensor([[2, 3], [2, 3]])).ragged


def test_only_a_full_layout_can_be_indexed() -> None:
    part = full().layout.at(torch.tensor([[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match="2 of 6"):
        part.at(torch.tensor([[0], [0]]))


@given(st.permutations(range(6)), st.integers(0, 6), st.booleans())
@settings(max_examples=50, deadline=None)
def test_painting_undoes_gathering(order: list[int], k: int, pad: bool) -> None:
    tokens = full()
    ids = torch.tensor([order[:k] + [-1] * pad] * 2, dtype=torch.long).reshape(2, -1)
    blank = torch.tensor([7.0, 8.0, 9.0])
    painted = tokens.at(ids, ragged=pad).onto(tokens.layout, blank)
    assert painted.layout is tokens.layout
    for column in range(6):
        expected = tokens.content[:, column] if column in order[:k] else blank.expand(2, -1)
        assert torch.equal(painted.content[:, column], expected)


def test_painting_equals_the_classic_inverse_permutation() -> None:
    tokens, blank = full(4, 8), torch.randn(3)
    shuffle = torch.rand(4, 8).argsort(1)
    restore = shuffle.argsort(1)
    seen = tokens.at(shuffle[:, :3])
    classic = torch.cat([seen.content, blank.expand(4, 5, -1)], 1)
    classic = classic.gather(1, restore[..., None].expand(-1, -1, 3))
    assert torch.equal(seen.onto(tokens.layout, blank).content, classic)


def test_padding_gets_no_gradient() -> None:
    tokens = full()
    content = torch.randn(2, 3, 3, requires_grad=True)
    layout = tokens.layout.at(torch.tensor([[0, 1, -1], [2, -1, -1]]), ragged=True)
    blank = torch.zeros(3, requires_grad=True)
    Tokens(layout, content).onto(tokens.layout, blank).content.sum().backward()
    assert bool((content.grad[layout.id < 0] == 0).all())
    assert bool((content.grad[layout.id >= 0] == 1).all())
    assert bool((blank.grad == 2 * 6 - 3).all())


def test_take_gathers_any_number_of_axes() -> None:
    ids = torch.tensor([[1, -1], [0, 3]])
    for shape in ((2, 4), (2, 4, 3), (2, 4, 3, 2)):
        values = torch.randn(shape)
        got = take(values, ids)
        assert torch.equal(got[0, 0], values[0, 1])
        assert torch.equal(got[1, 1], values[1, 3])
        assert torch.equal(got[0, 1], values[0, 0])


def test_repeat_keeps_samples_together() -> None:
    tokens = full(2).repeat(3)
    assert tokens.content.shape[0] == len(tokens.layout.id) == len(tokens.layout.weight) == 6
    assert torch.equal(tokens.content[0], tokens.content[2])
    assert not torch.equal(tokens.content[2], tokens.content[3])


def test_weights_are_zero_where_nothing_is_asked() -> None:
    target = torch.tensor([[3, -1], [0, 1]])
    assert MaskPlan(target, target).weights().tolist() == [[1, 0], [1, 1]]
    weighed = MaskPlan(target, target, torch.tensor([[0.5, 9.0], [0.0, 1.0]])).weights()
    assert weighed.tolist() == [[0.5, 0.0], [0.0, 1.0]]


def test_layouts_and_plans_are_values() -> None:
    tokens = full()
    with pytest.raises(AttributeError):
        tokens.layout.total = 7
    with pytest.raises(AttributeError):
        tokens.content = torch.zeros(1)
