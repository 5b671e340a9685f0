"""Audio-MAE and Bird-MAE: token counts, masks of bands, positions, the reach of the decoder, and their settings."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medmae.audio.parts import Turned, bands
from medmae.config import load_config
from medmae.core.errors import UsageError
from medmae.core.grid import Grid
from medmae.core.method import Method
from medmae.core.sound import Frontend
from medmae.core.tokens import Tokens
from medmae.engine.settings import train_settings
from medmae.find import find
from medmae.nets.prototype import PrototypeHead
from medmae.testing import CHECKS, example_batch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {"width": 12, "depth": 1, "heads": 1, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 1}


def test_102_of_512_tokens_and_64_of_256() -> None:
    for name, frames, counts in (("audio_mae", 1024, (102, 410)), ("bird_mae", 512, (64, 192))):
        method = find(name).build(**SMALL)
        plan = method.plan({"spectrogram": torch.zeros(2, 1, frames, 128), "key": torch.arange(2)})
        assert (plan.visible.shape[1], plan.target.shape[1]) == counts


def test_tokens_are_time_major() -> None:
    """Token t * 8 + f is frames 16 t to 16 t + 15 and bins 16 f to 16 f + 15."""
    method = find("audio_mae").build(**SMALL)
    image = torch.zeros(1, 1, 1024, 128)
    image[0, 0, 16 * 5 + 3, 16 * 2 + 1] = 1
    tokens = method.tokenizer({"spectrogram": image})
    assert tokens.content[0].amax(1).nonzero().flatten().tolist() == [5 * 8 + 2]
    assert tokens.layout.coords[0, 5 * 8 + 2].tolist() == [5, 2]


def test_bands_are_whole_and_what_is_left_is_a_product() -> None:
    method = find("audio_mae").build(**SMALL, band_ratios=(0.7, 0.3))
    batch = {"spectrogram": torch.zeros(6, 1, 1024, 128), "key": torch.arange(6)}
    plan = method.plan(batch)
    assert plan.visible.shape == (6, 95)  # int(64 * 0.3) * int(8 * 0.7)
    assert plan.target.shape == (6, 417)
    seen = torch.zeros(6, 512, dtype=torch.bool).scatter(1, plan.visible, True).view(6, 64, 8)
    assert torch.equal(seen, seen.any(2, keepdim=True) & seen.any(1, keepdim=True))
    assert seen.any(2).sum(1).tolist() == [19] * 6
    assert len({tuple(row.any(1).nonzero().flatten().tolist()) for row in seen}) == 6
    square = find("audio_mae").build(**SMALL, size=(128, 128), band_ratios=(0.5, 0.5))
    plan = square.plan({"spectrogram": torch.zeros(40, 1, 128, 128), "key": torch.arange(40)})
    seen = torch.zeros(40, 64, dtype=torch.bool).scatter(1, plan.visible, True).view(40, 8, 8)
    both = (seen.any(1) & seen.any(2)).sum(1).float()  # numbers that are hidden in time and in frequency are unrelated
    assert 1.5 < float(both.mean()) < 2.5
    for ratios in ((1.0, 0.5), (0.5, 0.9), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="band ratios"):
            bands((64, 8), ratios)


def test_neighbors_on_the_grid_are_neighbors_in_position_unless_compat_is_asked_for() -> None:
    coords = Grid((1024, 128), (16, 16)).indices()[None]
    for compat in (False, True):
        method = find("audio_mae").build(**SMALL | {"width": 64}, compat=compat)
        table = method.encoder.positions(coords)[0]
        assert len(table.unique(dim=0)) == 512
        here = table.view(64, 8, -1)[32, 4]
        nearest = (table - here).norm(dim=1).argsort()[1:5].tolist()
        right = sorted(nearest) == sorted([31 * 8 + 4, 33 * 8 + 4, 32 * 8 + 3, 32 * 8 + 5])
        assert right != compat
    turned = Turned((64, 8), 64)(coords)[0]
    wide = find("audio_mae").build(**SMALL | {"width": 64}, size=(128, 1024))
    assert torch.equal(turned, wide.encoder.positions(Grid((128, 1024), (16, 16)).indices()[None])[0])


def test_a_token_of_the_decoder_reaches_its_windows_only() -> None:
    """One of the decoder's inputs is changed; with global attention everything changes."""
    for kind, far in (("window", False), ("global", True)):
        method = find("audio_mae").build(**SMALL, size=(256, 128), decoder=kind).eval()
        with torch.no_grad():
            for parameter in method.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        tokens = method.tokenizer(example_batch(method, samples=1))
        ids = torch.arange(128)[None]
        encoded = method.encoder(tokens.at(ids), tokens.layout)
        content = encoded.tokens.content.clone()
        content[0, 9 * 8 + 6] += 1.0
        other = replace(encoded, tokens=Tokens(encoded.tokens.layout, content))
        change = (method.decoder(other, tokens.layout) - method.decoder(encoded, tokens.layout)).abs().amax(-1)
        reached = (change > 0).view(16, 8)
        expected = torch.zeros(16, 8, dtype=torch.bool)
        expected[6:14, 4:] = True  # windows of frames 8 to 11, then the shifted ones of 6 to 9 and 10 to 13
        assert bool(reached.all()) if far else torch.equal(reached, expected)


