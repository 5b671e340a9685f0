"""Our block equals timm's on the same weights, whose names it shares."""

from __future__ import annotations

import pytest
import torch

from medmae.nets.block import Block
from medmae.torchvision_guard import guard

guard()
vision_transformer = pytest.importorskip("timm.models.vision_transformer")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"qkv_bias": True}),
        ({"qkv_bias": False, "mlp_ratio": 2.0}, {"qkv_bias": False, "mlp_ratio": 2.0}),
        ({"qk_norm": True, "layer_scale": 0.1}, {"qkv_bias": True, "qk_norm": True, "init_values": 0.1}),
    ],
    ids=["plain", "no bias", "norms and scales"],
)
def test_blocks_agree(ours: dict, theirs: dict) -> None:
    reference = vision_transformer.Block(24, 4, **theirs).eval()
    block = Block(24, 4, eps=reference.norm1.eps, **ours).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {name.replace("ls1", "scale1").replace("ls2", "scale2"): v for name, v in reference.state_dict().items()}
    if "qk_norm" in ours:
        block.attn.q_norm.eps = block.attn.k_norm.eps = reference.attn.q_norm.eps
    block.load_state_dict(state, strict=True)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(block(x), reference(x), atol=1e-5, rtol=1e-5)
