"""MAE-ST: random over space and time, positions in two tables, a target of every second frame."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.core.errors import UsageError
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.target import Content
from medmae.core.tokens import take
from medmae.find import find
from medmae.testing import example_batch
from medmae.video.parts import SomeFrames

SMALL = {"size": (16, 224, 224), "width": 12, "depth": 1, "heads": 1, "decoder_width": 12, "decoder_depth": 1,
         "decoder_heads": 1}  # fmt: skip


def test_156_of_1568_tokens_anywhere_in_the_clip() -> None:
    method = find("mae_st").build(**SMALL)
    plan = method.plan({"video": torch.zeros(4, 3, 16, 224, 224), "key": torch.arange(4)})
    assert plan.visible.shape == (4, 156)
    assert plan.target.shape == (4, 1412)
    seen = torch.zeros(4, 1568).scatter(1, plan.visible, 1.0).view(4, 8, 196)
    assert bool((seen.sum(1).amax(1) < 8).all())  # no tube
    assert len(set(seen.sum(2).flatten().tolist())) > 3  # and no fixed number per time


def test_the_frames_that_are_predicted() -> None:
    grid = Grid((16, 224, 224), (2, 16, 16), 3)
    assert SomeFrames(grid, 2, Content()).frames == (0, 2, 4, 6, 8, 10, 12, 15)
    assert SomeFrames(grid, 1, Content()).frames == tuple(range(16))
    for size, patch, stride in ((32, 4, 2), (32, 4, 4), (12, 6, 3), (6, 2, 2), (4, 4, 4)):
        frames = SomeFrames(Grid((size, 8, 8), (patch, 8, 8)), stride, Content()).frames
        assert frames[0] == 0
        assert frames[-1] == (size - 1 if len(frames) > 1 else 0)
        inside = patch // stride
        assert all(frame // patch == j // inside for j, frame in enumerate(frames)), "a frame of another token"


@pytest.mark.parametrize(("patch", "stride"), [(2, 2), (4, 2), (4, 4), (2, 1)])
def test_the_target_is_the_patches_of_the_chosen_frames(patch: int, stride: int) -> None:
    grid = Grid((16, 8, 12), (patch, 4, 4), 2)
    video = torch.randn(2, 2, 16, 8, 12)
    tokens = ModalityGrid(("video",), grid)({"video": video})
    target = SomeFrames(grid, stride, Content())
    short = Grid((16 // stride, 8, 12), (patch // stride, 4, 4), 2)
    assert torch.equal(target(tokens), short.patchify(video[:, :, list(target.frames)]))


def test_the_formula_in_plain_torch() -> None:
    """Gather, add positions of time and space, encode with [CLS], drop it; decode the full set with another [CLS]."""
    torch.manual_seed(2)
    method = find("mae_st").build(scale="test").eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    w = dict(method.state_dict())
    batch = example_batch(method)
    plan = method.plan(batch)
    tokens = method.tokenizer(batch).content
    b, n, steps, places = 3, 64, 4, 16

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def block(x: Tensor, name: str) -> Tensor:
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        return x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    def positions(part: str) -> Tensor:
        time, space = w[f"{part}.positions.tables.0"], w[f"{part}.positions.tables.1"]
        assert (len(time), len(space)) == (steps, places)
        return (time.repeat_interleave(places, 0) + space.repeat(steps, 1)).expand(b, -1, -1)

    x = linear(take(tokens, plan.visible), "encoder.embed.linear") + take(positions("encoder"), plan.visible)
    x = torch.cat([w["encoder.prefix_tokens"].expand(b, -1, -1), x], 1)
    for i in range(2):
        x = block(x, f"encoder.blocks.{i}")
    x = linear(norm(x, "encoder.norm")[:, 1:], "decoder.embed")
    full = w["decoder.mask_token"].expand(b, n, -1).clone()
    full = full.scatter(1, plan.visible[..., None].expand_as(x), x) + positions("decoder")
    full = torch.cat([w["decoder.prefix_tokens"].expand(b, -1, -1), full], 1)
    guess = linear(norm(block(full, "decoder.blocks.0"), "decoder.norm"), "decoder.head")[:, 1:]

    frames = batch["video"][:, :, [0, 2, 4, 7]]
    truth = Grid((4, 32, 32), (1, 8, 8), 3).patchify(frames)
    truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (guess - truth).square().mean(-1)
    mask = torch.ones(b, n).scatter(1, plan.visible, 0.0)
    with torch.no_grad():
        mine = method(batch)["reconstruction"]
        torch.testing.assert_close(mine, (error * mask).sum() / mask.sum(), atol=1e-5, rtol=1e-5)
        own = method.guess(method.tokenizer(batch), plan)
    torch.testing.assert_close(own, take(guess, plan.target), atol=1e-5, rtol=1e-4)


def test_without_cls_and_with_one_table() -> None:
    method = find("mae_st").build(scale="test", cls=False, separable=False)
    names = dict(method.named_parameters())
    assert "encoder.prefix_tokens" not in names
    assert "decoder.prefix_tokens" not in names
    assert names["encoder.positions.tables.0"].shape == (64, 48)
    loss = method(example_batch(method))["reconstruction"]
    loss.backward()
    assert bool(loss.isfinite())


def test_the_cls_of_the_encoder_does_not_reach_the_decoder_by_itself() -> None:
    """It is dropped; its own last features change nothing."""
    method = find("mae_st").build(scale="test").eval()
    tokens = method.tokenizer(example_batch(method))
    coded = method.encoder(tokens, tokens.layout)
    moved = type(coded)(coded.tokens, coded.prefix + 5, coded.full, coded.seen)
    with torch.no_grad():
        assert torch.equal(method.decoder(coded, tokens.layout), method.decoder(moved, tokens.layout))


def test_a_stride_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="does not divide the 2 frames"):
        find("mae_st").build(scale="test", target_stride=3)
