"""Nothing that is hidden, missing or another patient's may reach a guess.

Each check looks twice: at the gradient, which must be zero exactly and not nearly, and at the values after what must
not matter was replaced by noise, because a detached or discrete path has no gradient.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.core.tokens import MaskPlan, Tokens, take
from medmae.find import Found

from .batches import alone, awake, example_batch, mixed_batch, pieces
from .building import build


def _noise(like: Tensor) -> Tensor:
    return 3 * torch.randn(like.shape, generator=torch.Generator().manual_seed(5)) + 1


def _where_visible(plan: MaskPlan, total: int) -> Tensor:
    """Bool[b total]: which tokens the encoder may see."""
    column = plan.visible.masked_fill(plan.visible < 0, total)
    marks = torch.zeros(len(column), total + 1, dtype=torch.bool)
    return marks.scatter(1, column, True)[:, :total]


def _asked(plan: MaskPlan, guess: Tensor) -> Tensor:
    """The guesses that count, flattened; padding rows may hold anything."""
    return guess[plan.target >= 0]


def _voxels(method: Any, tokens: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Bool[b n] over tokens as masks over the values of the batch; where these values themselves say which token
    holds them, the tokenizer has to look at the batch."""
    reach = getattr(method.tokenizer, "reach", None)
    marked: dict[str, Tensor] = method.tokenizer.voxels(tokens) if reach is None else reach(batch, tokens)
    return marked


def _without_hidden(
    method: Any, batch: dict[str, Tensor], tokens: Tokens, seen: dict[str, Tensor], visible: Tensor
) -> Tokens:
    """The tokens of a batch whose hidden values are replaced by noise. Where the values decide what the tokens are,
    the content of the hidden tokens is replaced."""
    if hasattr(method.tokenizer, "reach"):
        keep = visible.reshape(*visible.shape, *(1,) * (tokens.content.ndim - 2))
        return Tokens(tokens.layout, torch.where(keep, tokens.content, _noise(tokens.content)))
    other = {name: torch.where(mask, batch[name], _noise(batch[name])) for name, mask in seen.items()}
    changed: Tokens = method.tokenizer(batch | other)
    return changed


def hidden_content_never_leaks(found: Found) -> None:
    """No guess depends on a voxel that was not visible, through any path, in complete and in incomplete batches, in
    training and in evaluation."""
    method = awake(build(found))
    batches = example_batch(method), mixed_batch(method), example_batch(method, seed=3)
    for training, batch in itertools.product((False, True), batches):
        method.train(training)
        images = {name: batch[name].clone().requires_grad_() for name in method.sequences}
        tokens, plan, guess = pieces(method, batch | images)
        picked = _asked(plan, guess)
        if not picked.requires_grad:
            raise AssertionError("the guess does not depend on any image")
        direction = torch.randn(picked.shape, generator=torch.Generator().manual_seed(2))
        gradients = torch.autograd.grad((picked * direction).sum(), list(images.values()), allow_unused=True)
        visible = _where_visible(plan, tokens.layout.total)
        seen = _voxels(method, visible, batch)
        reached = 0.0
        for (name, image), gradient in zip(images.items(), gradients, strict=True):
            gradient = torch.zeros_like(image) if gradient is None else gradient
            leak = gradient[~seen[name]].abs()
            assert leak.numel() == 0 or float(leak.max()) == 0, (
                f"the guess depends on hidden voxels of {name!r}: largest gradient {float(leak.max()):.3g}"
            )
            reached += float(gradient.abs().sum())
        assert reached > 0, "the guess does not depend on what is visible either"
        if training:  # dropout changes the values, and no gradient that is zero
            continue
        with torch.no_grad():
            again = method.guess(_without_hidden(method, batch, tokens, seen, visible), plan)
            change = (_asked(plan, again) - picked).abs().max()
        assert change == 0, f"replacing what is hidden changes the guess by {float(change):.3g}"


