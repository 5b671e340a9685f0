"""Who is decayed."""

from __future__ import annotations

import torch
from torch import nn
from toy import make_toy

from medmae.engine.optimizer import adamw, parameter_groups


def _names(method: nn.Module, group: dict[str, object]) -> set[str]:
    held = {id(p) for p in group["params"]}  # type: ignore[attr-defined]
    return {n for n, p in method.named_parameters() if id(p) in held}


def test_groups() -> None:
    toy = make_toy()
    decayed, spared = parameter_groups(toy, weight_decay=0.05)
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0.0
    assert _names(toy, decayed) == {
        "inner.weight",
        "head.weight",
        "unused.weight",
        "body.0.linear.weight",
        "body.1.linear.weight",
    }
    assert {"token", "table.weight", "body.0.norm.weight", "head.bias"} <= _names(toy, spared)
    assert not any("frozen" in n for g in (decayed, spared) for n in _names(toy, g))


def test_decay_all() -> None:
    toy = make_toy()
    (only,) = parameter_groups(toy, weight_decay=0.05, decay_all=True)
    assert _names(toy, only) == {n for n, p in toy.named_parameters() if p.requires_grad}


def test_shared_parameter_comes_once() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    groups = parameter_groups(nn.Sequential(a, b), weight_decay=0.1)
    assert sum(len(g["params"]) for g in groups) == 3  # type: ignore[arg-type]


def test_decay_moves_only_the_decayed() -> None:
    toy = make_toy()
    with torch.no_grad():
        for p in toy.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    adamw(toy, lr=0.1, weight_decay=0.5, betas=(0.9, 0.95)).step()
    assert torch.all(toy.head.weight == 0.95)
    assert torch.all(toy.token == 1.0)
    assert torch.all(toy.frozen.weight == 1.0)
