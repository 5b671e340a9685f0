"""BM-MAE's published preset, derived a second time from its description in plain torch, and its acceptance checks.

The derivation embeds every patch by convolution, drops the hidden ones, restores the full sequence with an inverse
permutation, runs the head on all tokens and takes one loss per sequence. It shares no code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.core.method import Method
from medmae.core.tokens import MaskPlan, TokenLayout, Tokens, take
from medmae.find import find

NAMES = ("t1n", "t1c", "t2w", "t2f")
SMALL = {"width": 48, "depth": 2, "heads": 4, "decoder_width": 24, "decoder_depth": 2, "decoder_heads": 4}


def small(size: tuple[int, ...] = (16, 16, 24), patch: tuple[int, ...] = (8, 8, 8), **options: object) -> Method:
    """The published preset with small networks and the weights moved away from where they start."""
    torch.manual_seed(1)
    method = find("bm_mae").build(preset="published", size=size, patch=patch, decoder_dropout=0.0, **SMALL, **options)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return method


def images(method: Method, b: int = 3) -> dict[str, Tensor]:
    shape = method.tokenizer.grid.size
    return {name: torch.randn(b, 1, *shape) for name in method.sequences} | {"key": torch.arange(b) + 5}


# --- the second derivation ----------------------------------------------------------------------------------------


def position_table(shape: tuple[int, int, int], width: int) -> Tensor:
    n = width // 6
    rows = []
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                angles = [[p * 10000 ** (-q / n) for q in range(n)] for p in (j, i, k)]
                rows.append([f(a) for part in angles for f in (math.sin, math.cos) for a in part])
    return torch.tensor(rows)


def transformer(x: Tensor, w: Mapping[str, Tensor], prefix: str, depth: int, heads: int) -> Tensor:
    for i in range(depth):
        p = f"{prefix}.{i}."
        width = x.shape[-1]
        h = F.layer_norm(x, (width,), w[p + "norm1.weight"], w[p + "norm1.bias"], 1e-5)
        qkv = F.linear(h, w[p + "attn.qkv.weight"], w[p + "attn.qkv.bias"])
        q, k, v = qkv.view(*x.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        h = (attention @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(h, w[p + "attn.proj.weight"], w[p + "attn.proj.bias"])
        h = F.layer_norm(x, (width,), w[p + "norm2.weight"], w[p + "norm2.bias"], 1e-5)
        h = F.gelu(F.linear(h, w[p + "mlp.fc1.weight"], w[p + "mlp.fc1.bias"]))
        x = x + F.linear(h, w[p + "mlp.fc2.weight"], w[p + "mlp.fc2.bias"])
    return x


def naive_loss(method: Method, batch: Mapping[str, Tensor], visible: Tensor) -> Tensor:
    """The loss of the published method for given visible patches, from its description."""
    w = dict(method.named_parameters())
    grid = method.tokenizer.grid
    shape, patch, length = grid.shape, grid.patch, math.prod(grid.shape)
    names, width, decoder_width = method.sequences, SMALL["width"], SMALL["decoder_width"]
    b, total = len(visible), length * len(names)

    tokens = []
    for name in names:
        kernel = w[f"encoder.embed.linear.{name}.weight"].view(width, 1, *patch)
        x = F.conv3d(batch[name], kernel, w[f"encoder.embed.linear.{name}.bias"], stride=patch)
        tokens.append(x.flatten(2).transpose(1, 2) + position_table(shape, width))
    mask = torch.ones(b, total).scatter(1, visible, 0.0)
    shuffle = mask.argsort(dim=1, stable=True)
    restore = shuffle.argsort(1)
    kept = torch.cat(tokens, 1).gather(1, shuffle[:, : visible.shape[1], None].expand(-1, -1, width))
    x = torch.cat([w["encoder.prefix_tokens"].expand(b, -1, -1), kept], 1)
    x = transformer(x, w, "encoder.blocks", SMALL["depth"], SMALL["heads"])
    x = F.layer_norm(x, (width,), w["encoder.norm.weight"], w["encoder.norm.bias"], 1e-5)

    x = F.linear(x, w["decoder.embed.weight"], w["decoder.embed.bias"])
    blank = w["decoder.mask_token"].expand(b, total - visible.shape[1], -1)
    slots = torch.cat([x[:, 1:], blank], 1).gather(1, restore[..., None].expand(-1, -1, decoder_width))
    codes = position_table(shape, decoder_width)
    slots = slots + torch.cat([w[f"decoder.modality.{name}"] + codes for name in names])
    x = transformer(
        torch.cat([x[:, :1], slots], 1), w, "decoder.blocks", SMALL["decoder_depth"], SMALL["decoder_heads"]
    )
    x = F.layer_norm(x, (decoder_width,), w["decoder.norm.weight"], w["decoder.norm.bias"], 1e-5)
    guess = F.linear(x, w["decoder.head.weight"], w["decoder.head.bias"])[:, 1:]

    loss = torch.zeros(())
    for m, name in enumerate(names):
        image = batch[name]
        blocks = image.view(b, shape[0], patch[0], shape[1], patch[1], shape[2], patch[2])
        truth = blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, length, -1)
        here = slice(m * length, (m + 1) * length)
        error = (guess[:, here] - truth).square().mean(-1)
        loss = loss + (error * mask[:, here]).sum() / mask[:, here].sum()
    return loss


@pytest.mark.parametrize(("size", "patch"), [((16, 16, 24), (8, 8, 8)), ((8, 24, 16), (4, 8, 8))])
def test_loss_and_gradients_equal_the_second_derivation(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    method = small(size, patch)
    batch = images(method)
    plan = method.plan(batch)
    mine = method(batch)["reconstruction"]
    theirs = naive_loss(method, batch, plan.visible)
    assert abs(float(mine.detach()) - float(theirs.detach())) < 1e-6 * max(1.0, float(mine.detach()))
    parameters = dict(method.named_parameters())
    a = torch.autograd.grad(mine, list(parameters.values()))
    b = torch.autograd.grad(theirs, list(parameters.values()))
    for name, x, y in zip(parameters, a, b, strict=True):
        assert float((x - y).abs().max()) < 1e-5, name


# --- what the published preset is ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> Method:
    """At full size, without memory for its weights."""
    with torch.device("meta"):
        return find("bm_mae").build(preset="published")


def test_parameter_counts_are_the_published_ones(published: Method) -> None:
    counts = [sum(p.numel() for p in part.parameters()) for part in (published.encoder, published.decoder, published)]
    assert counts == [69_312_768, 7_198_336, 76_511_104]


def test_settings_are_the_published_ones(published: Method) -> None:
    encoder, decoder = published.encoder, published.decoder
    assert (len(encoder.blocks), encoder.blocks[0].attn.heads, encoder.blocks[0].mlp.fc1.out_features) == (12, 12, 1536)
    assert (len(decoder.blocks), decoder.blocks[0].attn.heads, decoder.blocks[0].mlp.fc1.out_features) == (3, 12, 1536)
    assert {m.eps for m in published.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    assert {block.mlp.dropout for block in encoder.blocks} == {0.0}
    assert {block.mlp.dropout for block in decoder.blocks} == {block.attn.dropout for block in decoder.blocks} == {0.1}
    assert encoder.embed.tag is None
    assert published.reduce == "sum"
    assert not published.sampler.weigh
    assert published.tokenizer.grid.shape == (8, 8, 8)
    assert published.sequences == NAMES


def test_visible_patches_are_512_of_2048_by_the_published_law(published: Method) -> None:
    b = 1500
    layout = TokenLayout(
        id=torch.arange(2048).expand(b, -1),
        coords=torch.zeros(b, 2048, 3),
        modality=torch.arange(4).repeat_interleave(512).expand(b, -1),
        weight=None,
        total=2048,
    )
    plan = published.sampler(Tokens(layout, torch.zeros(b, 2048, 0)), torch.arange(b))
    assert plan.visible.shape == (b, 512)
    assert plan.target.shape == (b, 1536)
    seen = F.one_hot(plan.visible // 512, 4).sum(1).double()
    assert float((seen.mean(0) - 128).abs().max()) < 10
    assert float((seen.std(0) - 99.1).abs().max()) < 6
    assert abs(float((seen == 0).any(1).double().mean()) - 0.012) < 0.01


# --- acceptance checks --------------------------------------------------------------------------------------------


def test_outputs_do_not_depend_on_masked_patches() -> None:
    method = small().eval()
    batch = images(method)
    plan = method.plan(batch)
    tokens = method.tokenizer(batch)
    noise = 10 * torch.randn_like(tokens.content)
    seen = torch.zeros(3, 48, dtype=torch.bool).scatter(1, plan.visible, True)
    changed = Tokens(tokens.layout, torch.where(seen[..., None], tokens.content, noise))
    assert torch.equal(method.guess(tokens, plan), method.guess(changed, plan))


def test_outputs_do_not_depend_on_the_order_of_the_dictionary() -> None:
    method = small().eval()
    batch = images(method)
    assert method(batch)["reconstruction"] == method(dict(reversed(batch.items())))["reconstruction"]


def test_a_mixed_batch_equals_the_runs_of_its_samples() -> None:
    method = small().eval()
    batch = images(method)
    batch["present"] = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    plan = method.plan(batch)
    guess = method.guess(method.tokenizer(batch), plan)
    for row in range(3):
        names = [name for i, name in enumerate(NAMES) if batch["present"][row, i]]
        one = small(sequences=names).eval()
        state = {k: v for k, v in method.state_dict().items() if not any(n in k for n in set(NAMES) - set(names))}
        one.load_state_dict(state, strict=True)
        # The same patches by the numbers they have in a model that never knew the other sequences.
        where = torch.full((4,), -1)
        where[batch["present"][row]] = torch.arange(len(names))

        def renumber(ids: Tensor, where: Tensor = where) -> Tensor:
            ids = ids[ids >= 0][None]
            return where[ids // 12] * 12 + ids % 12

        alone = {name: batch[name][row : row + 1] for name in names}
        own_plan = MaskPlan(renumber(plan.visible[row]), renumber(plan.target[row]))
        own = one.guess(one.tokenizer(alone), own_plan)[0]
        torch.testing.assert_close(guess[row][plan.target[row] >= 0], own, atol=1e-5, rtol=1e-5)


def test_a_convolution_equals_patchify_and_a_linear_map() -> None:
    grid = small((32, 32, 32), (16, 16, 16)).tokenizer.grid
    image = torch.randn(2, 1, 32, 32, 32)
    conv = torch.nn.Conv3d(1, 32, 16, 16)
    linear = grid.patchify(image) @ conv.weight.view(32, -1).T + conv.bias
    torch.testing.assert_close(linear, conv(image).flatten(2).transpose(1, 2), atol=1e-4, rtol=0)
    assert torch.equal(grid.unpatchify(grid.patchify(image)), image)


@pytest.mark.parametrize("where", ["nothing masked", "nothing visible"])
def test_loss_is_finite_when_a_sequence_has_nothing_masked_or_nothing_visible(where: str) -> None:
    method = small()
    batch = images(method)
    first, others = torch.arange(12).expand(3, -1), torch.arange(12, 48).expand(3, -1)
    plan = MaskPlan(first, others) if where == "nothing masked" else MaskPlan(others, first)
    loss = method(batch, plan)["reconstruction"]
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters())


def test_a_zero_prediction_costs_the_number_of_sequences() -> None:
    method = small((32, 32, 32))
    torch.nn.init.zeros_(method.decoder.head.weight)
    torch.nn.init.zeros_(method.decoder.head.bias)
    assert abs(float(method(images(method))["reconstruction"].detach()) - 4.0) < 0.1


def test_with_one_sequence_it_reduces_to_its_parent() -> None:
    one = small(sequences=("image",)).eval()
    parent = find("mae").build(
        size=(16, 16, 24), patch=(8, 8, 8), channels=1, eps=1e-5, normalize_target=False, **SMALL
    ).eval()  # fmt: skip
    torch.nn.init.zeros_(one.decoder.modality["image"])
    state = {k.replace("linear.image", "linear"): v for k, v in one.state_dict().items() if "modality" not in k}
    for name, value in parent.state_dict().items():  # the parent's MLPs are wider: compare with the surplus units off
        if name in state and state[name].shape != value.shape:
            grown = torch.zeros_like(value)
            grown[tuple(slice(s) for s in state[name].shape)] = state[name]
            state[name] = grown
    parent.load_state_dict(state, strict=True)
    batch = images(one)
    plan = one.plan(batch)
    mine, theirs = one(batch, plan)["reconstruction"], parent(batch, plan)["reconstruction"]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    assert take(one.target(one.tokenizer(batch)), plan.target).shape[-1] == 512
