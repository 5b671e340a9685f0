"""The published preset against the straightforward implementation in ``benchmarks``: the same loss, the same
gradients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medmae.core.autoencoder import Autoencoder
from medmae.core.tokens import MaskPlan
from medmae.find import find

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
naive_bm_mae = pytest.importorskip("naive_bm_mae", reason="the benchmarks are not here (installed package)")

OURS = ("t1n", "t1c", "t2w", "t2f")
SMALL: dict[str, Any] = {
    "size": (16, 24, 32), "patch": (8, 8, 8), "width": 48, "depth": 2, "heads": 4,
    "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 4,
}  # fmt: skip


def pair(*, fused: bool, needed: bool, **sizes: Any) -> tuple[Any, Autoencoder]:
    torch.manual_seed(3)
    hidden = 4 * sizes.get("decoder_width", 384)
    naive = naive_bm_mae.NaiveBMMAE(**sizes, decoder_hidden=hidden, decoder_dropout=0.0, fused=fused, needed=needed)
    method = find("bm_mae").build(preset="published", **(sizes | {"decoder_dropout": 0.0}))
    assert isinstance(method, Autoencoder)
    naive_bm_mae.copy_weights(naive, method)
    return naive, method


def compare(naive: Any, method: Autoencoder, batch: int) -> tuple[float, float, float]:
    """Largest differences: loss over the loss, gradients, gradients over the largest entry of each."""
    draw = torch.Generator().manual_seed(5)
    images = {name: torch.randn(batch, 1, *method.tokenizer.grid.size, generator=draw) for name in naive_bm_mae.NAMES}
    ours = dict(zip(OURS, images.values(), strict=True)) | {"key": torch.arange(batch)}
    plan: MaskPlan = method.plan(ours)
    mask = torch.ones(batch, 4 * method.tokenizer.grid.length).scatter(1, plan.visible, 0.0)
    theirs = naive(images, mask)
    theirs.backward()
    own = method(ours, plan)["reconstruction"]
    own.backward()
    own, theirs = own.detach(), theirs.detach()
    wanted = naive_bm_mae.gradients(naive)
    apart, relative = 0.0, 0.0
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert name in wanted, name
        difference = float((parameter.grad - wanted[name]).abs().max())
        apart = max(apart, difference)
        relative = max(relative, difference / float(wanted[name].abs().max().clamp_min(1e-12)))
    return abs(float(own) - float(theirs)) / float(theirs), apart, relative


@pytest.mark.parametrize(("fused", "needed"), [(False, False), (True, True)])
def test_loss_and_gradients_are_equal(fused: bool, needed: bool) -> None:
    loss, gradient, _ = compare(*pair(fused=fused, needed=needed, **SMALL), batch=3)
    assert loss < 1e-6
    assert gradient < 1e-5


def test_a_planted_fault_is_seen() -> None:
    naive, method = pair(fused=False, needed=False, **SMALL)
    with torch.no_grad():
        method.decoder.modality["t1c"].add_(1e-2 * torch.randn_like(method.decoder.modality["t1c"]))
    loss, gradient, _ = compare(naive, method, batch=1)
    assert loss > 1e-6 or gradient > 1e-5


def test_own_draws_keep_a_quarter() -> None:
    naive, _ = pair(fused=False, needed=False, **SMALL)
    mask = naive.draw(5, 96)
    assert ((mask == 0).sum(1) == 24).all()


@pytest.mark.slow
def test_loss_and_gradients_are_equal_at_full_size() -> None:
    loss, gradient, relative = compare(*pair(fused=False, needed=False), batch=1)
    print(f"full size: loss {loss:.2e}, gradients {gradient:.2e}, relative to the largest {relative:.2e}")
    assert loss < 1e-6
    assert gradient < 1e-5
