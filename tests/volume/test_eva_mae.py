"""Options of eva_mae, and what its layout promises. Parity with the published network is in ``tests/parity``."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medmae.checkpoint import load_model, save_model
from medmae.core.method import Method
from medmae.find import Found, find
from medmae.testing import CHECKS, example_batch, mixed_batch

SEVERAL = ("t1n", "t1c", "t2w")
VARIANTS: dict[str, dict[str, Any]] = {
    "one sequence": {"sequences": ("ct",)},
    "a range of ratios, registers, normalized target": {
        "mask_ratio": (0.3, 0.7),
        "registers": 2,
        "normalize_target": True,
    },
    "anisotropic, another table": {"size": (32, 16, 24), "patch": (8, 4, 8), "axes": (1, 0, 2), "table": (3, 3, 3)},
    "plain blocks without table": {"table": (), "layer_scale": None, "inner_norm": False, "sequences": SEVERAL},
}
WANTED = (
    "finite_named_losses",
    "gradients_reach_every_parameter",
    "hidden_content_never_leaks",
    "padding_is_inert",
    "missing_modality_does_not_matter",
    "plan_is_sound",
    "perfect_prediction_costs_nothing",
    "everything_visible_is_the_plain_network",
    "finite_in_bfloat16",
)


def variant(options: dict[str, Any]) -> Found:
    found = find("eva_mae")

    @functools.wraps(found.builder)
    def builder(**recipe: Any) -> Method:
        return found.builder(**(recipe | options))

    return replace(found, builder=builder)


@pytest.mark.parametrize("check", WANTED)
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_conforms(name: str, check: str) -> None:
    CHECKS[check](variant(VARIANTS[name]))


def test_a_cube_is_hidden_in_all_sequences() -> None:
    method: Any = find("eva_mae").build(scale="test")
    plan = method.plan(mixed_batch(method))
    for row in plan.visible:
        by_sequence = {int(i) // 64: set() for i in row if i >= 0}
        for i in row[row >= 0].tolist():
            by_sequence[i // 64].add(i % 64)
        assert len({frozenset(cubes) for cubes in by_sequence.values()}) == 1
        assert {len(cubes) for cubes in by_sequence.values()} == {16}


def test_incomplete_patients_need_no_attention_mask() -> None:
    method: Any = find("eva_mae").build(scale="test")
    batch = mixed_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    encoded = method.encoder(tokens.at(plan.visible, ragged=True), tokens.layout)
    assert encoded.tokens.content.shape[1] == 16
    assert not encoded.tokens.layout.ragged


def test_loss_counts_hidden_foreground_of_present_sequences_only() -> None:
    method: Any = find("eva_mae").build(scale="test").eval()
    batch = mixed_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    guess = method.guess(tokens, plan)
    total, count = 0.0, 0.0
    grid, inside = method.tokenizer.grid, batch["foreground"] > 0
    cubes = grid.patchify(inside.float())
    for row, ids in enumerate(plan.target):
        for column, i in enumerate(ids.tolist()):
            if i >= 0:
                where = cubes[row, i % 64] > 0
                error = (guess[row, column] - tokens.content[row, i])[where]
                total, count = total + float(error.detach().square().sum()), count + float(where.sum())
    assert abs(float(method(batch)["reconstruction"].detach()) - total / count) < 1e-5


def test_a_folder_serves_other_windows_and_sequences(tmp_path: Path) -> None:
    """The learned positions keep their shape, and a sequence that joins brings its columns only."""
    found = find("eva_mae")
    method = found.build(scale="test")
    save_model(tmp_path, method, name="eva_mae", recipe=found.recipe(scale="test"))
    larger = load_model(tmp_path, size=(48, 32, 32)).method
    assert torch.isfinite(larger(example_batch(larger))["reconstruction"])
    joined = load_model(tmp_path, sequences=("t2f", "adc"))
    assert set(joined.report.fresh) == {
        "encoder.embed.linear.adc.weight",
        "decoder.head.adc.weight",
        "decoder.head.adc.bias",
    }


def test_sizes_are_those_of_primus() -> None:
    """Parameters of the published encoders with one channel: blocks, norm, embedding, positions of 20^3 cubes."""
    for scale, depth, width in (("small", 12, 396), ("base", 12, 792), ("medium", 16, 864), ("large", 24, 1056)):
        recipe = find("eva_mae").recipe(scale=scale)
        assert (recipe["depth"], recipe["width"]) == (depth, width)
        assert recipe["width"] % (6 * recipe["heads"]) == 0
        assert recipe["width"] % (6 * recipe["decoder_heads"]) == 0
