"""The small PointNet: the formula, order of points, and who enters its statistics."""

from __future__ import annotations

import torch
from torch import nn

from medmae.core.points import PointGroups
from medmae.core.tokens import Tokens
from medmae.nets.points import MiniPointNet, PointPositions


def tokens_of(samples: int = 2) -> Tokens:
    return PointGroups(6, 8)({"points": torch.randn(samples, 60, 3)})


def test_the_formula_as_convolutions() -> None:
    """As published: convolutions of length one over [groups, channels, points], biases and all."""
    net = MiniPointNet(24, hidden=(8, 16, 32))
    first = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 1))
    second = nn.Sequential(nn.Conv1d(32, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 24, 1))
    for mine, other in ((net.point, first), (net.group, second)):
        for i in (0, 1, 3):
            state = mine[i].state_dict()
            for name, value in state.items():
                target = getattr(other[i], name)
                target.data.copy_(value.view_as(target))
        other[0].bias.data.normal_()  # cancels in what follows
    for training in (True, False):
        tokens = tokens_of()
        x = tokens.content.flatten(0, 1).transpose(1, 2)
        for part in (net, first, second):
            part.train(training)
        if not training:
            for mine, other in ((net.point, first), (net.group, second)):
                other[1].running_mean.copy_(mine[1].running_mean + other[0].bias.detach())
                other[1].running_var.copy_(mine[1].running_var)
        local = first(x)
        both = torch.cat([local.amax(2, keepdim=True).expand_as(local), local], 1)
        theirs = second(both).amax(2).view(2, 6, 24)
        torch.testing.assert_close(net(tokens), theirs, atol=1e-5, rtol=1e-4)


def test_the_order_of_points_does_not_matter() -> None:
    net, tokens = MiniPointNet(24).eval(), tokens_of()
    turned = Tokens(tokens.layout, tokens.content[:, :, torch.randperm(8)])
    torch.testing.assert_close(net(tokens), net(turned))


def test_missing_tokens_enter_no_statistic() -> None:
    one, two = MiniPointNet(24).train(), MiniPointNet(24).train()
    two.load_state_dict(one.state_dict())
    tokens = tokens_of(1)
    ids = torch.tensor([[3, 0, 5, -1, -1]])
    ragged = one(tokens.at(ids, ragged=True))
    plain = two(tokens.at(ids[:, :3]))
    torch.testing.assert_close(ragged[:, :3], plain)
    assert bool((ragged[:, 3:] == 0).all())
    torch.testing.assert_close(one.state_dict(), two.state_dict())


def test_positions_are_two_layers() -> None:
    net, coords = PointPositions(16), torch.randn(2, 5, 3)
    assert net(coords).shape == (2, 5, 16)
    theirs = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, 16))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), net.state_dict().values(), strict=True)))
    torch.testing.assert_close(net(coords), theirs(coords))
