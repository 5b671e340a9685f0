"""The generic step is exactly its parts, put together."""

from __future__ import annotations

import pytest
import torch

from medmae.core.autoencoder import Autoencoder
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import masked_mean, mse
from medmae.core.target import Features
from medmae.core.tokens import MaskPlan, take
from medmae.find import find
from medmae.testing import example_batch, mixed_batch


def test_the_step_is_its_parts() -> None:
    method = find("bm_mae").build(scale="test").eval()
    for batch in (example_batch(method), mixed_batch(method)):
        tokens = method.tokenizer(batch)
        plan = method.sampler(tokens, batch["key"])
        assert torch.equal(method.plan(batch).target, plan.target)
        seen = tokens.at(plan.visible, ragged=True)
        queries = tokens.layout.at(plan.target, ragged=True)
        guess = method.decoder(method.encoder(seen, tokens.layout), queries)
        error = mse(guess, take(tokens.content, plan.target))
        by = take(tokens.layout.modality, plan.target)
        loss = masked_mean(error, plan.weights(), by=by, groups=4, reduce="mean")
        torch.testing.assert_close(method(batch)["reconstruction"], loss, atol=0, rtol=0)
        torch.testing.assert_close(method(batch, plan)["reconstruction"], loss, atol=0, rtol=0)


def test_a_plan_may_be_handed_in_without_a_key() -> None:
    method = find("mae").build(scale="test")
    batch = example_batch(method)
    del batch["key"]
    ids = torch.arange(16).expand(3, -1)
    loss = method(batch, MaskPlan(ids[:, :4], ids[:, 4:]))["reconstruction"]
    assert bool(loss.isfinite())


def test_visible_and_asked_may_overlap() -> None:
    method = find("bm_mae").build(scale="test").eval()
    batch = example_batch(method)
    everything = torch.arange(256).expand(3, -1)
    tokens = method.tokenizer(batch)
    guess = method.guess(tokens, MaskPlan(everything, everything))
    assert guess.shape == tokens.content.shape
    assert bool(guess.isfinite().all())


def test_no_visible_token_and_no_target_are_both_finite() -> None:
    method = find("bm_mae").build(scale="test")
    batch = example_batch(method)
    nothing, everything = torch.full((3, 1), -1), torch.arange(256).expand(3, -1)
    for plan in (MaskPlan(nothing, everything, ragged=True), MaskPlan(everything, nothing, ragged=True)):
        loss = method(batch, plan)["reconstruction"]
        loss.backward()
        assert bool(loss.isfinite())
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in method.parameters())


def test_only_a_following_target_changes_after_a_step() -> None:
    method = find("mae").build(scale="test")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.after_step()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    method.target = Features(method.encoder, momentum=0.5)
    with torch.no_grad():
        method.encoder.prefix_tokens += 2
    method.after_step()
    moved = method.target.teacher.prefix_tokens - before["encoder.prefix_tokens"]
    torch.testing.assert_close(moved, torch.ones_like(moved))


def test_an_unknown_reduction_is_refused_when_the_method_is_built() -> None:
    parts = ("tokenizer", "sampler", "encoder", "decoder", "target", "distance")
    method = find("bm_mae").build(scale="test")
    with pytest.raises(ValueError, match="reduce must be"):
        Autoencoder(**{part: getattr(method, part) for part in parts}, reduce="max")


@pytest.mark.parametrize("lacking", [None, [(), (0, 1, 2, 3), (1,)], [(0, 1, 2, 3)] * 3])
@pytest.mark.parametrize("ratio", [0.0, 0.999])
def test_extreme_ratios_and_empty_patients_train(ratio: float, lacking: list | None) -> None:
    """Nothing visible, nothing asked, nothing there at all."""
    method = find("bm_mae").build(scale="test", size=(16, 16, 16), mask_ratio=ratio)
    batch = example_batch(method, lacking=lacking)
    loss = method(batch)["reconstruction"]
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in method.parameters())


def test_without_prefix_tokens_nothing_visible_is_finite_too() -> None:
    """No key to attend to in one sample, and no token at all in a batch."""
    method = find("bm_mae").build(scale="test", size=(16, 16, 16))
    method.encoder.prefix_tokens = torch.nn.Parameter(torch.zeros(1, 0, method.encoder.width))
    for lacking in ([(0, 1, 2, 3), (), (1,)], [(0, 1, 2, 3)] * 3):
        loss = method(example_batch(method, lacking=lacking))["reconstruction"]
        loss.backward()
        assert bool(loss.isfinite())
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in method.parameters())


def test_values_outside_the_foreground_are_neither_guessed_nor_averaged() -> None:
    grid = Grid((4, 4), (2, 2), channels=2)
    batch = {"x": torch.randn(2, 2, 4, 4), "key": torch.arange(2), "foreground": torch.zeros(2, 1, 4, 4)}
    batch["foreground"][:, :, :3, 1:] = 1
    tokenizer = ModalityGrid(("x",), grid)
    counts = tokenizer.counts(batch)
    assert counts is not None
    assert torch.equal(grid.unpatchify(counts), batch["foreground"].expand(-1, 2, -1, -1))
    assert tokenizer.counts({"x": batch["x"]}) is None
    method = find("mae").build(scale="test", size=(4, 4), patch=(2, 2), channels=2, normalize_target=False)
    method.tokenizer, method.sequences, method.foreground_values = tokenizer, ("x",), True
    plan = MaskPlan(torch.tensor([[0], [1]]), torch.tensor([[1, 2, 3], [0, 2, 3]]))
    truth = tokenizer(batch).content
    method.guess = lambda tokens, plan: take(truth, plan.target) + 2.0  # type: ignore[method-assign]
    assert float(method(batch, plan)["reconstruction"]) == pytest.approx(4.0)
    wrong = truth + 5.0 * (1 - counts)  # only where nothing counts
    method.guess = lambda tokens, plan: take(wrong, plan.target)  # type: ignore[method-assign]
    assert float(method(batch, plan)["reconstruction"]) == pytest.approx(0.0, abs=1e-12)
