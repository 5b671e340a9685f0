"""eva_mae computes what Primus of dynamic-network-architectures computes on the same weights, and back again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medmae.find import find
from medmae.nets.primus_keys import from_primus, to_primus
from medmae.torchvision_guard import guard

guard()
primus = pytest.importorskip("dynamic_network_architectures.architectures.primus")
eva = pytest.importorskip("dynamic_network_architectures.building_blocks.eva")
parts = pytest.importorskip("dynamic_network_architectures.building_blocks.patch_encode_decode")

WIDTH, HEADS, SIZE, PATCH = 48, 4, (32, 16, 24), (8, 8, 8)
GRID = tuple(s // p for s, p in zip(SIZE, PATCH, strict=True))
NAMES = ("t1n", "t2w", "t2f")
PUBLISHED = {"size": SIZE, "patch": PATCH, "table": GRID, "width": WIDTH, "depth": 2, "heads": HEADS, "drop_path": 0.0}


def awake(network: Any) -> Any:
    """Moved off its initial values, some of which switch a path off."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


def reference(channels: int, **options: Any) -> Any:
    network = primus.Primus(
        channels,
        WIDTH,
        PATCH,
        1,
        2,
        HEADS,
        SIZE,
        **({"init_values": 0.1, "scale_attn_inner": True} | options),
    )
    return awake(network)


def ours(names: tuple[str, ...], **options: Any) -> Any:
    recipe = PUBLISHED | {"decoder_depth": 2, "decoder_heads": HEADS, "foreground_loss": False} | options
    return awake(find("eva_mae").build(sequences=names, **recipe))


def take_over(method: Any, network: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Copy their encoder (and decoder) into ours; the names of theirs that have no place."""
    state, left = from_primus(network.state_dict(), names=names, patch=PATCH, table=GRID)
    whole = any(name.startswith("decoder.") for name in state)
    missing, unexpected = method.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("decoder.") and not whole for name in missing)
    return left


def theirs(network: Any, image: Tensor) -> tuple[Tensor, Tensor | None]:
    """What their transformer gives, and which cubes it kept."""
    x = network.down_projection(image).flatten(2).transpose(1, 2)
    if getattr(network, "register_tokens", None) is not None:
        x = torch.cat([network.register_tokens.expand(len(x), -1, -1), x], 1)
    return network.eva(x)


@pytest.mark.parametrize("names", [("ct",), NAMES], ids=["one channel", "three channels"])
@pytest.mark.parametrize(
    ("their_options", "our_options"),
    [
        ({}, {}),
        ({"init_values": None, "scale_attn_inner": False}, {"layer_scale": None, "inner_norm": False}),
        ({"use_abs_pos_embed": False}, {"table": ()}),
        ({"num_register_tokens": 2}, {"registers": 2}),
    ],
    ids=["as OpenMind", "plain", "rotary only", "registers"],
)
def test_encoder_agrees_on_all_cubes(names: tuple[str, ...], their_options: dict, our_options: dict) -> None:
    network, method = reference(len(names), **their_options), ours(names, **our_options)
    left = take_over(method, network, names)
    assert all(key == "mask_token" or key.startswith("up_projection.") for key in left)
    image = torch.randn(2, len(names), *SIZE)
    tokens = method.tokenizer({name: image[:, i : i + 1] for i, name in enumerate(names)})
    with torch.no_grad():
        expected, _ = theirs(network, image)
        encoded = method.encoder(tokens, tokens.layout)
    registers = their_options.get("num_register_tokens", 0)
    torch.testing.assert_close(encoded.tokens.content, expected[:, registers:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.prefix, expected[:, :registers], atol=2e-5, rtol=1e-4)


def subset(network: Any, image: Tensor, kept: Tensor) -> Tensor:
    """What their blocks give for one sample of which only some cubes are kept.

    Their own way to drop cubes (``patch_drop_rate``) does not run with the timm that is installed, so that their blocks
    are called here with the positions and angles of the cubes that are kept.
    """
    x = network.down_projection(image).flatten(2).transpose(1, 2) + network.eva.pos_embed
    x, turn = x[:, kept], network.eva.rope.get_embed()[kept]
    for block in network.eva.blocks:
        x = block(x, rope=turn)
    return network.eva.norm(x)


@pytest.mark.parametrize("names", [("ct",), NAMES], ids=["one channel", "three channels"])
def test_encoder_agrees_on_a_visible_subset(names: tuple[str, ...]) -> None:
    network, method = reference(len(names)), ours(names)
    take_over(method, network, names)
    image = torch.randn(2, len(names), *SIZE)
    kept = torch.stack([torch.randperm(24)[:10].sort().values for _ in image])
    with torch.no_grad():
        expected = torch.cat([subset(network, image[i : i + 1], kept[i]) for i in range(2)])
    tokens = method.tokenizer({name: image[:, i : i + 1] for i, name in enumerate(names)})
    visible = torch.cat([kept + 24 * i for i in range(len(names))], 1)
    with torch.no_grad():
        encoded = method.encoder(tokens.at(visible[:, torch.randperm(visible.shape[1])]), tokens.layout)
    found = encoded.tokens.onto(encoded.full, torch.zeros(())).content
    for row in range(2):
        torch.testing.assert_close(found[row, kept[row]], expected[row], atol=2e-5, rtol=1e-4)


class Autoencoder(torch.nn.Module):
    """nnssl's masked autoencoder, put together from the same modules: encoder, decoder and raising, and its names."""

    def __init__(self) -> None:
        super().__init__()
        shared = {"embed_dim": WIDTH, "num_heads": HEADS, "ref_feat_shape": GRID, "init_values": 0.1}
        self.down_projection = parts.PatchEmbed(PATCH, 1, WIDTH)
        self.eva = eva.Eva(depth=2, scale_attn_inner=True, **shared)
        self.decoder = eva.Eva(depth=2, scale_attn_inner=True, **shared)
        self.up_projection = parts.PatchDecode(PATCH, WIDTH, 1)
        self.mask_token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, image: Tensor, kept: Tensor) -> Tensor:
        full = self.mask_token.expand(len(image), 24, -1).clone()
        for i, ids in enumerate(kept):
            full[i, ids] = subset(self, image[i : i + 1], ids)[0]
        x, _ = self.decoder(full)
        return self.up_projection(x.transpose(1, 2).unflatten(2, GRID))


