"""CA-MAE: channels without names in the encoder, decoders with them, and the spectrum of completed images."""

from __future__ import annotations

import pytest
import torch

from medmae.core.tokens import MaskPlan
from medmae.find import find
from medmae.nets.embed import ModalityEmbed
from medmae.testing import example_batch
from medmae.testing.batches import awake

SIX = ("a", "b", "c", "d", "e", "f")


def build(names: tuple[str, ...] = SIX, **options: object) -> torch.nn.Module:
    torch.manual_seed(4)
    return awake(find("ca_mae").build(scale="test", sequences=names, **options))


def features(method: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[CLS] and the mean over tokens, with everything visible."""
    tokens = method.tokenizer(batch)
    with torch.no_grad():
        encoded = method.encoder(tokens, tokens.layout)
    return encoded.prefix[:, 0], encoded.tokens.content.mean(1)


def permuted(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch | {name: batch[other] for name, other in zip(SIX, (*SIX[2:], *SIX[:2]), strict=True)}


def test_the_order_of_channels_does_not_matter() -> None:
    method = build()
    batch = example_batch(method)
    for mine, other in zip(features(method, batch), features(method, permuted(batch)), strict=True):
        assert float(mine.abs().max()) > 0.1
        assert float((mine - other).abs().max()) < 2e-6


@pytest.mark.parametrize("fault", ["an embedding per channel", "a code per channel"])
def test_an_encoder_that_tells_channels_apart_is_caught(fault: str) -> None:
    method = build()
    torch.manual_seed(5)
    each = ModalityEmbed(SIX, 64, 48, tag=fault == "a code per channel")
    if fault == "a code per channel":
        for linear in each.linear.values():
            linear.load_state_dict(method.encoder.embed.linear.state_dict())
    method.encoder.embed = each
    batch = example_batch(method)
    pairs = list(zip(features(method, batch), features(method, permuted(batch)), strict=True))
    assert max(float((mine - other).abs().max()) for mine, other in pairs) > 1e-3


def test_any_subset_of_channels_is_an_input() -> None:
    method, few = build(), build(("e", "b", "f", "a"))
    few.encoder.load_state_dict(method.encoder.state_dict(), strict=True)
    batch = example_batch(method)
    lacking = example_batch(method, lacking=((2, 3),) * 3)
    cls = features(few, batch)[0]
    tokens = method.tokenizer(lacking)
    with torch.no_grad():
        other = method.encoder(tokens, tokens.layout).prefix[:, 0]
    assert float((cls - other).abs().max()) < 2e-6
    for loss in method(lacking).values():
        assert bool(loss.isfinite())


def test_completed_images_hold_guesses_where_they_were_asked() -> None:
    method = build(("a", "b", "c"))
    batch = example_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    whole = torch.cat([batch[name] for name in ("a", "b", "c")], 1)
    assert torch.equal(method.images(tokens.content), whole)
    guess = torch.full((3, plan.target.shape[1], 64), 9.0)
    hidden = torch.zeros(3, 48, dtype=torch.bool).scatter(1, plan.target, True)
    held = method.tokenizer.voxels(hidden)
    where = torch.cat([held[name] for name in ("a", "b", "c")], 1)
    assert torch.equal(method.images(method.painted(tokens, plan, guess)), torch.where(where, 9.0, whole))
    padded = MaskPlan(plan.visible, torch.nn.functional.pad(plan.target, (0, 2), value=-1), ragged=True)
    more = torch.nn.functional.pad(guess, (0, 0, 0, 2), value=5.0)
    assert torch.equal(method.painted(tokens, padded, more), method.painted(tokens, plan, guess))


def test_the_loss_on_magnitudes_in_plain_torch() -> None:
    method = build(("a", "b", "c"))
    batch = example_batch(method, lacking=((), (1,), ()))
    plan, tokens = method.plan(batch), method.tokenizer(batch)
    with torch.no_grad():
        made = method.images(method.painted(tokens, plan, method.guess(tokens, plan)))
        losses = method(batch)
        plain = build(("a", "b", "c"), fourier=0.0)(batch)
    whole = torch.cat([batch[name] for name in ("a", "b", "c")], 1)
    apart = (torch.fft.fft2(made).abs() - torch.fft.fft2(whole).abs()).abs().mean((2, 3)) / 32  # unitary: / sqrt(1024)
    there = batch["present"].float()
    expected = 0.01 * (apart * there).sum() / there.sum()
    torch.testing.assert_close(losses["fourier"], expected, atol=1e-7, rtol=1e-4)
    assert set(plain) == {"reconstruction"}
    assert torch.equal(plain["reconstruction"], losses["reconstruction"])


def test_mask_tokens_are_part_of_the_context() -> None:
    """Unlike MultiMAE's, these decoders let hidden places speak: a guess about a visible place changes too."""
    method = build(("a", "b", "c"), decoder_depth=0)
    batch = example_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    encoded = method.encoder(tokens.at(plan.visible), tokens.layout)
    queries = tokens.layout.at(plan.visible)
    with torch.no_grad():
        before = method.decoder(encoded, queries)
        method.decoder.mask_token.add_(torch.randn(48))
        after = method.decoder(encoded, queries)
    assert float((after - before).abs().max()) > 1e-3


def test_the_encoder_has_no_parameter_of_a_channel() -> None:
    names = [name for name, _ in build().encoder.named_parameters()]
    assert not any(part in SIX for name in names for part in name.split("."))
