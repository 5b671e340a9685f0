"""ConvNeXt V2 on visible cells against a network that never holds a hidden place, in two and three dimensions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmae.core.grid import Grid
from medmae.nets.convnext import ConvNeXtEncoder, ResponseMlp, ResponseNorm

AXES = (2, 3)


def network(axes: int, *, modalities: int = 1) -> ConvNeXtEncoder:
    grid = Grid((12, 16, 8)[:axes], (4,) * axes, 2)
    torch.manual_seed(axes)
    encoder = ConvNeXtEncoder(grid=grid, modalities=modalities, widths=(6, 10), depths=(1, 2), stem=2, kernel=3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return encoder.eval()


def gathered(encoder: ConvNeXtEncoder, image: Tensor, shown: Tensor) -> list[dict[tuple[int, ...], Tensor]]:
    """Features of the visible places of one image, each stage a table of places: what is hidden has no row."""

    def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)

    def strided(rows: dict[tuple[int, ...], Tensor], conv: nn.Module) -> dict[tuple[int, ...], Tensor]:
        k = conv.kernel_size[0]
        corners = {tuple(c // k for c in place) for place in rows}
        return {
            corner: conv.bias
            + sum(
                conv.weight[(..., *off)] @ rows[tuple(k * c + o for c, o in zip(corner, off, strict=True))]
                for off in itertools.product(range(k), repeat=len(corner))
            )
            for corner in sorted(corners)
        }

    def block(rows: dict[tuple[int, ...], Tensor], layer: nn.Module) -> dict[tuple[int, ...], Tensor]:
        conv, out = layer.conv_dw, {}
        for place in rows:
            total = conv.bias
            for off in itertools.product(range(3), repeat=len(place)):
                near = tuple(p + o - 1 for p, o in zip(place, off, strict=True))
                if near in rows:
                    total = total + conv.weight[(slice(None), 0, *off)] * rows[near]
            out[place] = total
        x = F.gelu(layer.mlp.fc1(norm(torch.stack(list(out.values())), layer.norm)))
        g = x.square().sum(0).sqrt()
        x = x + layer.mlp.grn.weight * (x * g / (g.mean() + 1e-6)) + layer.mlp.grn.bias
        return {place: rows[place] + y for place, y in zip(out, layer.mlp.fc2(x), strict=True)}

    pixels = {
        place: image[(slice(None), *place)]
        for place in itertools.product(*(range(n) for n in image.shape[1:]))
        if bool(shown[tuple(p // 4 for p in place)])
    }
    rows = {place: norm(x, encoder.stem[1]) for place, x in strided(pixels, encoder.stem[0]).items()}
    levels = []
    for i, stage in enumerate(encoder.stages):
        if i:
            rows = {place: norm(x, stage.downsample[0]) for place, x in rows.items()}
            rows = strided(rows, stage.downsample[1])
        for layer in stage.blocks:
            rows = block(rows, layer)
        levels.append(rows)
    return levels


def difference(encoder: ConvNeXtEncoder, axes: int) -> float:
    image = torch.randn(2, 2, *encoder.grid.size)
    shown = torch.rand(2, 1, *encoder.grid.shape) < 0.4
    shown[:, 0].view(2, -1)[:, 0] = True
    worst = 0.0
    with torch.no_grad():
        levels = encoder.features(image * 1.0, shown)
        for row in range(2):
            for level, rows in zip(levels, gathered(encoder, image[row], shown[row, 0]), strict=True):
                expected = torch.zeros_like(level[row])
                for place, value in rows.items():
                    expected[(slice(None), *place)] = value
                worst = max(worst, float((level[row] - expected).abs().max()))
    return worst


@pytest.mark.parametrize("axes", AXES)
def test_masked_maps_are_the_network_that_has_no_hidden_places(axes: int) -> None:
    assert difference(network(axes), axes) < 2e-5


def test_without_the_mask_before_the_response_norm_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ResponseMlp.forward
    monkeypatch.setattr(ResponseMlp, "forward", lambda self, x, mask=None: whole(self, x))
    assert difference(network(2), 2) > 0.01


@pytest.mark.parametrize("axes", AXES)
def test_hidden_pixels_reach_no_stage(axes: int) -> None:
    encoder = network(axes)
    image, shown = torch.randn(2, 2, *encoder.grid.size), torch.rand(2, 1, *encoder.grid.shape) < 0.5
    wide = shown
    for axis in range(axes):
        wide = wide.repeat_interleave(4, axis + 2)
    other = torch.where(wide, image, 5 * torch.randn(image.shape))
    with torch.no_grad():
        for mine, theirs in zip(encoder.features(image, shown), encoder.features(other, shown), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("axes", AXES)
def test_an_all_visible_mask_is_no_mask(axes: int) -> None:
    encoder = network(axes)
    image = torch.randn(2, 2, *encoder.grid.size)
    shown = torch.ones(2, 1, *encoder.grid.shape, dtype=torch.bool)
    with torch.no_grad():
        for masked, plain in zip(encoder.features(image, shown), encoder.features(image), strict=True):
            assert torch.equal(masked, plain)


def test_the_response_norm_counts_one_sample_only() -> None:
    norm = ResponseNorm(5)
    nn.init.ones_(norm.weight)
    x = torch.randn(3, 4, 4, 5)
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))
    assert bool(norm(torch.zeros(1, 4, 4, 5)).isfinite().all())


def test_nothing_visible_has_finite_gradients() -> None:
    encoder = network(2)
    levels = encoder.features(torch.randn(1, 2, 12, 16), torch.zeros(1, 1, 3, 4, dtype=torch.bool))
    levels[-1].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="total stride 8"):
        ConvNeXtEncoder(grid=Grid((16, 16), (4, 4)), modalities=1, widths=(4, 8), depths=(1, 1))
    with pytest.raises(ValueError, match="1 axes"):
        ConvNeXtEncoder(grid=Grid((16,), (8,)), modalities=1, widths=(4, 8), depths=(1, 1))
    with pytest.raises(ValueError, match="odd"):
        ConvNeXtEncoder(grid=Grid((16, 16), (8, 8)), modalities=1, widths=(4, 8), depths=(1, 1), kernel=4)