def test_the_whole_autoencoder_agrees() -> None:
    network, method = awake(Autoencoder()), ours(("ct",))
    assert take_over(method, network, ("ct",)) == ()
    image = torch.randn(2, 1, *SIZE)
    batch = {"ct": image, "key": torch.tensor([3, 4])}
    plan = method.plan(batch)
    assert plan.visible.shape == (2, 6)
    with torch.no_grad():
        voxels = network(image, plan.visible)
        guess = method.guess(method.tokenizer(batch), plan)
        loss = method(batch)["reconstruction"]
    expected = method.tokenizer.grid.patchify(voxels).gather(1, plan.target[..., None].expand(-1, -1, 512))
    torch.testing.assert_close(guess, expected, atol=2e-5, rtol=1e-4)
    hidden = method.tokenizer.grid.unpatchify(
        torch.ones(2, 24, 512).scatter(1, plan.visible[..., None].expand(-1, -1, 512), 0)
    )
    wanted = ((voxels - image).square() * hidden).sum() / hidden.sum()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_exchanged_axes_are_what_nnssl_does(order: tuple[int, ...]) -> None:
    """nnssl flattens (h w d) where the map is (w h d): the cube at (i, j, k) gets the position of (j, i, k)."""
    size = (24, 24, 16)
    method = ours(("ct",), size=size, table=(3, 3, 2), axes=order)
    network = primus.Primus(1, WIDTH, PATCH, 1, 2, HEADS, size, init_values=0.1, scale_attn_inner=True).eval()
    state, _ = from_primus(awake(network).state_dict(), names=("ct",), patch=PATCH, table=(3, 3, 2))
    method.load_state_dict(state, strict=False)
    image = torch.randn(1, 1, *size)
    tokens = method.tokenizer({"ct": image})
    with torch.no_grad():
        x = network.down_projection(image)
        rows = x.permute(0, *(2 + axis for axis in order), 1).flatten(1, 3)
        expected = network.eva(rows)[0].unflatten(1, tuple(x.shape[2 + axis] for axis in order))
        found = method.encoder(tokens, tokens.layout).tokens.content
    expected = expected.permute(0, 2, 1, 3, 4) if order[0] == 1 else expected
    torch.testing.assert_close(found, expected.flatten(1, 3), atol=2e-5, rtol=1e-4)


def test_weights_survive_both_ways() -> None:
    method = ours(NAMES, registers=1, size=(16, 16, 16), table=(2, 2, 2))
    there = to_primus(method.state_dict(), names=NAMES, patch=PATCH)
    network = primus.Primus(
        3, WIDTH, PATCH, 3, 2, HEADS, (16, 16, 16), num_register_tokens=1, init_values=0.1, scale_attn_inner=True
    )
    own = network.state_dict()
    fits = [key for key in there if key.startswith(("eva.", "down_projection.", "register"))]
    assert {key for key in own if not key.startswith(("up_projection.", "mask_token"))} == set(fits)
    assert all(own[key].shape == there[key].shape for key in fits)
    back, left = from_primus(there, names=NAMES, patch=PATCH, table=(2, 2, 2))
    assert left == ()
    assert set(back) == set(method.state_dict())
    for key, value in method.state_dict().items():
        torch.testing.assert_close(back[key], value, atol=0, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    state = reference(1).state_dict()
    with pytest.raises(ValueError, match="1 channels"):
        from_primus(state, names=("t1n", "t2w"), patch=PATCH, table=GRID)
    with pytest.raises(ValueError, match="24 positions"):
        from_primus(state, names=("ct",), patch=PATCH)


def test_initial_weights_have_the_reference_spread() -> None:
    torch.manual_seed(0)
    network = primus.Primus(1, 96, PATCH, 1, 4, 4, (64, 64, 64), init_values=0.1, scale_attn_inner=True)
    recipe = PUBLISHED | {"width": 96, "depth": 4, "size": (64, 64, 64), "table": (8, 8, 8), "decoder_heads": 4}
    method = find("eva_mae").build(sequences=("ct",), **recipe)
    state, _ = from_primus(network.state_dict(), names=("ct",), patch=PATCH)
    for name, value in method.state_dict().items():
        if name in state and value.ndim > 1:
            assert abs(float(value.std() / state[name].std()) - 1) < 0.1, name
        elif name in state:
            torch.testing.assert_close(value, state[name])
