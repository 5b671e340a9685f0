"""Small networks and masks for the tests of sparse execution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medmae.nets.build import Architecture, resenc
from medmae.nets.sparse import Cells, Execution, encode

CUBIC = ((3, 3, 3),) * 4
HALVING = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
FLAT = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
UNEVEN = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2))


def architecture(
    *,
    kernels: tuple[tuple[int, ...], ...] = CUBIC,
    strides: tuple[tuple[int, ...], ...] = HALVING,
    features: tuple[int, ...] = (4, 6, 8, 8),
    blocks: tuple[int, ...] = (1, 2, 1, 1),
    plain: bool = False,
) -> Architecture:
    """Four stages, a few channels."""
    return resenc(features=features, blocks=blocks, kernels=kernels, strides=strides,
                  decoder_convs=(1,) * (len(features) - 1), plain=plain)  # fmt: skip


def built(chosen: Architecture, *, channels: int = 2, dtype: torch.dtype = torch.float64) -> Any:
    """The stock network, all of its weights moved off their special values."""
    torch.manual_seed(0)
    network = chosen.build(input_channels=channels, num_classes=channels).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def stages_of(network: Any) -> list[nn.Module]:
    """The stages of its encoder, the stem in front of the first."""
    stages = list(network.encoder.stages)
    stem = getattr(network.encoder, "stem", None)
    return stages if stem is None else [nn.Sequential(stem, stages[0]), *stages[1:]]


@dataclass
class Result:
    """Maps of every stage, and gradients by name; those of the image under ``image``."""

    maps: list[Tensor]
    gradients: dict[str, Tensor]


def run(network: Any, execution: Execution, image: Tensor, *, recompute: bool = False) -> Result:
    """Features of an image and the gradients of a fixed random weighing of all of them."""
    image = image.clone().requires_grad_()
    one = (1,) * (image.ndim - 2)
    found = encode(execution, stages_of(network), execution.restrict(image, one), recompute=recompute)
    maps = [execution.dense(x, scale) for x, scale in found]
    network.zero_grad(set_to_none=True)
    score(maps).backward()
    gradients = {name: p.grad for name, p in network.encoder.named_parameters()}
    return Result([x.detach() for x in maps], gradients | {"image": image.grad})


def score(maps: list[Tensor]) -> Tensor:
    """A fixed random weighing of maps."""
    draw = torch.Generator().manual_seed(1)
    parts = [(x * torch.randn(x.shape, generator=draw, dtype=x.dtype)).sum() / x.numel() for x in maps]
    return torch.stack(parts).sum()


def assert_same(mine: Result, other: Result, *, features: float = 1e-9, gradients: float = 1e-8) -> None:
    """Features equal relative to the scale of each map, gradients to that of the largest."""
    for a, b in zip(mine.maps, other.maps, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= features * float(b.abs().max())
    assert set(mine.gradients) == set(other.gradients)
    largest = max(float(g.abs().max()) for g in other.gradients.values())
    for name, b in other.gradients.items():
        assert float((mine.gradients[name] - b).abs().max()) <= gradients * largest, name


def image_for(cells: Cells, *, channels: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise of the size that the cells cover, hidden voxels included."""
    shape = [n * e for n, e in zip(cells.visible.shape[1:], cells.block, strict=True)]
    return torch.randn(len(cells.visible), channels, *shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def grid(text: str, shape: tuple[int, ...]) -> Tensor:
    """A batch of masks from ones and zeros, one word per sample."""
    return torch.tensor([[mark == "1" for mark in word] for word in text.split()]).reshape(-1, *shape)
