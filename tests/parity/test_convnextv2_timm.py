"""FCMAE's encoder with everything visible is timm's ConvNeXt V2 on the same weights; so are its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medmae.find import find
from medmae.nets.convnext import ResponseNorm
from medmae.nets.parallel import ParallelBlock
from medmae.torchvision_guard import guard

guard()
timm = pytest.importorskip("timm")

SMALL = {"size": (64, 96), "widths": (8, 12, 20, 24), "depths": (1, 2, 1, 1)}


def timm_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Without the classifier's norm; 1x1 convolutions as linear maps."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    return {name: value.flatten(1) if ".fc" in name and value.ndim == 4 else value for name, value in state.items()}


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_everything_visible_is_timms_network(conv_mlp: bool) -> None:
    theirs = timm.models.convnext.ConvNeXt(
        depths=SMALL["depths"], dims=SMALL["widths"], use_grn=True, ls_init_value=None, conv_mlp=conv_mlp, num_classes=0
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + ("norm" in name and "weight" in name))
    method = find("fcmae").build(**SMALL).eval()
    method.encoder.load_state_dict(timm_weights(theirs), strict=True)
    batch = {"image": torch.randn(2, 3, 64, 96), "key": torch.arange(2)}
    tokens = method.tokenizer(batch)
    with torch.no_grad():
        mine, other = method.encoder(tokens, tokens.layout).levels[-1], theirs.forward_features(batch["image"])
        plain = method.encoder.features(batch["image"])[-1]
    assert other.abs().max() > 0.1
    scale = float(other.abs().max())
    assert float((mine - other).abs().max()) < 2e-6 * max(1.0, scale)
    assert torch.equal(mine, plain)


def test_the_response_norm_is_timms() -> None:
    from timm.layers.grn import GlobalResponseNorm

    theirs, mine = GlobalResponseNorm(12, channels_last=True), ResponseNorm(12)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(theirs, name).normal_()
            getattr(mine, name).copy_(getattr(theirs, name))
        x = torch.randn(3, 6, 5, 12)
        assert float((mine(x) - theirs(x)).abs().max()) < 2e-6


@pytest.mark.parametrize("scale", ["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"])
def test_every_scale_has_the_names_and_shapes_of_timm(scale: str) -> None:
    with torch.device("meta"):
        encoder = find("fcmae").build(scale=scale).encoder
        theirs = timm_weights(timm.create_model(f"convnextv2_{scale}", pretrained=False))
    assert {n: tuple(v.shape) for n, v in encoder.state_dict().items()} == {
        n: tuple(v.shape) for n, v in theirs.items()
    }


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_the_parallel_block_is_timms(layer_scale: float | None) -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    theirs = ParallelScalingBlock(24, 4, qk_norm=True, init_values=layer_scale).eval()
    mine = ParallelBlock(24, 4, eps=theirs.in_norm.eps, layer_scale=layer_scale).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + ("norm" in name and "weight" in name))
        theirs.mlp_bias.zero_()  # timm adds it to other features than those of the MLP
        mine.load_state_dict(theirs.state_dict(), strict=True)
        x = torch.randn(2, 7, 24)
        rows = torch.tensor([[3, 0], [6, 6]])
        torch.testing.assert_close(mine(x), theirs(x), atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(
            mine(x, None, rows), theirs(x).gather(1, rows[..., None].expand(-1, -1, 24)), atol=5e-6, rtol=1e-5
        )
