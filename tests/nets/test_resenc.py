"""The stock U-Net behind the token interface: same function, same names, nothing hidden or missing in its input."""

from __future__ import annotations

import pytest
import torch

from medmae.core.errors import UsageError
from medmae.core.grid import Grid, ModalityGrid
from medmae.nets.build import resenc
from medmae.nets.resenc import check_size, paint, pick, unet

ARCHITECTURE = resenc(
    features=(4, 6, 8),
    blocks=(1, 2, 1),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    decoder_convs=(1, 1),
)
GRID = Grid((4, 8, 8), (2, 4, 4))
NAMES = ("t1n", "t2w")


def tokens_of(images: torch.Tensor, present: torch.Tensor | None = None):
    batch = {name: images[:, i : i + 1] for i, name in enumerate(NAMES)}
    if present is not None:
        batch["present"] = present
    return ModalityGrid(NAMES, GRID)(batch)


def test_paint_and_pick_are_inverse_where_something_is_visible() -> None:
    images = torch.randn(3, 2, *GRID.size)
    tokens = tokens_of(images)
    ids = torch.tensor([[0, 5, 9, 14], [3, 2, 15, -1], [7, -1, -1, -1]])
    image, shown = paint(tokens.at(ids, ragged=True), GRID, 2)
    assert shown.flatten(1).sum(1).tolist() == [4, 3, 1]
    for row in range(3):
        for column in ids[row][ids[row] >= 0].tolist():
            assert bool(shown[row].flatten()[column])
    back = pick(image, GRID, tokens.layout.at(ids.clamp_min(0)))
    real = ids >= 0
    assert torch.equal(back[real], tokens.at(ids.clamp_min(0)).content[real])
    everywhere = shown.reshape(3, 2, *GRID.shape)
    for axis, edge in enumerate(GRID.patch):
        everywhere = everywhere.repeat_interleave(edge, axis + 2)
    assert torch.equal(image, images * everywhere)


def test_everything_visible_is_the_stock_network_and_names_are_equal() -> None:
    encoder, decoder = unet(names=NAMES, grid=GRID, architecture=ARCHITECTURE)
    stock = ARCHITECTURE.build(input_channels=2, num_classes=2)
    method = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    assert set(method.state_dict()) == set(stock.state_dict())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    stock.load_state_dict(method.state_dict())
    assert sum(p.numel() for p in method.parameters()) == sum(p.numel() for p in stock.parameters())
    images = torch.randn(2, 2, *GRID.size)
    tokens = tokens_of(images)
    with torch.no_grad():
        pyramid = encoder(tokens, tokens.layout)
        guess = decoder(pyramid, tokens.layout)
        for mine, theirs in zip(pyramid.levels, stock.encoder(images), strict=True):
            torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(guess, pick(stock(images), GRID, tokens.layout))


def test_a_missing_sequence_leaves_no_trace_in_stems_of_their_own() -> None:
    encoder, _ = unet(names=NAMES, grid=GRID, architecture=ARCHITECTURE, stem="per_modality")
    alone, _ = unet(names=NAMES[:1], grid=GRID, architecture=ARCHITECTURE, stem="per_modality")
    alone.load_state_dict({k: v for k, v in encoder.state_dict().items() if "t2w" not in k})
    images = torch.randn(2, 2, *GRID.size)
    present = torch.tensor([[True, False], [True, False]])
    tokens = tokens_of(images, present)
    only = ModalityGrid(NAMES[:1], GRID)({"t1n": images[:, :1]})
    with torch.no_grad():
        for mine, theirs in zip(encoder(tokens, tokens.layout).levels, alone(only, only.layout).levels, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("size", "word"), [((4, 8, 10), "total stride"), ((2, 4, 4), "coarsest"), ((8, 8), "axes")])
def test_sizes_the_network_cannot_take_are_explained(size: tuple[int, ...], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        check_size(Grid(size, (2,) * len(size)), ARCHITECTURE)


def test_other_stems_are_refused() -> None:
    with pytest.raises(UsageError, match="stem must be"):
        unet(names=NAMES, grid=GRID, architecture=ARCHITECTURE, stem="leaf")
    plain = resenc(
        features=(4, 6), blocks=(1, 1), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)), decoder_convs=(1,),
        plain=True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="plain networks"):
        unet(names=NAMES, grid=GRID, architecture=plain, stem="per_modality")
