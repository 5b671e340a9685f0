"""What a method sees, is asked for and answers, as images: one view per image, channel, task or group of bands.

Methods cut images in different ways and answer in different units. Here all of it is put back into arrays that lie on
one another, so that a picture can be drawn without knowing the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medmae.core.grid import Grid
    from medmae.core.tokens import Batch, MaskPlan, Tokens


@dataclass(frozen=True)
class View:
    """One image of a batch, three times: [b c *size] each.

    Attributes:
        name: of the entry, channel or task, and which bands it has.
        truth: the image.
        visible: what the method saw of it; NaN elsewhere.
        pasted: the same with guesses filled in; NaN where nothing was asked.
        scaled: guesses have mean and deviation of the true patches, since the method predicts neither.
        classes: how many labels there are, of a map of labels; else 0.
        present: which samples have this image, Bool[b]; None where all do.
    """

    name: str
    truth: Tensor
    visible: Tensor
    pasted: Tensor
    scaled: bool = False
    classes: int = 0
    present: Tensor | None = None


@dataclass(frozen=True)
class _Part:
    """The tokens of one view: how they were cut, which values of a guess are theirs, and what these mean."""

    name: str
    grid: Grid
    answer: slice
    target: nn.Module
    classes: int = 0


def parts_of(method: nn.Module) -> list[_Part]:
    """The views of a method in the order of its tokens; none where its guesses are no pixels of images or clips."""
    from medmae.core.autoencoder import Autoencoder
    from medmae.core.grid import ModalityGrid
    from medmae.core.heterogeneous import TaskAutoencoder
    from medmae.core.spectrum import SpectrumAutoencoder
    from medmae.core.target import Content, Normalized

    tokenizer: Any = getattr(method, "tokenizer", None)
    if isinstance(method, TaskAutoencoder):
        found = []
        for i, task in enumerate(tokenizer.tasks):
            # The first answer of a task is that of its values; a second one repeats it, normalized.
            at = next(k for k, answer in enumerate(method.target.all) if answer.task == i)
            bands = f": {'band' if len(task.channels) == 1 else 'bands'} {', '.join(map(str, task.channels))}"
            answer, columns = method.target.all[at], method.target.columns[at][0]
            name = task.name + bands * bool(task.channels)
            found.append(_Part(name, task.grid, columns, answer.target, task.classes))
        return found
    target: Any = getattr(method, "target", None)
    if (
        not isinstance(method, Autoencoder | SpectrumAutoencoder)
        or type(tokenizer) is not ModalityGrid
        or not isinstance(getattr(target, "then", target), Content | Normalized)
        or len(tokenizer.grid.size) not in (2, 3)
    ):
        return []
    return [_Part(name, tokenizer.grid, slice(None), target) for name in tokenizer.names]


def answered(method: Any, batch: Batch) -> tuple[Tokens, MaskPlan, Tensor]:
    """The tokens of a batch, the plan that a method draws for it and its guesses, all as in evaluation.

    The method is left in the mode that it was in.
    """
    import torch

    was = method.training
    method.eval()
    try:
        with torch.no_grad():
            tokens, plan = method.tokenizer(batch), method.plan(batch)
            return tokens, plan, method.guess(tokens, plan).to(tokens.content.dtype)
    finally:
        method.train(was)


def views(method: Any, batch: Batch) -> list[View]:
    """Every view of a batch, under the plan that the method draws for it; none where :func:`parts_of` finds none."""
    import torch

    parts = parts_of(method)
    if not parts:
        return []
    tokens, plan, guess = answered(method, batch)
    layout, ragged = tokens.layout, tokens.layout.ragged or plan.ragged
    nothing = torch.full((), torch.nan, dtype=tokens.content.dtype, device=tokens.content.device)
    seen = tokens.at(plan.visible, ragged=ragged).onto(layout, nothing).content
    said = replace(tokens, layout=layout.at(plan.target, ragged=ragged), content=guess).onto(layout, nothing).content
    length = layout.total // len(parts)
    found = []
    for i, part in enumerate(parts):
        rows = torch.arange(i * length, (i + 1) * length, device=guess.device).expand(len(guess), -1)
        mine = tokens.at(rows)
        mine = replace(mine, content=mine.content[..., : part.grid.content])
        own = slice(i * length, (i + 1) * length)
        view = _view(part, mine, seen[:, own, : part.grid.content], said[:, own, part.answer])
        found.append(replace(view, present=(mine.layout.id >= 0).any(1) if layout.ragged else None))
    return found


def _view(part: _Part, tokens: Tokens, seen: torch.Tensor, said: torch.Tensor) -> View:
    """One view from the tokens of a part, what was visible of them, and the guesses, both NaN elsewhere."""
    import torch

    from medmae.core.target import Content, Normalized

    grid, truth = part.grid, tokens.content
    target: Any = part.target
    if part.classes:
        logits = said.unflatten(-1, (-1, part.classes))
        said = torch.where(logits.isnan().any(-1), torch.nan, logits.argmax(-1).to(said.dtype))
    if hasattr(target, "frames"):  # only some frames are asked for: only these are shown
        grid, shown = _some_frames(target, tokens)
        truth, target = shown.content, target.then
        seen = torch.where(seen[..., :1].isnan(), torch.nan, truth)
    if isinstance(target, Normalized):
        mean, divisor = target.scale(truth)
        said = (said.unflatten(-1, (-1, target.channels)) * divisor + mean).flatten(-2)
    elif not isinstance(target, Content) and not part.classes:  # it has units of its own: both are shown in them
        truth = target(replace(tokens, content=truth))
        seen = torch.where(seen.isnan(), torch.nan, truth)
    pasted = torch.where(said.isnan(), seen, said)
    put: Callable[[torch.Tensor], torch.Tensor] = grid.unpatchify
    return View(part.name, put(truth), put(seen), put(pasted), isinstance(target, Normalized), part.classes)


def _some_frames(target: Any, tokens: Tokens) -> tuple[Grid, Tokens]:
    """The frames that a target keeps as tokens of their own, and how these are cut."""
    from medmae.core.grid import Grid
    from medmae.core.target import Content
    from medmae.video.parts import SomeFrames

    whole: Grid = target.grid
    stride = whole.size[0] // len(target.frames)
    grid = Grid(
        (len(target.frames), *whole.size[1:]), (whole.patch[0] // stride, *whole.patch[1:]), whole.channels
    )  # fmt: skip
    return grid, replace(tokens, content=SomeFrames(whole, stride, Content())(tokens))


def plain_volumes(method: nn.Module) -> bool:
    """Whether the views of a method are volumes of one channel on one grid, guessed in the units of the images."""
    from medmae.core.target import Content

    parts = parts_of(method)
    return bool(parts) and all(
        len(p.grid.size) == 3
        and p.grid.channels == 1
        and not p.classes
        and p.grid == parts[0].grid
        and type(p.target) is Content
        for p in parts
    )
