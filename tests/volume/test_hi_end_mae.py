"""hi_end_mae against its formulas, written down a second time in the plainest way, and its options."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.core.errors import UsageError
from medmae.core.method import Method
from medmae.find import Found, find
from medmae.testing import CHECKS

SEVERAL = ("t1n", "t1c", "t2w")
VARIANTS: dict[str, dict[str, Any]] = {
    "several sequences": {"sequences": SEVERAL},
    "hidden together, intensities": {
        "sequences": SEVERAL,
        "masking": "tube",
        "foreground_loss": True,
        "normalize_target": False,
    },
    "anisotropic": {"size": (24, 16, 8), "patch": (8, 8, 4), "sequences": SEVERAL},
}
WANTED = (
    "finite_named_losses",
    "gradients_reach_every_parameter",
    "hidden_content_never_leaks",
    "padding_is_inert",
    "missing_modality_does_not_matter",
    "plan_is_sound",
    "perfect_prediction_costs_nothing",
    "everything_visible_is_the_plain_network",
    "finite_in_bfloat16",
)


def variant(options: dict[str, Any]) -> Found:
    found = find("hi_end_mae")

    @functools.wraps(found.builder)
    def builder(**recipe: Any) -> Method:
        return found.builder(**(recipe | options))

    return replace(found, builder=builder)


@pytest.mark.parametrize("check", WANTED)
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_conforms(name: str, check: str) -> None:
    CHECKS[check](variant(VARIANTS[name]))


def heads_of(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention, head by head."""
    out = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        out.append((a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5).softmax(-1) @ c)
    return torch.cat(out, -1)


def normed(x: Tensor, norm: Any) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def mapped(x: Tensor, linear: Any) -> Tensor:
    return x @ linear.weight.T + linear.bias


def attended(x: Tensor, part: Any, heads: int) -> Tensor:
    return mapped(heads_of(*mapped(x, part.qkv).chunk(3, -1), heads), part.proj)


def fed(x: Tensor, mlp: Any) -> Tensor:
    return mapped(F.gelu(mapped(x, mlp.fc1)), mlp.fc2)


def code(places: Tensor, width: int) -> Tensor:
    """For each axis in turn, sines and then cosines of ``width / 6`` frequencies."""
    rates = 10000.0 ** (-torch.arange(width // 6) / (width // 6))
    parts = []
    for axis in range(3):
        angle = places[:, axis, None] * rates
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, -1)


def second(method: Any, image: Tensor, order: Tensor, visible: int, edge: int) -> Tensor:
    """The loss of one sample: cut, shuffle, keep the first, encode, decode in shuffled order."""
    encoder, decoder = method.encoder, method.decoder
    cells = image.shape[-1] // edge
    cubes, places = [], []
    for i in range(cells):
        for j in range(cells):
            for k in range(cells):
                cut = image[i * edge : (i + 1) * edge, j * edge : (j + 1) * edge, k * edge : (k + 1) * edge]
                cubes.append(cut.flatten())
                places.append((i, j, k))
    patches, where = torch.stack(cubes)[order], torch.tensor(places).float()[order]
    x = mapped(patches[:visible], encoder.embed.linear["ct"]) + code(where[:visible], encoder.width)
    x = torch.cat([encoder.prefix_tokens[0], x])
    hidden = []
    for block in encoder.blocks:
        x = x + attended(normed(x, block.norm1), block.attn, 4)
        x = x + fed(normed(x, block.norm2), block.mlp)
        hidden.append(x)
    x = mapped(normed(x, encoder.norm), decoder.embed)
    masked = decoder.mask_token.expand(len(patches) - visible, -1)
    width = masked.shape[-1]
    x = torch.cat([x[:1], torch.cat([x[1:], masked]) + code(where, width)])
    for block in decoder.blocks:
        x = x + attended(normed(x, block.norm1), block.attn, 4)
        x = x + fed(normed(x, block.norm2), block.mlp)
    for block, project, level in zip(decoder.cross, decoder.memory, (2, 1, 0), strict=True):
        memory = mapped(hidden[level], project)
        x = x + attended(normed(x, block.norm0), block.attn, 4)
        q = mapped(normed(x, block.norm1), block.cross.q)
        x = x + mapped(heads_of(q, *mapped(memory, block.cross.kv).chunk(2, -1), 4), block.cross.proj)
        x = x + fed(normed(x, block.norm2), block.mlp)
    guess = mapped(normed(x, decoder.norm), decoder.head)[1 + visible :]
    truth = F.layer_norm(patches[visible:], patches.shape[1:], eps=1e-6)
    return (guess - truth).square().mean()


def test_loss_and_gradients_are_those_of_the_formulas() -> None:
    method: Any = find("hi_end_mae").build(scale="test").double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = {"ct": torch.randn(1, 1, 24, 24, 24, dtype=torch.float64), "key": torch.tensor([5])}
    plan = method.plan(batch)
    assert plan.visible.shape == (1, 6)  # a quarter of 27, truncated
    order = torch.cat([plan.visible, plan.target], 1)[0]
    own = method(batch)["reconstruction"]
    theirs = second(method, batch["ct"][0, 0], order, 6, 8)
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)  # sines are computed in float32
    own_gradients = torch.autograd.grad(own, list(method.parameters()))
    their_gradients = torch.autograd.grad(theirs, list(method.parameters()))
    for (name, _), one, other in zip(method.named_parameters(), own_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_the_default_is_the_published_network() -> None:
    recipe = find("hi_end_mae").recipe()
    assert (recipe["width"], recipe["depth"], recipe["heads"]) == (1536, 12, 16)
    assert (recipe["decoder_width"], recipe["decoder_depth"], recipe["decoder_heads"]) == (528, 2, 16)
    assert (recipe["size"], recipe["patch"], recipe["mask_ratio"]) == ([96] * 3, [12] * 3, 0.75)
    assert recipe["levels"] == [3, 6, 9]  # the fourth, seventh and tenth block


def test_one_sequence_has_no_vectors_of_its_own() -> None:
    names = [name for name, _ in find("hi_end_mae").build(scale="test").named_parameters()]
    assert not any("tag" in name or "modality" in name for name in names)


def test_a_masking_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="masking"):
        find("hi_end_mae").build(scale="test", masking="blocks")