def test_the_window_decoder_gets_no_cls() -> None:
    method = find("audio_mae").build(scale="test").eval()
    tokens = method.tokenizer(example_batch(method))
    encoded = method.encoder(tokens, tokens.layout)
    other = replace(encoded, prefix=encoded.prefix + 1)
    assert torch.equal(method.decoder(encoded, tokens.layout), method.decoder(other, tokens.layout))


VARIANTS: dict[str, dict[str, Any]] = {
    "global": {"decoder": "global"},
    "bands": {"band_ratios": (0.5, 0.5)},
    "compat, odd shifts": {"compat": True, "shift": (1, 2)},
    "few bands": {"size": (64, 16)},
}


@pytest.mark.parametrize(
    "check",
    ["finite_named_losses", "hidden_content_never_leaks", "padding_is_inert", "plan_is_sound", "asked_is_hidden",
     "perfect_prediction_costs_nothing", "gradients_reach_every_parameter", "finite_in_bfloat16"],
)  # fmt: skip
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_conforms(name: str, check: str) -> None:
    found = find("audio_mae")

    @functools.wraps(found.builder)
    def builder(**recipe: Any) -> Method:
        return found.builder(**(recipe | VARIANTS[name]))

    CHECKS[check](replace(found, builder=builder))


def test_each_method_says_how_it_wants_its_sound() -> None:
    listen, birds = find("audio_mae").build(**SMALL).frontend, find("bird_mae").build(**SMALL).frontend
    assert listen == Frontend(16000, 1024, 128, -4.2677393, 4.5689974)
    assert birds == Frontend(32000, 512, 128, -7.2, 4.43, fill="minimum")
    assert birds(torch.randn(5 * 32000)).shape == (1, 512, 128)
    assert listen(torch.randn(2, 10 * 16000)).shape == (2, 1, 1024, 128)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not divide a grid"):
        find("audio_mae").build(**SMALL, size=(96, 128), window=(4, 4))
    with pytest.raises(UsageError, match="not a multiple of patch"):
        find("bird_mae").build(size=(500, 128))


def test_from_a_wave_to_a_probe() -> None:
    """Two kinds of calls: frontend, frozen encoder, prototypes."""
    method = find("bird_mae").build(scale="test").eval()
    frontend = replace(method.frontend, frames=64, bins=32)
    t = torch.arange(24000) / 32000
    waves = torch.stack([torch.sin(2 * math.pi * f * t) for f in (1000, 4000)]) + 0.01 * torch.randn(2, 24000)
    tokens = method.tokenizer({"spectrogram": frontend(waves)})
    with torch.no_grad():
        encoded = method.encoder(tokens, tokens.layout)
    logits = PrototypeHead(48, 2, grid=(8, 4))(encoded)
    logits.sum().backward()
    assert logits.shape == (2, 2)
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize(("name", "millions"), [("audio_mae", 136), ("bird_mae", 328)])
def test_shipped_configs(name: str, millions: int) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert set(config) == {"method", "train"}
    train_settings(config["train"])
    options = dict(config["method"])
    with torch.device("meta"):
        method = find(options.pop("name")).build(**options)
    assert round(sum(parameter.numel() for parameter in method.parameters()) / 1e6) == millions
