"""Plans are sound, and pure functions of the key."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medmae.core.tokens import MaskPlan, Tokens
from medmae.find import Found

from .batches import awake, example_batch, mixed_batch
from .building import build


def _plans(method: Any, batch: dict[str, Tensor]) -> tuple[Tokens, MaskPlan]:
    assert hasattr(method, "plan"), f"{type(method).__name__} has no plan(): offer it, or exempt this check on the card"
    return method.tokenizer(batch), method.plan(batch)


def plan_is_sound(found: Found) -> None:
    """Ids are unique, in range, of tokens that exist, and as many as the budget says."""
    method = build(found)
    for seed in range(4):
        for batch in (example_batch(method, seed=seed), mixed_batch(method, seed=seed)):
            tokens, plan = _plans(method, batch)
            layout = tokens.layout
            for what in ("visible", "target"):
                for row, ids in enumerate(getattr(plan, what)):
                    real = ids[ids >= 0]
                    assert len(real.unique()) == len(real), f"{what} ids of sample {row} repeat"
                    assert bool(((ids >= -1) & (ids < layout.total)).all()), f"{what} ids are out of range"
                    assert bool(layout.exists[row][real].all()), f"sample {row} lacks tokens that the plan calls {what}"
                    assert plan.ragged or len(real) == len(ids), f"{what} is padded, but the plan says it is not ragged"
            if plan.weight is not None:
                assert plan.weight.shape == plan.target.shape, "there is not one weight for each target"
                assert bool((plan.weight >= 0).all()), "weights are negative"
            sampler = getattr(method, "sampler", None)
            if sampler is not None:
                counts = sampler.budget(layout, batch["key"])
                seen, asked = (plan.visible >= 0).sum(1), (plan.target >= 0).sum(1)
                assert torch.equal(seen, counts.total), f"visible {seen.tolist()}, budget {counts.total.tolist()}"
                free = layout.exists.sum(1) - (0 if sampler.ask_visible else counts.total)
                most = (free.double() * sampler.ask).ceil().long()
                assert torch.equal(asked, most), f"asked {asked.tolist()}, budget {most.tolist()}"


def asked_is_hidden(found: Found) -> None:
    """Nothing that is visible is asked for."""
    method = build(found)
    for seed in range(4):
        for batch in (example_batch(method, seed=seed), mixed_batch(method, seed=seed)):
            _, plan = _plans(method, batch)
            both = (plan.visible[:, :, None] == plan.target[:, None]) & (plan.visible >= 0)[:, :, None]
            assert not bool(both.any()), f"{int(both.sum())} visible tokens are asked for"


def same_key_same_loss(found: Found) -> None:
    """The loss is a function of weights, batch and key; another key gives another plan."""
    method = awake(build(found))
    batch = example_batch(method)
    values = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            values.append(method(batch))
    for name, value in values[0].items():
        assert torch.equal(value, values[1][name]), f"loss {name!r} depends on something other than the key"
    with torch.no_grad():
        others = [method(batch | {"key": batch["key"] + 101 * k}) for k in (1, 2, 3)]
    assert any(bool(other[name] != values[0][name]) for other in others for name in other), "the key changes nothing"


def order_of_entries_does_not_matter(found: Found) -> None:
    """Sequences are known by name: the order of a batch's entries changes nothing, and foreign entries are ignored."""
    method = awake(build(found))
    for batch in (example_batch(method), mixed_batch(method)):
        turned = {"stranger": torch.zeros(1)} | dict(reversed(batch.items()))
        with torch.no_grad():
            first, second = method(batch), method(turned)
        assert all(torch.equal(first[name], second[name]) for name in first), (
            "the order of the entries changes the loss"
        )
