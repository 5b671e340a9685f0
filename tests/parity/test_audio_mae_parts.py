"""Audio-MAE equals its published network put together from timm's blocks; Bird-MAE, and Audio-MAE with the global
decoder, equal MAE, which equals ``transformers.ViTMAEForPreTraining``."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medmae.core.tokens import take
from medmae.find import find
from medmae.torchvision_guard import guard

guard()

TIME, BANDS, PATCH, WIDTH, DECODER = 16, 8, 8, 24, 32
SHAPES = {
    "size": (TIME * PATCH, BANDS * PATCH), "patch": (PATCH, PATCH), "width": WIDTH, "depth": 2, "heads": 3,
    "decoder_width": DECODER, "decoder_depth": 2, "decoder_heads": 4,
}  # fmt: skip


def table(rows: int, columns: int, width: int) -> Tensor:
    """MAE's table for a grid: half of the features for the column, half for the row, sines before cosines."""

    def axis(place: np.ndarray) -> np.ndarray:
        omega = 10000.0 ** (-np.arange(width // 4) / (width / 4.0))
        return np.concatenate([np.sin(np.outer(place, omega)), np.cos(np.outer(place, omega))], 1)

    row, column = np.divmod(np.arange(rows * columns), columns)
    return torch.from_numpy(np.concatenate([axis(column), axis(row)], 1)).float()


def awake(name: str, **options: object) -> nn.Module:
    torch.manual_seed(3)
    found = {"audio_mae": find("audio_mae"), "bird_mae": find("bird_mae"), "mae": find("mae")}[name]
    method = found.build(**SHAPES, **options)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return method.eval()


@pytest.mark.parametrize("compat", [False, True])
def test_loss_and_gradients_are_those_of_timms_parts(compat: bool) -> None:
    vit = pytest.importorskip("timm.models.vision_transformer")
    swin = pytest.importorskip("timm.models.swin_transformer_v2_cr")
    method = awake("audio_mae", compat=compat)
    batch = {"spectrogram": torch.randn(3, 1, TIME * PATCH, BANDS * PATCH), "key": torch.arange(3)}
    plan = method.plan(batch)
    weights = dict(method.named_parameters())

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def positions(width: int) -> Tensor:
        rows, columns = (BANDS, TIME) if compat else (TIME, BANDS)
        return table(rows, columns, width).expand(3, -1, -1)

    kernel = weights["encoder.embed.linear.weight"].view(WIDTH, 1, PATCH, PATCH)
    x = nn.functional.conv2d(batch["spectrogram"], kernel, weights["encoder.embed.linear.bias"], stride=PATCH)
    x = take(x.flatten(2).transpose(1, 2) + positions(WIDTH), plan.visible)
    x = torch.cat([weights["encoder.prefix_tokens"].expand(3, -1, -1), x], 1)
    layer = partial(nn.LayerNorm, eps=1e-6)
    blocks = nn.ModuleList(vit.Block(WIDTH, 3, qkv_bias=True, norm_layer=layer) for _ in range(2)).eval()
    blocks.load_state_dict(method.encoder.blocks.state_dict(), strict=True)
    for block in blocks:
        x = block(x)
    x = linear(norm(x, "encoder.norm"), "decoder.embed")[:, 1:]
    full = weights["decoder.mask_token"].expand(3, TIME * BANDS, -1)
    full = full.scatter(1, plan.visible[..., None].expand_as(x), x) + positions(DECODER)
    for i, block in enumerate(method.decoder.blocks):
        other = swin.SwinTransformerV2CrBlock(
            DECODER, 4, (TIME, BANDS), (4, 4), (0, 0), init_values=None, norm_layer=layer
        ).eval()
        other.shift_size = (2, 0) if i % 2 else (0, 0)
        other.attn_mask = other.get_attn_mask()
        state = {n.replace("bias1.", "meta_mlp.fc1.").replace("bias2.", "meta_mlp.fc2."): v
                 for n, v in block.state_dict().items()}  # fmt: skip
        assert not other.load_state_dict(state, strict=False).unexpected_keys
        full = other(full.view(3, TIME, BANDS, DECODER)).flatten(1, 2)
    guess = linear(norm(full, "decoder.norm"), "decoder.head")

    truth = nn.functional.unfold(batch["spectrogram"], PATCH, stride=PATCH).transpose(1, 2)
    truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = torch.ones(3, TIME * BANDS).scatter(1, plan.visible, 0.0)
    theirs = ((guess - truth).square().mean(-1) * hidden).sum() / hidden.sum()
    loss = method(batch)["reconstruction"]
    torch.testing.assert_close(loss, theirs, atol=1e-5, rtol=1e-5)
    names = ["encoder.embed.linear.weight", "decoder.embed.weight", "decoder.mask_token", "decoder.head.weight"]
    wanted = [weights[name] for name in names]
    for mine, other_grad in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(theirs, wanted), strict=True):
        torch.testing.assert_close(mine, other_grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("name", "options"), [("audio_mae", {"decoder": "global"}), ("bird_mae", {})])
def test_with_the_global_decoder_it_is_mae(name: str, options: dict[str, object]) -> None:
    method, mae = awake(name, **options), awake("mae", channels=1, mask_ratio=find(name).recipe()["mask_ratio"])
    mae.load_state_dict(method.state_dict(), strict=True)
    image, key = torch.randn(3, 1, TIME * PATCH, BANDS * PATCH), torch.arange(3)
    mine = method({"spectrogram": image, "key": key})["reconstruction"]
    assert torch.equal(mine, mae({"image": image, "key": key})["reconstruction"])
