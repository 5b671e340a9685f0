"""How the checks build a method: small, and always the same."""

from __future__ import annotations

from typing import Any

import torch

from medmae.find import Found

SCALE = "test"


def build(found: Found, **overrides: Any) -> Any:
    """The method at scale ``test``, with the weights of seed 0.

    It is typed ``Any`` because checks reach into parts that only some methods have, and say so where one is lacking.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return found.build(scale=SCALE, **overrides)


def total_loss(losses: dict[str, torch.Tensor]) -> Any:
    """What a trainer minimizes."""
    return torch.stack(list(losses.values())).sum()
