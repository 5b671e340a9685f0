"""A method can be trained: its losses are finite and learnable, and gradients go where they should."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from medmae.core.tokens import MaskPlan, Tokens, take
from medmae.find import Found

from .batches import awake, example_batch, mixed_batch
from .building import build, total_loss


def _trained_by(method: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in method.parameters() if parameter.requires_grad]


def finite_named_losses(found: Found) -> None:
    """``forward`` gives named, finite scalars with a gradient, for complete and incomplete patients."""
    method = build(found)
    for batch in (example_batch(method), mixed_batch(method), example_batch(method, samples=1)):
        losses = method(batch)
        assert losses, "there is no loss"
        for name, value in losses.items():
            assert isinstance(name, str), f"a loss is called {name!r}"
            assert value.shape == (), f"loss {name!r} is no scalar: its shape is {tuple(value.shape)}"
            assert bool(value.isfinite()), f"loss {name!r} is {value.item()}"
        assert total_loss(losses).requires_grad, "the loss has no gradient"


def gradients_reach_every_parameter(found: Found) -> None:
    """Over a few keys every trainable parameter gets a gradient that is finite and not zero; frozen ones get none."""
    method = awake(build(found)).train()
    for seed in range(3):
        total_loss(method(example_batch(method, seed=seed))).backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
            assert bool((parameter.grad != 0).any()), f"the gradient of {name} is always zero"
        else:
            assert parameter.grad is None, f"{name} is frozen and gets a gradient"


def _truth(method: Any, off: float, tokens: Tokens, plan: MaskPlan) -> Tensor:
    return take(method.target(tokens), plan.target) + off


def perfect_prediction_costs_nothing(found: Found) -> None:
    """If every guess is the truth, the loss is zero; if every guess is off by one, it is not."""
    method = awake(build(found))
    for part in ("guess", "target"):
        assert hasattr(method, part), (
            f"{type(method).__name__} has no {part!r}: offer it, or exempt this check on the card"
        )
    for batch in (example_batch(method), mixed_batch(method)):
        for off, good in ((0.0, True), (1.0, False)):
            method.guess = partial(_truth, method, off)
            with torch.no_grad():
                value = float(total_loss(method(batch)))
            assert (abs(value) <= 1e-6) == good, f"guesses off by {off:g} cost {value:.3g}"


def overfits_one_batch(found: Found, *, steps: int = 150, share: float = 0.25) -> None:
    """A tiny network learns one batch with one plan by heart: the loss falls below a quarter of where it was."""
    method = build(found).train()
    batch = example_batch(method, samples=2)
    optimizer = torch.optim.AdamW(_trained_by(method), lr=3e-3, weight_decay=0.0)
    first = last = float("nan")
    for step in range(steps):
        loss = total_loss(method(batch))
        last = float(loss.detach())
        first = last if step == 0 else first
        if last < share * first:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step()
    raise AssertionError(f"after {steps} steps on one batch the loss is {last:.3g}, from {first:.3g}")


def teacher_follows_or_stays(found: Found) -> None:
    """What belongs to the target is never trained: it moves towards the encoder after a step, or stays as it is."""
    method = build(found).train()
    target = getattr(method, "target", None)
    if target is None or not list(target.parameters()):
        return
    held = list(target.parameters())
    mine = {id(parameter) for parameter in _trained_by(method)}
    assert not any(id(parameter) in mine for parameter in held), "an optimizer would train the teacher"
    total_loss(method(example_batch(method))).backward()
    assert all(parameter.grad is None for parameter in held), "the teacher gets a gradient"
    teacher = getattr(target, "teacher", None)
    if teacher is None:
        return
    assert not teacher.training, "the teacher is in training mode"
    student = list(method.encoder.parameters())
    with torch.no_grad():
        for parameter in student:
            parameter += 1.0
    before = [parameter.clone() for parameter in teacher.parameters()]
    method.after_step()
    momentum = getattr(target, "momentum", None)
    for old, new, goal in zip(before, teacher.parameters(), student, strict=True):
        stays = torch.equal(old, new)
        assert not stays or momentum in (None, 1), f"the teacher has a momentum of {momentum} and does not follow"
        follows = bool((new - goal).detach().norm() < (old - goal).detach().norm())
        assert stays or follows, "the teacher moves, but not towards the encoder"


def finite_in_bfloat16(found: Found) -> None:
    """Under bfloat16 autocast losses and gradients are finite, and the losses near those in float32."""
    method = awake(build(found))
    for batch in (example_batch(method), mixed_batch(method)):
        exact = {name: float(value.detach()) for name, value in method(batch).items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = method(batch)
        for name, value in losses.items():
            assert bool(value.isfinite()), f"loss {name!r} is {value.item()} in bfloat16"
            assert abs(float(value.detach()) - exact[name]) <= 0.05 * abs(exact[name]) + 0.01, (
                f"loss {name!r} is {float(value.detach()):.4g} in bfloat16 and {exact[name]:.4g} in float32"
            )
        method.zero_grad()
        total_loss(losses).backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), f"gradient of {name} is not finite"
