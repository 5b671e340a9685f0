"""The interface between a method and its trainer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medmae.core.method import Method
from medmae.nets.block import Stack


class Mean(Method):
    """The smallest method there is."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))
        self.blocks = Stack(1, 8, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"off": (batch["image"] - self.level).square().mean()}


def test_a_method_must_say_what_its_step_is() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Method()


def test_hooks_do_nothing_unless_overridden() -> None:
    method = Mean()
    assert method.after_step() is None
    assert method.after_epoch(0) is None
    assert float(method({"image": torch.ones(2)})["off"].detach()) == 1


def test_activations_are_recomputed_where_that_is_supported() -> None:
    method = Mean()
    method.checkpoint_activations()
    assert method.blocks.recompute
    method.checkpoint_activations(False)
    assert not method.blocks.recompute


def test_keys_are_never_replaced_silently() -> None:
    assert Method.keys({"key": torch.tensor([1, 2], dtype=torch.int32)}).dtype == torch.int64
    with pytest.raises(ValueError, match="no 'key'"):
        Method.keys({})