def samples_do_not_see_each_other(found: Found) -> None:
    """A guess about one sample depends on no other sample of the batch."""
    method = awake(build(found))
    for batch in (example_batch(method), mixed_batch(method)):
        images = {name: batch[name].clone().requires_grad_() for name in method.sequences}
        _, plan, guess = pieces(method, batch | images)
        first = guess[0][plan.target[0] >= 0]
        direction = torch.randn(first.shape, generator=torch.Generator().manual_seed(2))
        gradients = torch.autograd.grad((first * direction).sum(), list(images.values()), allow_unused=True)
        worst = max(float(g[1:].abs().max()) for g in gradients if g is not None)
        assert worst == 0, f"guesses about sample 0 depend on other samples: largest gradient {worst:.3g}"
        with torch.no_grad():
            other = {name: torch.cat([batch[name][:1], _noise(batch[name][1:])]) for name in images}
            changed = batch | other
            again = method.guess(method.tokenizer(changed), plan)
            change = (again[0][plan.target[0] >= 0] - first).abs().max()
        assert change <= 1e-6, f"other samples change the guesses about sample 0 by {float(change):.3g}"


def padding_is_inert(found: Found) -> None:
    """A ragged batch gives every sample the plan and the guesses that it gets alone; padding a plan costs nothing."""
    method = awake(build(found))
    singles = []
    with torch.no_grad():
        for seed in (0, 4):
            batch = mixed_batch(method, seed=seed)
            _, plan, guess = pieces(method, batch)
            for row in range(len(batch["key"])):
                mine = alone(batch, row)
                if bool(mine["present"].all()):
                    mine.pop("present")
                _, own_plan, own = pieces(method, mine)
                for what in ("visible", "target"):
                    together, single = getattr(plan, what)[row], getattr(own_plan, what)[0]
                    together, single = together[together >= 0], single[single >= 0]
                    assert torch.equal(together, single), (
                        f"sample {row} gets another plan ({what}) in a batch than alone"
                    )
                far = (guess[row][plan.target[row] >= 0] - own[0][own_plan.target[0] >= 0]).abs()
                worst = float(far.max()) if far.numel() else 0.0
                assert worst <= 1e-4, f"sample {row} gets other guesses in a ragged batch than alone: {worst:.3g} apart"
                singles.append((mine, own_plan))
        if "plan" not in inspect.signature(method.forward).parameters:
            return
        for mine, own_plan in singles:
            for name, value in method(mine, own_plan).items():
                padded = float(method(mine, _padded(own_plan))[name])
                assert abs(padded - float(value)) <= 1e-4 * (1 + abs(float(value))), (
                    f"padding the plan changes the loss {name!r} from {float(value):.6g} to {padded:.6g}"
                )


def _padded(plan: MaskPlan) -> MaskPlan:
    """The plan with three columns more that stand for nothing."""
    visible, target = (F.pad(ids, (0, 3), value=-1) for ids in (plan.visible, plan.target))
    weight = None if plan.weight is None else F.pad(plan.weight, (0, 3), value=1.0)
    return MaskPlan(visible, target, weight, ragged=True)


def missing_modality_does_not_matter(found: Found) -> None:
    """A sequence that a patient lacks is not asked for, has no part in the loss, and its voxels do not matter.

    With a single sequence there is nothing to lack, and the check says nothing.
    """
    method = awake(build(found))
    m = len(method.sequences)
    if m == 1:
        return
    batch = mixed_batch(method)
    tokens, plan, guess = pieces(method, batch)
    length = tokens.layout.total // m
    for what in ("visible", "target"):
        ids = getattr(plan, what)
        there = take(batch["present"], ids.clamp_min(0) // length) | (ids < 0)
        assert bool(there.all()), f"the plan has {what} tokens of a sequence that the patient lacks"
    fill = {}
    for i, name in enumerate(method.sequences):
        has = batch["present"][:, i].reshape(-1, *(1,) * (batch[name].ndim - 1))
        fill[name] = torch.where(has, batch[name], 1e3 * _noise(batch[name]))
    with torch.no_grad():
        before, after = method(batch), method(batch | fill)
        again = method.guess(method.tokenizer(batch | fill), plan)
    for key, value in before.items():
        assert bool(value.isfinite()), f"loss {key!r} is {float(value)} for incomplete patients"
        assert torch.equal(value, after[key]), f"voxels of missing sequences change the loss {key!r}"
    change = (_asked(plan, again) - _asked(plan, guess)).abs().max()
    assert change == 0, f"voxels of missing sequences change the guesses by {float(change):.3g}"
    gone = example_batch(method, lacking=[(1,)] * 3)
    left_out = {name: value for name, value in gone.items() if name != method.sequences[1]}
    with torch.no_grad():
        here, absent = method(gone), method(left_out)
    assert all(torch.equal(here[key], absent[key]) for key in here), "leaving an absent sequence out changes the loss"
    assert torch.equal(method.plan(gone).target, method.plan(left_out).target), "... or the plan"
