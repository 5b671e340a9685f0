"""FCMAE: cells, one block of a decoder, sequences as channels, volumes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medmae.core.errors import UsageError
from medmae.core.tokens import take
from medmae.find import find
from medmae.testing import example_batch

SMALL = {"widths": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "decoder_width": 8}


def test_19_of_49_cells_of_32_pixels_are_visible() -> None:
    method = find("fcmae").build(**SMALL)
    plan = method.plan({"image": torch.zeros(3, 3, 224, 224), "key": torch.arange(3)})
    assert plan.visible.shape == (3, 19)
    assert plan.target.shape == (3, 30)
    assert method.tokenizer.grid.content == 32 * 32 * 3


def test_the_decoder_in_plain_torch() -> None:
    torch.manual_seed(3)
    method = find("fcmae").build(scale="test").eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    w, batch = dict(method.state_dict()), example_batch(method)
    tokens, plan = method.tokenizer(batch), method.plan(batch)
    deep = method.encoder(tokens.at(plan.visible), tokens.layout).levels[-1]
    assert not bool(deep.flatten(2).gather(2, plan.target[:, None].expand(-1, 48, -1)).any())  # hidden places are zero
    with torch.no_grad():
        x = torch.einsum("bchw,dc->bdhw", deep, w["decoder.embed.weight"]) + w["decoder.embed.bias"][:, None, None]
        x = x.flatten(2)
        blank = w["decoder.mask_token"][None, :, None].expand(3, -1, plan.target.shape[1])
        x = x.scatter(2, plan.target[:, None].expand(-1, 64, -1), blank).view(3, 64, 4, 4)
        y = F.conv2d(x, w["decoder.blocks.0.conv_dw.weight"], w["decoder.blocks.0.conv_dw.bias"], padding=1, groups=64)
        y = y.permute(0, 2, 3, 1)
        y = F.layer_norm(y, (64,), w["decoder.blocks.0.norm.weight"], w["decoder.blocks.0.norm.bias"], 1e-6)
        y = F.gelu(y @ w["decoder.blocks.0.mlp.fc1.weight"].T + w["decoder.blocks.0.mlp.fc1.bias"])
        g = y.square().sum((1, 2), keepdim=True).sqrt()
        y = y + w["decoder.blocks.0.mlp.grn.weight"] * y * g / (g.mean(-1, keepdim=True) + 1e-6)
        y = y + w["decoder.blocks.0.mlp.grn.bias"]
        y = x + (y @ w["decoder.blocks.0.mlp.fc2.weight"].T + w["decoder.blocks.0.mlp.fc2.bias"]).permute(0, 3, 1, 2)
        out = y.flatten(2).transpose(1, 2) @ w["decoder.head.weight"].T + w["decoder.head.bias"]
        guess = method.guess(tokens, plan)
        torch.testing.assert_close(guess, take(out, plan.target), atol=1e-4, rtol=1e-4)
        truth = tokens.content
        truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
        expected = (take(out, plan.target) - take(truth, plan.target)).square().mean()
        torch.testing.assert_close(method(batch)["reconstruction"], expected, atol=1e-5, rtol=1e-4)


def test_volumes_of_several_sequences_are_hidden_in_the_same_cells() -> None:
    method = find("fcmae").build(
        sequences=("t1n", "t2w"), channels=1, size=(16, 24, 16), widths=(4, 8), depths=(1, 1), kernel=3, stem=2
    )
    assert method.tokenizer.grid.patch == (4, 4, 4)
    batch = example_batch(method, lacking=((), (0,), ()))
    plan = method.plan(batch)
    cells = [set((ids % 96).tolist()) for ids in plan.visible[0].sort().values.view(2, -1)]
    assert cells[0] == cells[1]
    assert int((plan.visible[1] >= 0).sum()) == 38  # of one sequence of 96 cells
    assert bool(method(batch)["reconstruction"].isfinite())


def test_an_image_that_cells_do_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match=r"crop or pad, for example to \(192, 224\)"):
        find("fcmae").build(size=(200, 224), **SMALL)
