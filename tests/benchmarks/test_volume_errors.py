"""The one error of ``benchmarks/generic_volumes.py``: right where the answer is known, and the same for all methods."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medmae.core.tokens import take
from medmae.find import find

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
ve = pytest.importorskip("volume_errors", reason="the benchmarks are not here (installed package)")

NAMES, SIZE, PATCH = ("t1n", "t1c", "t2w"), (8, 12, 8), (4, 4, 4)
LENGTH = 2 * 3 * 2
SMALL: dict[str, Any] = {
    "size": SIZE, "patch": PATCH, "width": 24, "depth": 1, "heads": 4, "decoder_width": 24, "decoder_depth": 1,
    "decoder_heads": 4,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "bm_mae": {"sequences": NAMES, "normalize_target": False},
    "multimae": {"sequences": NAMES, "normalized": (), "absolute": ()},
    "ca_mae": {"sequences": NAMES},
    "mae_st": {"channels": len(NAMES), "normalize_target": False, "target_stride": 1},
}


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return find(name).build(**{**SMALL, **OWN[name], **changes}).eval()


def cases(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    images = torch.randn(n, len(NAMES), *SIZE, generator=draw)
    foreground = (torch.rand(n, 1, *SIZE, generator=draw) < 0.6).float()
    return images * foreground, foreground, torch.arange(n) + 7


def answer_with(method: Any, change: Any) -> Any:
    """The method, answering with the truth put through ``change``."""
    method.guess = lambda tokens, plan: change(take(tokens.content, plan.target))
    return method


@pytest.mark.parametrize("law", ve.LAWS)
@pytest.mark.parametrize("name", list(OWN))
def test_the_truth_costs_nothing_and_an_offset_its_square(name: str, law: str) -> None:
    images, foreground, key = cases()
    for change, cost in ((lambda x: x, 0.0), (lambda x: x + 0.5, 0.25)):
        method = answer_with(build(name), change)
        found = ve.errors(method, images, foreground, key, law=law, ratio=0.75, batch=2)
        if name == "mae_st" and law != ve.PLACES:
            assert found is None
        else:
            assert found.shape == (3, len(NAMES))
            torch.testing.assert_close(found, torch.full_like(found, cost), atol=1e-6, rtol=0)


@pytest.mark.parametrize("law", [ve.PLACES, ve.ANYWHERE])
def test_all_methods_are_asked_for_the_same_voxels_and_give_their_own_answers(law: str) -> None:
    images, foreground, key = cases()
    hidden = ve.hidden_tokens(law, length=LENGTH, sequences=len(NAMES), ratio=0.75, key=key)
    seen, truths, guesses = [], [], []
    for name in OWN:
        method = build(name)
        plan = ve.plan_of(method, hidden)
        if plan is None:
            assert name == "mae_st"
            continue
        batch = ve.given(method, images, foreground, key)
        guesses.append(ve.predicted(method, batch, plan)[0])
        guess, asked = ve.predicted(answer_with(method, lambda x: x), batch, plan)
        seen.append(asked)
        truths.append(guess)
    cubes = hidden.view(3, len(NAMES), 2, 3, 2)
    expected = cubes.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    for asked, guess in zip(seen, truths, strict=True):
        assert torch.equal(asked, expected)
        torch.testing.assert_close(guess, images * asked)
    assert not any(torch.equal(guesses[0], other) for other in guesses[1:])


def test_masks_are_as_many_as_said_and_functions_of_the_key() -> None:
    key = torch.tensor([3, 9])
    places = ve.hidden_tokens(ve.PLACES, length=LENGTH, sequences=3, ratio=0.75, key=key)
    assert places.sum((1, 2)).tolist() == [3 * 9] * 2
    assert bool((places == places[:, :1]).all())
    anywhere = ve.hidden_tokens(ve.ANYWHERE, length=LENGTH, sequences=3, ratio=0.75, key=key)
    assert anywhere.sum((1, 2)).tolist() == [27] * 2
    assert not bool((anywhere == anywhere[:, :1]).all())
    assert torch.equal(anywhere[1:], ve.hidden_tokens(ve.ANYWHERE, length=LENGTH, sequences=3, ratio=0.75, key=key[1:]))
    whole = ve.hidden_tokens(ve.WHOLE, length=LENGTH, sequences=3, ratio=0.75, key=key, which=2)
    assert whole.sum(2).tolist() == [[0, 0, LENGTH]] * 2


def test_only_hidden_foreground_counts() -> None:
    truth = torch.zeros(1, 2, 2, 1, 2)
    guess = torch.tensor([[[[[1.0, 2.0]], [[3.0, 4.0]]], [[[5.0, 6.0]], [[7.0, 8.0]]]]])
    asked = torch.tensor([[[[[True, True]], [[False, False]]], [[[False, False]], [[False, True]]]]])
    foreground = torch.tensor([[[[[1.0, 0.0]], [[1.0, 0.0]]]]])
    found = ve.squared_errors(guess, truth, asked, foreground)
    assert found[0, 0] == 1.0
    assert bool(found[0, 1].isnan())  # its only hidden voxel is in the air


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bm_mae", {"normalize_target": True}),
        ("mae_st", {"normalize_target": True}),
        ("mae_st", {"patch": (2, 4, 4), "target_stride": 2}),
        ("multimae", {"absolute": ("t1n",)}),
    ],
)
def test_a_target_in_other_units_is_refused(name: str, change: dict[str, Any]) -> None:
    images, foreground, key = cases()
    with pytest.raises(ValueError, match="raw targets"):
        ve.errors(build(name, **change), images, foreground, key, law=ve.PLACES, ratio=0.75)
