"""SatMAE: groups of bands in a stated order, codes of group and date, two kinds of masks."""

from __future__ import annotations

import pytest
import torch

from medmae.core.errors import UsageError
from medmae.core.grid import Grid
from medmae.core.tokens import MaskPlan, take
from medmae.find import find
from medmae.testing import example_batch
from medmae.testing.batches import awake

GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
DATES = {"groups": ((0, 1, 2), (3, 4, 5), (6, 7, 8)), "stamps": 3, "code_width": 24, "decoder_code_width": 12}


def build(**options: object) -> torch.nn.Module:
    torch.manual_seed(4)
    return awake(find("satmae").build(scale="test", **({"groups": GROUPS} | options)))


def test_a_perfect_guess_in_the_order_of_the_groups_costs_nothing() -> None:
    method = build()
    batch = example_batch(method)
    assert batch["image"].shape == (3, 10, 32, 32)
    in_groups = [Grid((32, 32), (8, 8), len(group)).patchify(batch["image"][:, list(group)]) for group in GROUPS]
    rows = torch.cat([torch.nn.functional.pad(x, (0, 256 - x.shape[-1])) for x in in_groups], 1)
    method.guess = lambda tokens, plan: take(rows, plan.target)
    assert float(method(batch)["reconstruction"]) == 0
    wrong = [batch["image"][:, start:stop] for start, stop in ((0, 4), (4, 8), (8, 10))]  # the order of the image
    in_image = [Grid((32, 32), (8, 8), x.shape[1]).patchify(x) for x in wrong]
    rows = torch.cat([torch.nn.functional.pad(x, (0, 256 - x.shape[-1])) for x in in_image], 1)
    assert float(method(batch)["reconstruction"]) > 0.1


def test_every_hidden_token_counts_alike_whatever_its_bands() -> None:
    method = build()
    batch = example_batch(method)
    plan, tokens = method.plan(batch), method.tokenizer(batch)
    with torch.no_grad():
        guess, loss = method.guess(tokens, plan), method(batch)["reconstruction"]
    truth, total = take(tokens.content, plan.target), 0.0
    for i, group in enumerate(GROUPS):
        error = (guess - truth)[..., : 64 * len(group)].square().mean(-1)
        total += float(error[plan.target // 16 == i].sum())
    assert abs(float(loss) - total / plan.target.numel()) < 1e-5


def test_masks_are_independent_or_the_same_in_all_groups() -> None:
    batch = example_batch(build())
    seen = {}
    for masking in ("independent", "consistent"):
        plan = build(masking=masking).plan(batch)
        assert plan.visible.shape == (3, 12)
        seen[masking] = torch.zeros(3, 48).scatter(1, plan.visible, 1.0).view(3, 3, 16)
    same = seen["consistent"]
    assert torch.equal(same, same[:, :1].expand_as(same))
    assert not torch.equal(seen["independent"][:, 0], seen["independent"][:, 1])
    with pytest.raises(UsageError, match="masking"):
        build(masking="tube")


def test_groups_at_one_place_differ_in_the_code_of_the_group_only() -> None:
    method = build()
    tokens = method.tokenizer(example_batch(method))
    for positions in (method.encoder.positions, method.decoder.inner.positions):
        codes = positions(tokens.layout.coords)[0].view(3, 16, 48)
        assert torch.equal(codes[0, :, :32], codes[2, :, :32])
        assert torch.equal(codes[:, 0, 32:], codes[:, 5, 32:])
        assert not torch.equal(codes[0, :, 32:], codes[2, :, 32:])
        assert not torch.equal(codes[0, 0, :32], codes[0, 5, :32])


def test_a_group_that_is_hidden_whole_is_a_group_that_is_not_there() -> None:
    method = build()
    batch = example_batch(method)
    tokens = method.tokenizer(batch)
    plan = MaskPlan(torch.arange(32).expand(3, -1), torch.arange(32, 48).expand(3, -1))
    other = batch | {"image": batch["image"].clone()}
    other["image"][:, [8, 9]] = torch.randn(3, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(method.guess(tokens, plan), method.guess(method.tokenizer(other), plan))
        two = build(groups=GROUPS[:2])
        state = {name: value for name, value in method.encoder.state_dict().items() if "group2" not in name}
        two.encoder.load_state_dict(state, strict=True)
        short = two.tokenizer({"image": batch["image"][:, :8]})
        mine = method.encoder(tokens.at(plan.visible), tokens.layout).tokens.content
        torch.testing.assert_close(two.encoder(short, short.layout).tokens.content, mine, atol=1e-6, rtol=1e-5)


def test_dates_are_data() -> None:
    method = build(**DATES)
    batch = example_batch(method)
    with pytest.raises(ValueError, match="no 'time'"):
        method(batch)
    batch["time"] = torch.tensor([[2010.0, 3, 12], [2012, 7, 9], [2015, 1, 15]]).expand(3, -1, -1).clone()
    first = method(batch)["reconstruction"]
    later = batch | {"time": batch["time"] + torch.tensor([0.0, 1, 0])}
    assert not torch.equal(method(later)["reconstruction"], first)
    first.backward()
    assert not any(name.startswith("decoder.heads") for name, _ in method.named_parameters())
    missing = [name for name, p in method.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == []
    # Images and their dates in another order are the same set: embedding and head are shared.
    turned = batch | {"image": batch["image"].roll(3, 1), "time": batch["time"].roll(1, 1)}
    one, two = (method.encoder(t, t.layout).prefix for t in (method.tokenizer(batch), method.tokenizer(turned)))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match="as many bands"):
        build(**(DATES | {"groups": ((0, 1), (2,))}))


def test_the_code_of_a_date_is_that_of_its_year_month_and_hour() -> None:
    """Sines and cosines of years since 2002, of months and of hours, 128 each, behind the code of the place."""
    method = find("satmae").build(preset="temporal", depth=1, decoder_depth=1, size=(32, 32))
    time = torch.tensor([[[14.0, 4, 10], [15, 10, 0], [0, 0, 23]]])
    coords = method.tokenizer({"image": torch.zeros(1, 9, 32, 32), "time": time}).layout.coords
    for positions, width, each in ((method.encoder.positions, 1024, 128), (method.decoder.positions, 512, 64)):
        codes = positions(coords)
        assert codes.shape == (1, 3 * 4, width)
        angle = time[0, :, :, None] / 10000 ** (torch.arange(each // 2) / (each / 2))
        expected = torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
        found = codes[0, ::4, width - 3 * each :]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_published_sizes() -> None:
    """Sentinel-2: 144 places in three groups; three photographs of 196 places."""
    for preset, tokens in (("spectral", 432), ("temporal", 588)):
        with torch.device("meta"):
            method = find("satmae").build(preset=preset, depth=1, decoder_depth=1)
        assert method.tokenizer.grid.length * len(method.tokenizer.tasks) == tokens
