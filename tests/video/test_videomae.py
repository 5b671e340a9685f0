"""VideoMAE and VideoMAE V2: tubes, the numbers of tokens, running cells, and volumes as clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medmae.core.tokens import MaskPlan
from medmae.find import find
from medmae.testing import example_batch

PUBLISHED = {"size": (16, 224, 224), "width": 12, "depth": 1, "heads": 1, "decoder_width": 12, "decoder_depth": 1,
             "decoder_heads": 1}  # fmt: skip
STEPS, PLACES = 8, 196


def plan_of(method: Any, samples: int = 4) -> MaskPlan:
    """A plan at the published size, drawn without looking at any pixel."""
    batch = {"video": torch.zeros(samples, 3, 16, 224, 224), "key": torch.arange(samples) + 3}
    return method.plan(batch)


def marks(ids: torch.Tensor) -> torch.Tensor:
    """Which tokens are named by ``ids``: Bool[b time row column]."""
    mask = torch.zeros(len(ids), STEPS * PLACES, dtype=torch.bool).scatter(1, ids, True)
    return mask.view(len(ids), STEPS, 14, 14)


def test_tubes_show_the_same_160_of_1568_tokens_at_every_time() -> None:
    plan = plan_of(find("videomae").build(**PUBLISHED))
    assert plan.visible.shape == (4, 160)  # 8 * (196 - int(0.9 * 196)), where keep_count(1568, 0.9) is 156
    assert plan.target.shape == (4, 1408)
    assert not plan.ragged
    seen = marks(plan.visible)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.95])
def test_other_ratios_are_tubes_too(mask_ratio: float) -> None:
    plan = plan_of(find("videomae").build(**PUBLISHED, mask_ratio=mask_ratio), samples=2)
    seen = marks(plan.visible)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert int(seen[0, 0].sum()) == PLACES - int(mask_ratio * PLACES)


def test_v2_encodes_160_and_decodes_704_that_are_hidden_running_cells() -> None:
    plan = plan_of(find("videomae_v2").build(**PUBLISHED))
    assert plan.visible.shape == (4, 160)
    assert plan.target.shape == (4, 704)
    assert plan.weight is None
    seen, asked = marks(plan.visible), marks(plan.target)
    assert not bool((seen & asked).any())
    hidden = ~seen[:, 0]
    assert bool((asked.sum(1)[hidden] == 4).all())  # every hidden place at half of the times


def test_v2_as_published_decodes_784_of_which_704_are_scored() -> None:
    method = find("videomae_v2").build(preset="published", **PUBLISHED)
    plan = plan_of(method)
    assert plan.visible.shape == (4, 160)
    assert plan.target.shape == (4, 784)
    assert plan.weights().sum(1).tolist() == [704.0] * 4
    unscored = plan.target[0][plan.weights()[0] == 0]
    assert set(unscored.tolist()) <= set(plan.visible[0].tolist())
    asked = marks(plan.target)
    cells = asked.view(4, STEPS, 7, 2, 7, 2).sum((3, 5))
    assert bool((cells == 2).all())  # two of four in every cell at every time
    for t in range(STEPS - 3):
        assert bool((asked[:, t : t + 4].sum(1) == 2).all())  # every place twice in any four steps
    assert not torch.equal(asked[:, 0], asked[:, 1])


@pytest.mark.parametrize("size", [(8, 24, 40), (6, 24, 24), (2, 8, 8)])
def test_v2_keeps_its_count_where_the_cells_do_not_fit(size: tuple[int, ...]) -> None:
    """Odd numbers of rows and columns, steps that are no multiple of four: the same count in every sample."""
    method = find("videomae_v2").build(scale="test", size=size, mask_ratio=0.6)
    batch = example_batch(method, samples=6)
    plan = method.plan(batch)
    hidden = method.tokenizer.grid.length - plan.visible.shape[1]
    assert plan.target.shape == (6, -(-hidden // 2))
    assert bool(method(batch)["reconstruction"].isfinite())


def test_the_reference_does_not_score_what_it_decodes_at_visible_places() -> None:
    """Other values at visible tokens, seen through the target alone, leave the loss as it is."""
    method = find("videomae_v2").build(scale="test", preset="published").eval()
    batch = example_batch(method)
    plan = method.plan(batch)
    tokens = method.tokenizer(batch)
    guess = method.guess(tokens, plan).detach()
    truth = method.target(tokens)
    losses = []
    for off in (0.0, 7.0):
        moved = truth.scatter_add(1, plan.visible[..., None].expand(-1, -1, truth.shape[-1]),
                                  torch.full((*plan.visible.shape, truth.shape[-1]), off))  # fmt: skip
        method.guess = lambda tokens, plan: guess
        method.target = torch.nn.Identity()
        method.target.forward = lambda tokens, moved=moved: moved
        losses.append(float(method(batch, plan)["reconstruction"]))
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("name", ["videomae", "videomae_v2", "mae_st"])
def test_volumes_are_clips_of_slices(name: str) -> None:
    """Two sequences as channels, slices as time, a patch that is a cube."""
    method = find(name).build(scale="test", size=(16, 24, 24), patch=(4, 8, 8), channels=2)
    batch = example_batch(method)
    assert batch["video"].shape == (3, 2, 16, 24, 24)
    loss = method(batch)["reconstruction"]
    loss.backward()
    assert bool(loss.isfinite())


def test_the_target_is_normalized_per_channel() -> None:
    method = find("videomae").build(scale="test")
    truth = method.target(method.tokenizer(example_batch(method)))
    values = truth.unflatten(-1, (-1, 3))
    torch.testing.assert_close(values.mean(-2), torch.zeros_like(values[..., 0, :]), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.var(-2), torch.ones_like(values[..., 0, :]), atol=1e-2, rtol=0)
