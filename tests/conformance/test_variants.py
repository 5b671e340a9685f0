"""The options of a method hold the checks too, and not only its defaults."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from medmae.core.method import Method
from medmae.find import Found, find
from medmae.testing import CHECKS

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "millimeters": ("bm_mae", {"coords": "mm"}),
    "normalized target": ("bm_mae", {"normalize_target": True}),
    "as published": ("bm_mae", {**find("bm_mae").presets["published"], "size": (32, 32, 32)}),
    "one sequence": ("bm_mae", {"sequences": ("t1n",)}),
    "six sequences, half hidden": (
        "bm_mae",
        {"sequences": ("t1n", "t1c", "t2w", "t2f", "adc", "swi"), "mask_ratio": 0.5, "size": (16, 16, 16)},
    ),
    "anisotropic": ("bm_mae", {"size": (32, 24, 8), "patch": (8, 8, 2)}),
    "always completing": ("bm_mae", {"complete": 1.0, "drop": 0.0}),
    "raw pixels, three axes": (
        "mae",
        {"size": (16, 16, 8), "patch": (8, 4, 4), "channels": 2, "normalize_target": False},
    ),
    "all visible places decoded, as published": ("videomae_v2", {"decode_visible": True}),
    "anisotropic clip, odd rows": ("videomae_v2", {"size": (6, 24, 40), "channels": 2, "decode": 0.3}),
    "volumes of four sequences, sparse convolutions": (
        "fcmae",
        {"sequences": ("t1n", "t1c", "t2w", "t2f"), "channels": 1, "size": (16, 8, 24), "foreground_loss": True},
    ),
    "four volumes with a decoder each": (
        "multimae",
        {"sequences": ("t1n", "t1c", "t2w", "t2f"), "size": (16, 16, 8), "patch": (8, 8, 4), "uniform_subsets": True},
    ),
    "sequences as channels": ("ca_mae", {"sequences": ("t1n", "t2f"), "size": (16, 16, 8), "patch": (8, 4, 4)}),
    "same places in all groups": ("satmae", {"masking": "consistent", "normalize_target": True}),
    "no [CLS], one table, every frame": ("mae_st", {"cls": False, "separable": False, "target_stride": 1}),
}
WANTED = (
    "finite_named_losses",
    "hidden_content_never_leaks",
    "padding_is_inert",
    "missing_modality_does_not_matter",
    "plan_is_sound",
    "perfect_prediction_costs_nothing",
    "everything_visible_is_the_plain_network",
)


def variant(name: str) -> Found:
    method, options = VARIANTS[name]
    found = find(method)

    @functools.wraps(found.builder)
    def builder(**recipe: Any) -> Method:
        return found.builder(**(recipe | options))

    return replace(found, builder=builder)


@pytest.mark.parametrize("check", WANTED)
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_conforms(name: str, check: str) -> None:
    CHECKS[check](variant(name))
