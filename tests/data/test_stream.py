"""Ordinals: the same stream on any number of processes, from any step."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.core.random import mix
from medmae.data import stream


def flat(world: int, batch: int, *, start: int = 0, steps: int, n: int = 7, repeat: int = 1) -> list[stream.Draw]:
    ranks = [
        list(islice(stream.training(n, start=start, batch=batch, rank=r, world=world, seed=3, repeat=repeat), steps))
        for r in range(world)
    ]
    return [draw for step in range(steps) for rank in ranks for draw in rank[step]]


def test_one_and_two_processes_see_one_stream():
    assert flat(1, 4, steps=6) == flat(2, 2, steps=6) == flat(4, 1, steps=6) == flat(1, 8, steps=3)


def test_resuming_needs_only_the_step():
    assert flat(2, 2, start=5, steps=4) == flat(2, 2, steps=9)[5 * 4 :]


def test_every_epoch_is_a_permutation_and_epochs_differ():
    draws = flat(1, 7, steps=4)
    epochs = [tuple(d.case for d in draws[i * 7 : i * 7 + 7]) for i in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 1
    assert stream.order(7, seed=3, epoch=1) == epochs[1]


@given(ordinal=st.integers(0, 10**6), n=st.integers(1, 50), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_a_draw_is_the_contract(ordinal: int, n: int, seed: int):
    draw = stream.draw(ordinal, n=n, seed=seed)
    assert draw.key == draw.crop == mix(seed, ordinal)
    assert draw.case == stream.order(n, seed=seed, epoch=ordinal // n)[ordinal % n]


def test_keys_never_repeat():
    keys = [d.key for d in flat(1, 16, steps=200)]
    assert len(set(keys)) == len(keys)


def test_samples_that_share_a_crop_have_their_own_keys():
    draws = flat(1, 6, steps=14, repeat=3)
    crops = Counter((d.case, d.crop) for d in draws)
    assert set(crops.values()) == {3}
    assert len({d.key for d in draws}) == len(draws)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_covers_every_case_once_with_fixed_keys(world: int):
    batches = [b for r in range(world) for b in stream.validation(11, batch=3, rank=r, world=world, seed=1)]
    draws = [d for batch in batches for d in batch]
    assert sorted(d.case for d in draws) == list(range(11))
    alone = {d.case: d.key for b in stream.validation(11, batch=4, rank=0, world=1, seed=1) for d in b}
    assert {d.case: d.key for d in draws} == alone
    assert not set(alone.values()) & {d.key for d in flat(1, 8, steps=50)}


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="no case"):
        next(stream.training(0, start=0, batch=1, rank=0, world=1, seed=0))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        stream.ordinals(0, batch=1, rank=2, world=2)
