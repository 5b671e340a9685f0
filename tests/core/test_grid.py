"""Cutting is exact in any number of axes, and sequences are known by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.tokens import without_trivial_masks


@st.composite
def grids(draw) -> Grid:
    axes = draw(st.integers(1, 4))
    shape = draw(st.tuples(*[st.integers(1, 3)] * axes))
    patch = draw(st.tuples(*[st.integers(1, 4)] * axes))
    return Grid(tuple(s * p for s, p in zip(shape, patch, strict=True)), patch, draw(st.integers(1, 3)))


@given(grids(), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_patchify_round_trip_is_exact(grid: Grid, b: int, seed: int) -> None:
    image = torch.randn(b, grid.channels, *grid.size, generator=torch.Generator().manual_seed(seed))
    patches = grid.patchify(image)
    assert patches.shape == (b, grid.length, grid.content)
    assert torch.equal(grid.unpatchify(patches), image)
    assert torch.equal(grid.patchify(grid.unpatchify(patches)), patches)


@given(grids())
@settings(max_examples=50, deadline=None)
def test_a_patch_holds_the_voxels_of_its_place(grid: Grid) -> None:
    """Token order is row-major; inside a patch it is (axis 1, axis 2, ..., channel)."""
    axes = torch.meshgrid(*[torch.arange(s) for s in grid.size], indexing="ij")
    for axis, (index, patch) in enumerate(zip(axes, grid.patch, strict=True)):
        image = index.expand(1, grid.channels, *grid.size)
        cell = torch.div(grid.patchify(image), patch, rounding_mode="floor")[0]
        assert torch.equal(cell, grid.indices()[:, axis].long()[:, None].expand_as(cell))
    channel = torch.arange(grid.channels).reshape(1, -1, *(1,) * len(grid.size)).expand(1, grid.channels, *grid.size)
    assert torch.equal(grid.patchify(channel)[0, 0], torch.arange(grid.channels).repeat(grid.content // grid.channels))
    flat = torch.arange(torch.Size(grid.patch).numel())
    inside = torch.stack(torch.meshgrid(*[torch.arange(p) for p in grid.patch], indexing="ij")).flatten(1)
    strides = torch.tensor([torch.Size(grid.patch[i + 1 :]).numel() for i in range(len(grid.patch))])
    assert torch.equal((inside * strides[:, None]).sum(0), flat)


def test_the_order_of_three_axes_by_hand() -> None:
    grid = Grid((4, 2, 6), (2, 1, 3), 2)
    image = torch.arange(2 * 4 * 2 * 6).reshape(1, 2, 4, 2, 6)
    patches = grid.patchify(image)
    token = (1 * 2 + 1) * 2 + 0  # (i, j, k) = (1, 1, 0) on a grid of (2, 2, 2)
    by_hand = [image[0, c, 2 + x, 1, z] for x in range(2) for z in range(3) for c in range(2)]
    assert patches[0, token].tolist() == [int(value) for value in by_hand]


@pytest.mark.parametrize(
    ("size", "patch", "match"),
    [
        ((155, 240, 240), (16, 16, 16), r"not a multiple of patch .*\(144, 240, 240\)"),
        ((8, 8), (2, 2, 2), "different numbers of axes"),
        ((8, 0), (2, 2), "must be positive"),
        ((8, 8), (2, -2), "must be positive"),
    ],
)
def test_impossible_grids_say_why(size: tuple[int, ...], patch: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Grid(size, patch)


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape \(1, 8, 8\), got \(1, 8, 4\)"):
        Grid((8, 8), (2, 2)).patchify(torch.zeros(1, 1, 8, 4))


def test_share_is_the_mean_of_every_patch() -> None:
    grid = Grid((4, 6), (2, 3), 3)
    mask = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    mask[0, 0, :2, :3] = True
    mask[1, 0, 3, 3:] = True
    assert grid.share(mask).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0.5]]


# --- several sequences --------------------------------------------------------------------------------------------

NAMES = ("t1n", "t1c", "t2w")


@pytest.fixture
def tokenizer() -> ModalityGrid:
    return ModalityGrid(NAMES, Grid((4, 8, 6), (2, 4, 3)))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 1, 4, 8, 6), float(i)) for i, name in enumerate(NAMES)}


def test_tokens_come_in_the_order_of_the_names(tokenizer: ModalityGrid, batch: dict) -> None:
    tokens = tokenizer(dict(reversed(batch.items())))
    assert tokens.content.shape == (2, 24, 24)
    assert tokens.layout.total == 24
    assert torch.equal(tokens.content[..., 0].long(), tokens.layout.modality)
    assert torch.equal(tokens.layout.id, torch.arange(24).expand(2, -1))
    assert torch.equal(tokens.layout.coords[0, 8:16], tokenizer.grid.indices())
    assert not tokens.layout.ragged
    assert tokens.layout.weight is None


def test_missing_sequences_have_no_tokens(tokenizer: ModalityGrid, batch: dict) -> None:
    batch["present"] = torch.tensor([[True, False, True], [True, True, True]])
    layout = tokenizer(batch).layout
    assert layout.ragged
    assert layout.id[0].tolist() == [*range(8), *[-1] * 8, *range(16, 24)]
    assert layout.exists.sum(1).tolist() == [16, 24]


def test_a_sequence_that_nobody_has_may_be_left_out(tokenizer: ModalityGrid, batch: dict) -> None:
    batch["present"] = torch.tensor([[True, False, True]] * 2)
    whole = tokenizer(batch)
    del batch["t1c"]
    part = tokenizer(batch)
    assert torch.equal(part.layout.id, whole.layout.id)
    assert bool((part.content[:, 8:16] == 0).all())
    batch["present"][1, 1] = True
    with pytest.raises(KeyError, match=r"no 't1c'.*does not mark it as not present"):
        tokenizer(batch)
    with pytest.raises(KeyError, match="t1c"):
        tokenizer({name: value for name, value in batch.items() if name != "present"})


def test_present_of_another_shape_is_refused(tokenizer: ModalityGrid, batch: dict) -> None:
    with pytest.raises(ValueError, match=r"present has shape \(2, 2\), expected \(2, 3\)"):
        tokenizer(batch | {"present": torch.ones(2, 2, dtype=torch.bool)})


def test_millimeters_follow_patch_and_spacing(batch: dict) -> None:
    tokenizer = ModalityGrid(NAMES, Grid((4, 8, 6), (2, 4, 3)), coords="mm", unit=8.0)
    with pytest.raises(ValueError, match="spacing"):
        tokenizer(batch)
    coords = tokenizer(batch | {"spacing": torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 5.0]])}).layout.coords
    assert coords[0, 7].tolist() == [2 / 8, 4 / 8, 3 / 8]
    assert coords[1, 7].tolist() == [4 / 8, 4 / 8, 15 / 8]


def test_coords_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="'grid' or 'mm'"):
        ModalityGrid(NAMES, Grid((4,), (2,)), coords="voxel")


def test_foreground_weighs_every_sequence_alike(tokenizer: ModalityGrid, batch: dict) -> None:
    foreground = torch.rand(2, 1, 4, 8, 6)
    weight = tokenizer(batch | {"foreground": foreground}).layout.weight
    assert torch.equal(weight, tokenizer.grid.share(foreground).repeat(1, 3))


def test_trivial_masks_are_dropped() -> None:
    image = torch.zeros(2, 1, 4)
    complete = {"a": image, "present": torch.ones(2, 2, dtype=torch.bool)}
    assert set(without_trivial_masks(complete)) == {"a"}
    complete["present"][0, 1] = False
    assert set(without_trivial_masks(complete)) == {"a", "present"}


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ((), "no sequences"),
        (("a", "a"), "twice"),
        (("a", "key"), "'key'"),
        (("t1.n",), "'t1.n'"),
        (("type",), "'type'"),
    ],
)
def test_names_that_cannot_be_are_refused(names: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ModalityGrid(names, Grid((8, 8), (4, 4)))


def test_what_a_missing_image_holds_does_not_matter_not_even_nan():
    tokenizer = ModalityGrid(("a", "b"), Grid((4, 4), (2, 2)))
    batch = {
        "a": torch.randn(2, 1, 4, 4),
        "b": torch.randn(2, 1, 4, 4),
        "present": torch.tensor([[True, True], [True, False]]),
    }
    batch["b"][1] = torch.nan
    tokens = tokenizer(batch)
    assert torch.isfinite(tokens.content).all()
    assert torch.equal(tokens.content[0, 4:], tokenizer.grid.patchify(batch["b"])[0])


def test_sizes_are_whole_numbers() -> None:
    grid = object.__new__(Grid)  # past the type check of the tests, as users are
    vars(grid).update(size=(16.5, 16), patch=(4, 4), channels=1)
    with pytest.raises(ValueError, match="whole numbers"):
        grid.__post_init__()
