"""How the tests of this folder plant a fault in a method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medmae.core.method import Method
from medmae.core.target import Features
from medmae.core.tokens import MaskPlan, Tokens
from medmae.find import Found, find
from medmae.testing import CHECKS

Change = Callable[[Method], None]


def faulty(change: Change, name: str = "bm_mae") -> Found:
    """The method called ``name``, changed after it is built."""
    found = find(name)

    @functools.wraps(found.builder)
    def builder(**recipe: object) -> Method:
        method = found.builder(**recipe)
        change(method)
        return method

    return replace(found, builder=builder)


def around(method: Method, part: str, wrapper: Callable) -> None:
    """Put ``wrapper(original, *arguments)`` in place of a method or module's forward."""
    owner, _, name = part.rpartition(".")
    target = method.get_submodule(owner)
    original = getattr(target, name)
    setattr(target, name, lambda *args, **options: wrapper(original, *args, **options))


def fails(check: str, change: Change, *, match: str, name: str = "bm_mae") -> None:
    with pytest.raises(AssertionError, match=match):
        CHECKS[check](faulty(change, name))


def replan(**parts: Callable[[MaskPlan], Tensor]) -> Change:
    def change(method: Method) -> None:
        def sample(original: Callable, tokens: Tokens, key: Tensor) -> MaskPlan:
            plan = original(tokens, key)
            return replace(plan, **{name: part(plan) for name, part in parts.items()})

        around(method, "sampler.forward", sample)

    return change


def first_twice(ids: Tensor) -> Tensor:
    return torch.cat([ids[:, :1], ids[:, :1], ids[:, 2:]], 1)


def reloss(change: Callable[[Tensor], Tensor]) -> Change:
    def plant(method: Method) -> None:
        around(
            method,
            "forward",
            lambda forward, *inputs: {name: change(value) for name, value in forward(*inputs).items()},
        )

    return plant


def with_teacher(**faults: bool) -> Change:
    """MAE that predicts features of a momentum teacher, with a fault."""

    def change(method: Method) -> None:
        method.target = Features(method.encoder, momentum=0.9)
        method.decoder.head = nn.Linear(method.decoder.head.in_features, method.encoder.width)
        if faults.get("trained"):
            method.target.teacher.requires_grad_(True)
        if faults.get("training"):
            around(
                method,
                "train",
                lambda train, mode=True: [part.train(mode) for part in method.modules() if part is not method],
            )
            method.train = lambda mode=True: (method.target.teacher.train(mode), method)[1]
        if faults.get("forgotten"):
            method.after_step = lambda: None
        if faults.get("flees"):
            method.after_step = lambda: [p.data.sub_(1.0) for p in method.target.teacher.parameters()]

    return change
