"""Pooling, and a teacher that follows."""

from __future__ import annotations

import builtins
import math
import sys

import pytest
import torch
from torch import nn

from medmae.core.errors import MissingDependency
from medmae.nets.contrast import Following, Head, lightly_losses, pooled


def test_places_count_by_their_share_of_foreground() -> None:
    level = torch.randn(2, 5, 2, 2, 2)
    torch.testing.assert_close(pooled(level), level.mean((2, 3, 4)))
    inside = torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool)
    inside[0, 0, :4, :4, :4] = True
    inside[0, 0, 4:, 4:, 6:] = True  # half of the last cell
    found = pooled(level, inside)
    torch.testing.assert_close(found[0], (level[0, :, 0, 0, 0] + 0.5 * level[0, :, 1, 1, 1]) / 1.5)
    torch.testing.assert_close(found[1], level[1].mean((1, 2, 3)))  # no foreground at all: every place counts


def test_a_head_embeds_every_sample_on_its_own() -> None:
    head, x = Head(6, hidden=8, out=4), torch.randn(3, 6)
    torch.testing.assert_close(head(x)[1:2], head(x[1:2]))


def test_the_momentum_rises_along_half_a_cosine_and_is_part_of_the_state() -> None:
    follower = Following(nn.Linear(2, 2), nn.Linear(2, 2), momentum=0.9, epochs=10)
    seen = []
    for epoch in range(12):
        follower.after_epoch(epoch)
        seen.append(float(follower.momentum))
    assert seen[4] == pytest.approx(1 - 0.1 * (math.cos(math.pi / 2) + 1) / 2)
    assert seen == sorted(seen)
    assert seen[9:] == [1.0, 1.0, 1.0]
    other = Following(nn.Linear(2, 2), nn.Linear(2, 2), momentum=0.9, epochs=10)
    follower.after_epoch(3)
    other.load_state_dict(follower.state_dict())
    assert torch.equal(other.momentum, follower.momentum)
    fixed = Following(nn.Linear(2, 2), nn.Linear(2, 2), momentum=0.9)
    fixed.after_epoch(5)
    assert float(fixed.momentum) == pytest.approx(0.9)


def test_the_teacher_moves_by_what_the_momentum_leaves() -> None:
    encoder, projector = nn.Linear(2, 2), nn.Linear(2, 2)
    follower = Following(encoder, projector, momentum=0.75)
    before = follower.teacher.weight.clone(), follower.projector.weight.clone()
    with torch.no_grad():
        encoder.weight += 4
        projector.weight += 8
    follower.follow(encoder, projector)
    torch.testing.assert_close(follower.teacher.weight, before[0] + 1)
    torch.testing.assert_close(follower.projector.weight, before[1] + 2)
    assert not any(p.requires_grad for p in follower.parameters())
    for wrong in ({"momentum": 1.5}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("s")):
            Following(encoder, projector, **wrong)


def test_without_lightly_the_message_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def block(name: str, *rest: object, **options: object) -> object:
        if name.partition(".")[0] == "lightly":
            raise ImportError("No module named 'lightly'")
        return real(name, *rest, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", block)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[contrastive\]'"):
        lightly_losses()
