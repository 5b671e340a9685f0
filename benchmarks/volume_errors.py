"""One error for methods that cut, predict and count differently: hidden voxels, in units of the normalized volume.

Whatever a method predicts is put back into volumes, one per sequence, and the same function compares them with the
truth at the same voxels. A method that reads sequences as channels of one image has one token per place where the
others have one per sequence; which voxels are hidden is said per place and sequence, so that both can be asked the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medmae.core.random import uniform
from medmae.core.tokens import MaskPlan

PLACES, ANYWHERE, WHOLE = "same places", "anywhere", "whole sequence"
LAWS = (PLACES, ANYWHERE, WHOLE)


def hidden_tokens(law: str, *, length: int, sequences: int, ratio: float, key: Tensor, which: int = 0) -> Tensor:
    """Which tokens are hidden, Bool[b sequences length], the same number in every sample.

    Args:
        law: ``same places`` in all sequences, ``anywhere`` among all tokens, or the ``whole sequence`` number
            ``which`` with the others shown whole.
        length: places.
        sequences: of a case.
        ratio: share that is hidden under the first two laws; what stays visible is truncated.
        key: of every case, Int64[b].
        which: sequence of the third law.
    """
    b = len(key)
    if law == WHOLE:
        hidden = torch.zeros(b, sequences, length, dtype=torch.bool)
        hidden[:, which] = True
        return hidden
    n = length if law == PLACES else length * sequences
    rank = uniform(key, n, stream=0x6869646465).argsort(dim=1, stable=True).argsort(1)
    hidden = rank >= int(n * (1 - ratio))
    if law == PLACES:
        return hidden[:, None].expand(b, sequences, length)
    return hidden.view(b, sequences, length)


def plan_of(method: Any, hidden: Tensor) -> MaskPlan | None:
    """The plan of a method that hides these tokens and asks for them; None where it has one token for all sequences
    and they are not hidden alike."""
    if is_stacked(method):
        if not bool((hidden == hidden[:, :1]).all()):
            return None
        hidden = hidden[:, :1]
    flat = hidden.flatten(1)
    count = flat.sum(1)
    if not bool((count == count[0]).all()):
        raise ValueError("the samples of a batch must have the same number of hidden tokens")
    order = flat.to(torch.int64).argsort(dim=1, stable=True)  # visible first
    v = flat.shape[1] - int(count[0])
    return MaskPlan(order[:, :v], order[:, v:])


def is_stacked(method: Any) -> bool:
    """Whether the method reads all sequences as channels of one entry."""
    return len(method.tokenizer.names) == 1


def given(method: Any, images: Tensor, foreground: Tensor, key: Tensor) -> dict[str, Tensor]:
    """The batch of a method for images Float[b sequences *size] in the order of its sequences."""
    names = method.tokenizer.names
    told = {names[0]: images} if is_stacked(method) else {n: images[:, i : i + 1] for i, n in enumerate(names)}
    return {**told, "foreground": foreground, "key": key}


@torch.no_grad()
def predicted(method: Any, batch: dict[str, Tensor], plan: MaskPlan) -> tuple[Tensor, Tensor]:
    """What a method says of hidden voxels, put back into volumes.

    Returns:
        The guess, Float[b sequences *size], zero where nothing was asked; and where something was asked, the same
        shape.

    Raises:
        ValueError: the method's target is not the values of the image, so that its guess is in other units.
    """
    tokens = method.tokenizer(batch)
    told = method.target(tokens)
    content = tokens.content.shape[-1]
    if told.shape[-1] != content or not torch.equal(told, tokens.content):
        raise ValueError("the target is not the image itself: build the method with raw targets")
    guess = method.guess(tokens, plan)[..., :content]
    grid, b = method.tokenizer.grid, len(guess)
    canvas = torch.zeros(b, tokens.layout.total, content).scatter(
        1, plan.target[..., None].expand_as(guess), guess.float()
    )
    asked = torch.zeros(b, tokens.layout.total).scatter(1, plan.target, 1.0)[..., None].expand(-1, -1, content)

    def volumes(x: Tensor) -> Tensor:
        image = grid.unpatchify(x.reshape(-1, grid.length, content))
        return image.reshape(b, -1, *grid.size)

    return volumes(canvas), volumes(asked) > 0


def squared_errors(guess: Tensor, truth: Tensor, asked: Tensor, foreground: Tensor) -> Tensor:
    """Mean squared error of the hidden voxels in the foreground, per case and sequence; NaN where there are none.

    Args:
        guess: Float[b sequences *size].
        truth: the same.
        asked: Bool, the same: voxels that were hidden and asked for.
        foreground: [b 1 *size].
    """
    counts = (asked & (foreground > 0)).double()
    error = ((guess.double() - truth.double()).square() * counts).flatten(2).sum(-1)
    n = counts.flatten(2).sum(-1)
    return torch.where(n > 0, error / n.clamp_min(1), torch.nan)


def errors(
    method: Any,
    images: Tensor,
    foreground: Tensor,
    key: Tensor,
    *,
    law: str,
    ratio: float,
    batch: int = 4,
) -> Tensor | None:
    """Errors per case and sequence, [cases sequences], of hidden voxels under a law of :data:`LAWS`.

    Under the third law every sequence is hidden in turn. None where the method cannot be asked so.
    """
    m = images.shape[1]
    length = method.tokenizer.grid.length
    rounds: Sequence[int] = range(m) if law == WHOLE else (0,)
    rows = []
    for first in range(0, len(images), batch):
        part = slice(first, first + batch)
        total = torch.full((len(images[part]), m), torch.nan, dtype=torch.float64)
        for which in rounds:
            hidden = hidden_tokens(law, length=length, sequences=m, ratio=ratio, key=key[part], which=which)
            plan = plan_of(method, hidden)
            if plan is None:
                return None
            guess, asked = predicted(method, given(method, images[part], foreground[part], key[part]), plan)
            found = squared_errors(guess, images[part], asked, foreground[part])
            total = torch.where(found.isnan(), total, found)
        rows.append(total)
    return torch.cat(rows)
