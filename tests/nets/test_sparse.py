"""Sparse networks: nothing hidden matters, the mask belongs to the pass, and what has no sparse form is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medmae.core.errors import UsageError
from medmae.nets.sparse import Blocks, Cells, Masked, check, encode, walk
from medmae.nets.sparse.walk import total_stride

sys.path.insert(0, str(Path(__file__).parent))

from sparse_networks import (
    FLAT,
    UNEVEN,
    architecture,
    assert_same,
    built,
    grid,
    image_for,
    run,
    score,
    stages_of,
)  # fmt: skip

BOTH = (Blocks, Masked)
MARKS = grid("10010110 00000001", (2, 2, 2))
BLOCK = (8, 8, 8)


def fresh(marks: torch.Tensor = MARKS, block: tuple[int, ...] = BLOCK) -> Cells:
    return Cells(marks, block)


# --- what is hidden ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("flat", [False, True])
def test_hidden_voxels_do_not_matter_the_rim_included(kind: Any, flat: bool) -> None:
    network = built(architecture(kernels=FLAT, strides=UNEVEN) if flat else architecture(), dtype=torch.float32)
    image = image_for(fresh(), dtype=torch.float32)
    shown = fresh().mask((1, 1, 1)).expand_as(image)
    first = run(network, kind(fresh()), image)
    second = run(network, kind(fresh()), torch.where(shown, image, 1e3 * torch.randn_like(image)))
    assert_same(second, first, features=0.0, gradients=0.0)
    assert float(first.gradients["image"][~shown].abs().max()) == 0
    # A visible voxel at every face of a cube takes part, and so does each of its neighbors across a face.
    assert bool((first.gradients["image"][shown] != 0).float().mean() > 0.99)


@pytest.mark.parametrize("kind", BOTH)
def test_a_mask_of_other_cubes_gives_other_features(kind: Any) -> None:
    network, image = built(architecture()), image_for(fresh())
    one = run(network, kind(fresh()), image)
    other = run(network, kind(fresh(grid("10010111 00000001", (2, 2, 2)))), image)
    corner = (slice(0, 1), slice(None), slice(0, 8), slice(0, 8), slice(0, 8))
    assert float((one.maps[0][corner] - other.maps[0][corner]).abs().max()) > 1e-3, "statistics see the new cube"


@pytest.mark.parametrize("kind", BOTH)
def test_samples_do_not_see_each_other(kind: Any) -> None:
    network, image = built(architecture()), image_for(fresh())
    both = run(network, kind(fresh()), image)
    for row in range(2):
        alone = run(network, kind(fresh(MARKS[row : row + 1])), image[row : row + 1])
        for mine, theirs in zip(alone.maps, both.maps, strict=True):
            torch.testing.assert_close(mine, theirs[row : row + 1], rtol=1e-9, atol=1e-9)


# --- the mask belongs to the pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_two_forward_passes_before_one_backward_pass(kind: Any) -> None:
    network, image = built(architecture()), image_for(fresh())
    others = grid("01101001 11000000", (2, 2, 2))
    expected: dict[str, torch.Tensor] = {}
    for marks in (MARKS, others):
        for name, gradient in run(network, kind(fresh(marks)), image).gradients.items():
            expected[name] = expected.get(name, torch.zeros(())) + gradient
    totals = []
    for marks in (MARKS, others):
        execution = kind(fresh(marks))
        found = encode(execution, stages_of(network), execution.restrict(image, (1, 1, 1)))
        totals.append(score([execution.dense(x, scale) for x, scale in found]))
    network.zero_grad(set_to_none=True)
    torch.stack(totals).sum().backward()
    for name, parameter in network.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("plain", [False, True])
def test_recomputed_activations_give_the_same_gradients(kind: Any, plain: bool) -> None:
    network, image = built(architecture(plain=plain)), image_for(fresh())
    kept, again = run(network, kind(fresh()), image), run(network, kind(fresh()), image, recompute=True)
    assert_same(again, kept, features=0.0, gradients=1e-12)


def test_two_networks_in_one_process() -> None:
    first, second = built(architecture()), built(architecture(plain=True))
    image = image_for(fresh())
    others = grid("01101001 11000000", (2, 2, 2))
    alone = run(first, Blocks(fresh()), image), run(second, Blocks(fresh(others)), image)
    one, two = Blocks(fresh()), Blocks(fresh(others))
    a = encode(one, stages_of(first)[:2], one.restrict(image, (1, 1, 1)))
    b = encode(two, stages_of(second)[:2], two.restrict(image, (1, 1, 1)))
    for found, execution, expected in ((a, one, alone[0]), (b, two, alone[1])):
        for (x, scale), theirs in zip(found, expected.maps, strict=False):
            torch.testing.assert_close(execution.dense(x, scale), theirs, rtol=1e-12, atol=1e-12)


def test_parameters_and_names_stay_what_they_are() -> None:
    network = built(architecture())
    before = {name: id(value) for name, value in network.named_parameters()}
    kinds = [type(module) for module in network.modules()]
    run(network, Blocks(fresh()), image_for(fresh()))
    assert before == {name: id(value) for name, value in network.named_parameters()}
    assert kinds == [type(module) for module in network.modules()]
    assert not any(module._forward_hooks for module in network.modules())


# --- forms of features ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 2, 2), (8, 4, 8), (16, 16, 8)])
def test_rows_and_maps_hold_the_same(scale: tuple[int, ...]) -> None:
    cells = fresh()
    shape = [n * 8 // s for n, s in zip((2, 2, 2), scale, strict=True)]
    whole = torch.randn(2, 3, *shape)
    rows = Blocks(cells).restrict(whole, scale)
    assert len(rows) == cells.level(scale).rows == int(cells.mask(scale).sum())
    assert torch.equal(Blocks(cells).dense(rows, scale), whole * cells.mask(scale))
    assert torch.equal(Masked(cells).restrict(whole, scale), whole * cells.mask(scale))
    token = torch.randn(3)
    filled = torch.where(cells.mask(scale), whole, token.view(1, 3, 1, 1, 1))
    more = Cells(cells.visible | grid("11000000 10000000", (2, 2, 2)), cells.block)
    for onto in (Masked(cells.all()), Masked(more), Blocks(more)):
        for source, x in ((Blocks(cells), rows), (Masked(cells), whole * cells.mask(scale))):
            if isinstance(source, Masked) and isinstance(onto, Blocks):
                continue
            spread = onto.dense(source.spread(x, token, scale, onto), scale)
            assert torch.equal(spread, filled * onto.cells.mask(scale))


def test_a_deep_voxel_is_visible_when_any_cube_under_it_is() -> None:
    cells = Cells(grid("0000000000000001", (4, 2, 2)), (2, 4, 4))
    assert cells.mask((4, 8, 8)).flatten().tolist() == [False, True]
    assert cells.mask((4, 4, 8)).flatten().tolist() == [False, False, False, True]
    assert cells.level((4, 8, 8)).edge == (1, 1, 1)


def test_cubes_that_do_not_nest_are_refused() -> None:
    with pytest.raises(UsageError, match="do not nest"):
        fresh(block=(12, 8, 8)).level((8, 8, 8))
    with pytest.raises(UsageError, match="do not nest"):
        Cells(torch.ones(1, 3, 2, 2, dtype=torch.bool), (8, 8, 8)).mask((16, 8, 8))


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_autocast_gives_nearly_the_same(kind: Any) -> None:
    network, image = built(architecture(), dtype=torch.float32), image_for(fresh(), dtype=torch.float32)
    exact = run(network, kind(fresh()), image)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(network, kind(fresh()), image)
    for mine, theirs in zip(rough.maps, exact.maps, strict=True):
        assert float((mine.float() - theirs).abs().mean()) < 0.05 * float(theirs.abs().max())
    assert all(bool(g.isfinite().all()) for g in rough.gradients.values())
    assert all(p.grad.dtype == torch.float32 for p in network.encoder.parameters())


# --- what has no sparse form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm3d(4), "BatchNorm3d"),
        (nn.InstanceNorm3d(4, track_running_stats=True), "running statistics"),
        (nn.Dropout3d(0.5), "draws at random"),
        (nn.Conv3d(4, 4, 3, padding=1, groups=2), "groups"),
        (nn.Conv3d(4, 4, 3, padding=2, dilation=2), "dilation"),
        (nn.Conv3d(4, 4, 2, stride=2), "does not keep voxels in place"),
        (nn.ConvTranspose3d(4, 4, 4, stride=2, padding=1), "must not overlap"),
        (nn.MaxPool3d(3, 2, 1), "must not overlap"),
        (nn.Sigmoid(), "Sigmoid has no sparse form"),
        (nn.AdaptiveAvgPool3d(1), "AdaptiveAvgPool3d"),
    ],
)
def test_layers_without_a_sparse_form_are_named(layer: nn.Module, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        check(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), layer))


@pytest.mark.parametrize(
    ("option", "word"), [({"stochastic_depth_p": 0.2}, "stochastic depth"), ({"squeeze_excitation": True}, "squeeze")]
)
def test_residual_blocks_that_draw_or_pool_are_refused(option: dict[str, Any], word: str) -> None:
    from dynamic_network_architectures.building_blocks.residual import BasicBlockD

    block = BasicBlockD(
        nn.Conv3d, 4, 4, 3, 1, True, nn.InstanceNorm3d, {"affine": True}, None, None, nn.LeakyReLU, {}, **option
    )
    with pytest.raises(UsageError, match=word):
        check(block)


def test_a_walk_refuses_what_it_does_not_know() -> None:
    class Surprise(nn.Module):
        pass

    with pytest.raises(UsageError, match="Surprise has no sparse form"):
        walk(Blocks(fresh()), Surprise(), torch.zeros(1, 1), (1, 1, 1))


def test_strides_of_stages_are_known_without_running_them() -> None:
    network = built(architecture(kernels=FLAT, strides=UNEVEN))
    assert [total_stride(stage, 3) for stage in network.encoder.stages] == [tuple(s) for s in UNEVEN]
    assert total_stride(nn.Sequential(nn.MaxPool3d(2), nn.Conv3d(1, 1, 3, 2, 1)), 3) == (4, 4, 4)


# --- compilation ---------------------------------------------------------------------------------------------------

COMPILED = """
import sys; sys.path[:0] = {paths!r}
import torch
from sparse_networks import *
from medmae.nets.sparse import Masked
network = built(architecture(), dtype=torch.float32)
def step(image, marks):
    execution = Masked(Cells(marks, (8, 8, 8)))
    found = encode(execution, stages_of(network), execution.restrict(image, (1, 1, 1)))
    return score([execution.dense(x, scale) for x, scale in found])
marks = grid("10010110 00000001", (2, 2, 2))
image = image_for(Cells(marks, (8, 8, 8)), dtype=torch.float32)
step(image, marks).backward()
plain = [p.grad.clone() for p in network.encoder.parameters()]
network.zero_grad()
compiled = torch.compile(step, backend="aot_eager")
compiled(image, marks).backward()
largest = max(float(g.abs().max()) for g in plain)
for g, p in zip(plain, network.encoder.parameters()):
    assert float((g - p.grad).abs().max()) < 1e-4 * largest
"""


@pytest.mark.slow
def test_masked_execution_compiles() -> None:
    import subprocess

    here = Path(__file__).parent
    code = COMPILED.format(paths=[str(here), str(here.parents[1])])
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
