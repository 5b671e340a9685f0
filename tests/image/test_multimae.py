"""MultiMAE: shares and subsets of tasks, decoders that see visible tokens only, losses that do not mix."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.core.errors import UsageError
from medmae.core.tokens import MaskPlan, TokenLayout, Tokens, take
from medmae.find import find
from medmae.image.parts import TruncatedStandard
from medmae.nets.tasks import ClassEmbed
from medmae.testing import example_batch
from medmae.testing.batches import awake

LOSSES = ("rgb", "rgb_normalized", "depth", "semseg")
TINY = {"width": 12, "depth": 1, "heads": 1, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 1}


def build(**options: object) -> torch.nn.Module:
    torch.manual_seed(4)
    return awake(find("multimae").build(scale="test", **options))


def test_98_of_588_tokens_are_visible() -> None:
    method = find("multimae").build(**TINY)
    batch = {"rgb": torch.zeros(2, 3, 224, 224), "depth": torch.zeros(2, 1, 224, 224)}
    plan = method.plan(batch | {"semseg": torch.zeros(2, 1, 56, 56), "key": torch.arange(2)})
    assert plan.visible.shape == (2, 98)
    assert plan.target.shape == (2, 490)


def test_every_subset_of_tasks_is_as_likely() -> None:
    """Of 15 subsets of four tasks: one, two, three or all of them in 4, 6, 4 and 1 cases."""
    options = {"sequences": ("a", "b", "c", "d"), "size": (64, 64), "patch": (8, 8), "alpha": 1000.0, **TINY}
    method = find("multimae").build(uniform_subsets=True, mask_ratio=0.9, **options)
    n = 4000
    blank = torch.zeros(n, 256, 1)
    layout = method.tokenizer.layout({}, like=blank)
    plan = method.sampler(Tokens(layout, blank), torch.arange(n))
    seen = torch.zeros(n, 4).scatter_add(1, plan.visible.clamp_min(0) // 64, (plan.visible >= 0).float())
    count = Counter((seen > 0).sum(1).tolist())
    for tasks, share in {1: 4 / 15, 2: 6 / 15, 3: 4 / 15, 4: 1 / 15}.items():
        assert abs(count[tasks] / n - share) < 0.03
    assert bool((plan.visible >= 0).sum(1).eq(25).all())
    never = find("multimae").build(mask_ratio=0.9, **options)
    plan = never.sampler(Tokens(layout, blank), torch.arange(n))
    assert all(len(set((row // 64).tolist())) == 4 for row in plan.visible[:200])


def test_mask_tokens_do_not_speak() -> None:
    """Without blocks, noise on the mask token changes guesses at hidden places, and none at visible ones."""
    method = build(decoder_depth=0)
    batch = example_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    encoded = method.encoder(tokens.at(plan.visible), tokens.layout)

    def guesses() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return tuple(method.decoder(encoded, tokens.layout.at(ids)) for ids in (plan.visible, plan.target))

    before = guesses()
    with torch.no_grad():
        for decoder in method.decoder.each.values():
            decoder.mask_token.add_(torch.randn(48))
    after = guesses()
    assert torch.equal(before[0], after[0])
    assert float((before[1] - after[1]).abs().max()) > 0.01


def test_the_loss_of_a_task_trains_its_own_decoder_only() -> None:
    method = build()
    batch = example_batch(method)
    losses = method(batch)
    assert tuple(losses) == LOSSES
    for name, loss in losses.items():
        method.zero_grad()
        loss.backward(retain_graph=True)
        for other, decoder in method.decoder.each.items():
            size = sum(float(p.grad.abs().sum()) for p in decoder.parameters() if p.grad is not None)
            assert (size > 0) == (name == other), f"the loss {name} trains the decoder {other}"
        assert float(method.encoder.blocks[0].attn.qkv.weight.grad.abs().sum()) > 0
    alone = build()
    changed = method(batch | {"semseg": batch["semseg"] * 0})
    assert all(torch.equal(alone(batch)[name], losses[name]) for name in LOSSES)
    assert not torch.equal(changed["semseg"], losses["semseg"])


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_perfect_guesses_cost_nothing(off: float) -> None:
    method = build()

    def perfect(tokens: Tokens, plan: MaskPlan) -> Tensor:
        truth = method.target(tokens)
        rgb, depth, semseg = truth.split(16, 1)
        labels = (semseg[..., :4].long() + int(off)) % 5
        logits = 50.0 * F.one_hot(labels, 5).float().flatten(2)
        rows = [F.pad(x, (0, method.target.width - x.shape[-1])) for x in (rgb + off, depth + off, logits)]
        return take(torch.cat(rows, 1), plan.target)

    method.guess = perfect
    for batch in (example_batch(method), example_batch(method, lacking=((1,), (0, 2), ()))):
        for name, loss in method(batch).items():
            assert (float(loss) < 1e-6) == (off == 0), name


def test_losses_are_means_over_samples_of_means_over_hidden_tokens() -> None:
    method = build()
    batch = example_batch(method, lacking=((), (1,), ()))
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    with torch.no_grad():
        losses, guess = method(batch), method.guess(tokens, plan)
        everywhere = method.guess(tokens, MaskPlan(plan.visible, torch.arange(48).expand(3, -1), ragged=True))
    hidden = torch.zeros(3, 49).scatter(1, plan.target.where(plan.target >= 0, 48), 1.0)[:, :48].bool()
    assert torch.allclose(everywhere[0][plan.target[0]], guess[0][: plan.target.shape[1]], atol=1e-5)

    def patches(name: str, channels: int, edge: int) -> Tensor:
        image = batch[name].unflatten(2, (4, edge)).unflatten(4, (4, edge))
        return image.permute(0, 2, 4, 3, 5, 1).reshape(3, 16, edge * edge * channels)

    rgb, depth, labels = patches("rgb", 3, 8), patches("depth", 1, 8), patches("semseg", 1, 2).long()
    kept = batch["depth"].flatten(1).sort(1).values[:, 102:-102]
    level = (depth - kept.mean(1)[:, None, None]) / (kept.var(1) + 1e-6).sqrt()[:, None, None]
    flat = (rgb - rgb.mean(-1, keepdim=True)) / (rgb.var(-1, keepdim=True) + 1e-6).sqrt()
    logits = everywhere[:, 32:, :20].unflatten(-1, (4, 5))
    errors = {
        "rgb": (everywhere[:, :16, :192] - rgb).square().mean(-1),
        "rgb_normalized": (everywhere[:, :16, 192:384] - flat).square().mean(-1),
        "depth": (everywhere[:, 16:32, :64] - level).abs().mean(-1),
        "semseg": -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].mean(-1),
    }
    for name, error in errors.items():
        start = {"depth": 16, "semseg": 32}.get(name, 0)
        mask = hidden[:, start : start + 16]
        means = [error[i][mask[i]].mean() for i in range(3) if bool(mask[i].any())]
        assert len(means) == (2 if name == "depth" else 3)
        torch.testing.assert_close(losses[name], torch.stack(means).mean(), atol=1e-5, rtol=1e-4)


def test_a_decoder_in_plain_torch() -> None:
    method = build()
    batch = example_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    encoded = method.encoder(tokens.at(plan.visible), tokens.layout)
    w = dict(method.decoder.each["depth"].named_parameters())
    layout: TokenLayout = tokens.layout

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (48,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def mlp(x: Tensor, name: str) -> Tensor:
        return linear(F.gelu(linear(x, f"{name}.fc1")), f"{name}.fc2")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (4, 12)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.transpose(-1, -2) / 12**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    with torch.no_grad():
        codes = method.encoder.positions.__class__(48)(layout.coords)
        codes = codes + torch.stack([w[f"modality.{name}"] for name in method.sequences])[layout.modality]
        seen = linear(encoded.tokens.content, "embed")
        context = torch.cat([linear(encoded.prefix, "embed"), seen + take(codes, plan.visible)], 1)
        slots = w["mask_token"].expand(3, 48, -1).scatter(1, plan.visible[..., None].expand(-1, -1, 48), seen) + codes
        q = linear(norm(slots[:, 16:32], "layer.query_norm"), "layer.cross.q")
        k, v = linear(norm(context, "layer.context_norm"), "layer.cross.kv").chunk(2, -1)
        x = linear(attend(q, k, v), "layer.cross.proj")
        x = x + mlp(norm(x, "layer.norm"), "layer.mlp")
        inside = linear(norm(x, "blocks.0.norm1"), "blocks.0.attn.qkv").chunk(3, -1)
        x = x + linear(attend(*inside), "blocks.0.attn.proj")
        x = x + mlp(norm(x, "blocks.0.norm2"), "blocks.0.mlp")
        torch.testing.assert_close(method.decoder.each["depth"](encoded), linear(x, "head"), atol=1e-4, rtol=1e-4)


def test_void_labels_share_a_vector() -> None:
    embed = ClassEmbed(4, 5, 8)
    labels = torch.tensor([[[0.0, 1, 2, 3], [4, 255, 1, 1], [4, -1, 1, 1], [4, 5, 1, 1], [4, 4, 1, 1]]])
    out = embed(labels)
    assert torch.equal(out[0, 1], out[0, 2])
    assert torch.equal(out[0, 1], out[0, 3])
    assert not torch.equal(out[0, 1], out[0, 4])


def test_wild_depths_do_not_move_the_standard() -> None:
    method = build()
    tokens = method.tokenizer(example_batch(method))
    depth = Tokens(tokens.layout, tokens.content[:, 16:32, :64].clone())
    before = TruncatedStandard()(depth)
    depth.content[:, 0, :10] = 1e6  # ten of 1024 values
    after = TruncatedStandard()(depth)
    assert float((before[:, 1:] - after[:, 1:]).abs().max()) < 0.1
    with pytest.raises(ValueError, match="cut must be"):
        TruncatedStandard(cut=0.5)


def test_sequences_of_a_volume_are_tasks() -> None:
    names = ("t1n", "t1c", "t2w", "t2f")
    method = build(sequences=names, size=(16, 16, 16), patch=(8, 8, 8), foreground_loss=True)
    assert set(method.decoder.each) == set(names)
    batch = example_batch(method, lacking=((), (0, 1, 2), (3,)))
    losses = method(batch)
    assert tuple(losses) == names
    assert all(bool(loss.isfinite()) for loss in losses.values())
    worst = partial(torch.full_like, fill_value=1e4)
    again = method(batch | {"t2f": torch.cat([batch["t2f"][:2], worst(batch["t2f"][2:])])})
    assert all(torch.equal(again[name], losses[name]) for name in names)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="semseg cannot be 3 times coarser"):
        find("multimae").build(scale="test", coarser=(("semseg", 3),))
