"""Point-MAE: what its sheet asks for, its shipped settings, and that a planted leak is found."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medmae.config import load_config
from medmae.core.errors import DataError, UsageError
from medmae.core.method import Method
from medmae.core.tokens import MaskPlan, TokenLayout, Tokens
from medmae.engine.settings import train_settings
from medmae.find import find
from medmae.nets.encoded import Encoded
from medmae.testing import CHECKS, example_batch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def small(**options: object) -> Method:
    return find("point_mae").build(scale="test", **options).eval()


def test_the_published_size() -> None:
    with torch.device("meta"):
        method = find("point_mae").build()
    values = {name: sum(p.numel() for p in getattr(method, name).parameters()) for name in ("encoder", "decoder")}
    assert round(values["encoder"] / 1e6, 1) == 21.8
    assert round(sum(values.values()) / 1e6, 1) == 29.0


def test_38_of_64_groups_are_hidden_and_none_else_asked_for() -> None:
    method = find("point_mae").build(width=12, depth=1, heads=1, decoder_depth=1, decoder_heads=1)
    plan = method.plan({"points": torch.randn(2, 1024, 3), "key": torch.arange(2)})
    assert plan.visible.shape == (2, 26)
    assert plan.target.shape == (2, 38)


def features(method: Method, tokens: Tokens, visible: Tensor) -> Tensor:
    return method.encoder(tokens.at(visible), tokens.layout).tokens.content


def test_neither_contents_nor_centers_of_hidden_groups_reach_the_encoder() -> None:
    method, batch = small(), example_batch(small())
    plan, tokens = method.plan(batch), method.tokenizer(batch)
    before = features(method, tokens, plan.visible)
    hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, plan.visible, False)
    content = torch.where(hidden[..., None, None], torch.randn(tokens.content.shape), tokens.content)
    coords = torch.where(hidden[..., None], torch.randn(tokens.layout.coords.shape), tokens.layout.coords)
    other = Tokens(tokens.layout, content)
    assert torch.equal(features(method, other, plan.visible), before)
    moved = Tokens(replace(tokens.layout, coords=coords), tokens.content)
    assert torch.equal(features(method, moved, plan.visible), before)
    guess = method.guess(tokens, plan)
    assert torch.equal(method.guess(other, plan), guess)
    assert not torch.equal(method.guess(moved, plan), guess)  # the decoder is told where it is asked
    truth = torch.take_along_dim(tokens.content, plan.target[..., None, None], 1)
    changed = torch.take_along_dim(content, plan.target[..., None, None], 1)
    assert not torch.allclose(method.distance(guess, truth), method.distance(guess, changed))


def test_in_training_too_the_statistics_are_those_of_visible_groups() -> None:
    method = find("point_mae").build(scale="test", drop_path=0.0).train()
    batch = example_batch(method)
    plan, tokens = method.plan(batch), method.tokenizer(batch)
    hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, plan.visible, False)
    other = Tokens(tokens.layout, torch.where(hidden[..., None, None], 1e3, tokens.content))
    assert torch.equal(features(method, tokens, plan.visible), features(method, other, plan.visible))


def test_the_order_of_points_in_a_group_does_not_matter() -> None:
    method, batch = small(), example_batch(small())
    points = batch["points"]
    turned = torch.cat([points[:, :1], points[:, 1:].flip(1)], 1)  # the first point starts the centers
    first, second = method(batch), method(batch | {"points": turned})
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("points", [8, 12, 100, 5000])
def test_any_number_of_points(points: int) -> None:
    method = small()
    loss = method({"points": torch.randn(2, points, 3), "key": torch.arange(2)})["reconstruction"]
    assert bool(loss.isfinite())
    assert float(loss.detach()) > 0


def test_clouds_of_different_length_get_what_they_get_alone() -> None:
    method = small()
    clouds = [torch.randn(n, 3) for n in (40, 10, 200)]
    padded, valid = torch.full((3, 200, 3), torch.nan), torch.zeros(3, 200, dtype=torch.bool)
    for row, cloud in enumerate(clouds):
        padded[row, : len(cloud)], valid[row, : len(cloud)] = cloud, True
    batch = {"points": padded, "valid": valid, "key": torch.arange(3)}
    plan = method.plan(batch)
    guess = method.guess(method.tokenizer(batch), plan)
    for row, cloud in enumerate(clouds):
        alone = {"points": cloud[None], "key": torch.tensor([row])}
        own = method.plan(alone)
        asked = plan.target[row] >= 0
        assert torch.equal(plan.target[row][asked], own.target[0][own.target[0] >= 0])
        mine = method.guess(method.tokenizer(alone), own)[0][own.target[0] >= 0]
        torch.testing.assert_close(guess[row][asked], mine, atol=1e-5, rtol=1e-4)
    assert bool(method(batch)["reconstruction"].isfinite())


def test_bad_input_says_what_is_wrong() -> None:
    method = small()
    with pytest.raises(DataError, match="7 points, fewer than the 8"):
        method({"points": torch.randn(2, 7, 3), "key": torch.arange(2)})
    with pytest.raises(UsageError, match="must be positive"):
        find("point_mae").build(groups=0)


@pytest.mark.parametrize(
    "check",
    ["hidden_content_never_leaks", "plan_is_sound", "padding_is_inert", "same_key_same_loss", "finite_named_losses"],
)
def test_balls_conform(check: str) -> None:
    found = find("point_mae")

    @functools.wraps(found.builder)
    def builder(**recipe: object) -> Method:
        return found.builder(**(recipe | {"mask": "ball"}))

    CHECKS[check](replace(found, builder=builder))


def test_a_planted_leak_is_found() -> None:
    """An encoder that is told the mean content of all groups."""
    found = find("point_mae")

    @functools.wraps(found.builder)
    def builder(**recipe: object) -> Method:
        method = found.builder(**recipe)
        guess, encode = method.guess, method.encoder.forward

        def told(tokens: Tokens, plan: MaskPlan) -> Tensor:
            def encoder(visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> Encoded:
                encoded = encode(visible, full, tap)
                content = encoded.tokens.content + tokens.content.mean((1, 2, 3))[:, None, None]
                return replace(encoded, tokens=Tokens(encoded.tokens.layout, content))

            method.encoder.forward = encoder
            return guess(tokens, plan)

        method.guess = told
        return method

    with pytest.raises(AssertionError, match="hidden voxels of 'points'"):
        CHECKS["hidden_content_never_leaks"](replace(found, builder=builder))


def test_shipped_config() -> None:
    config = load_config(CONFIGS / "point_mae.yaml")
    assert set(config) == {"method", "train"}
    train = train_settings(config["train"])
    assert (train.lr, train.weight_decay, train.warmup, train.epochs) == (1e-3, 0.05, 10, 300)
    options = dict(config["method"])
    with torch.device("meta"):
        find(options.pop("name")).build(**options)
