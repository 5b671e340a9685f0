"""The contestants of ``benchmarks/peers.py`` do equal work, and work that is not equal is noticed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medmae.find import find

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
peer_models = pytest.importorskip("peer_models", reason="the benchmarks are not here (installed package)")
pytest.importorskip("transformers")

FOUR_STAGES = {
    "size": (96, 96),
    "widths": (8, 12, 20, 24),
    "depths": (1, 1, 2, 1),
    "decoder_width": 24,
}  # timm has four


def pair(name: str, **sizes: Any) -> tuple[Any, Any]:
    sizes = {**(FOUR_STAGES if name == "fcmae" else {}), **sizes}
    recipe = peer_models.recipe_of(name, scale="test", **sizes)
    return peer_models.ours(name, recipe, batch=2), peer_models.peer(name, recipe, batch=2, steps=2)


@pytest.mark.parametrize("name", ["mae", "videomae", "fcmae"])
def test_contestants_do_equal_work(name: str) -> None:
    mine, other = (peer_models.facts(contestant) for contestant in pair(name))
    assert min(mine["encoder"], mine["decoder"], mine["scored"]) > 0
    # Width 32 and less: biases and norms weigh more than at a real scale.
    assert peer_models.unequal(mine, other, within=0.05) == []


@pytest.mark.parametrize("name", ["mae", "videomae", "fcmae"])
def test_parameters_agree_within_a_percent_at_the_measured_scale(name: str) -> None:
    recipe = peer_models.recipe_of(name, scale="tiny")
    with torch.device("meta"):
        built = find(name).build(**recipe)
    mine = sum(p.numel() for p in built.parameters())
    other = sum(
        p.numel() for p in peer_models.peer(name, recipe, batch=1, steps=1).module.parameters() if p.requires_grad
    )
    assert abs(mine - other) < 0.01 * other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask_ratio": 0.5}, ["encoder", "scored"]),
        ({"depth": 4}, ["parameters"]),
        ({"size": (48, 48)}, ["encoder", "decoder", "scored"]),
    ],
)
def test_unequal_work_is_said(change: dict[str, Any], said: list[str]) -> None:
    mine, _ = pair("mae")
    _, other = pair("mae", **change)
    faults = peer_models.unequal(peer_models.facts(mine), peer_models.facts(other), within=0.05)
    assert [fault.partition(":")[0] for fault in faults] == said


def test_another_attention_is_said() -> None:
    mine, other = (peer_models.facts(contestant) for contestant in pair("mae"))
    assert [f.partition(":")[0] for f in peer_models.unequal(mine, {**other, "attention": "eager"}, within=1)] == [
        "attention"
    ]


def test_the_masked_dense_peer_is_the_function_of_fcmae() -> None:
    """The same weights, images and masks: the same loss and gradients."""
    recipe = peer_models.recipe_of("fcmae", scale="test", **FOUR_STAGES)
    mine, theirs = peer_models.ours("fcmae", recipe, batch=2), peer_models.peer("fcmae", recipe, batch=2, steps=1)
    method, model = mine.module, theirs.module
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + ("norm" in name and "weight" in name))
    state = {f"encoder.{k}": v for k, v in model.encoder.state_dict().items()}
    names = {"embed": "embed", "block": "blocks.0", "head": "head"}
    for part, name in names.items():
        state |= {f"decoder.{name}.{k}": v for k, v in getattr(model, part).state_dict().items()}
    state["decoder.mask_token"] = model.mask_token.flatten()
    state["decoder.embed.weight"] = state["decoder.embed.weight"].flatten(1)
    state["decoder.head.weight"] = state["decoder.head.weight"].flatten(1)
    method.load_state_dict(state, strict=True)

    images = torch.randn(2, 3, *recipe["size"])
    batch = {"image": images, "key": torch.tensor([4, 9])}
    plan = method.plan(batch)
    shown = torch.zeros(2, model.cells).scatter(1, plan.visible, 1.0).view(2, 1, model.side, model.side)
    one, other = method(batch)["reconstruction"], model(images, shown)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    one.backward()
    other.backward()
    torch.testing.assert_close(
        method.encoder.stem[0].weight.grad, model.encoder.stem[0].weight.grad, atol=1e-5, rtol=1e-3
    )
    torch.testing.assert_close(method.decoder.mask_token.grad, model.mask_token.grad.flatten(), atol=1e-5, rtol=1e-3)
