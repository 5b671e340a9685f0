"""SparK in 3-D: what is published, and a decoder that works where it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from medmae.core.errors import UsageError
from medmae.core.grid import Grid
from medmae.core.tokens import MaskPlan
from medmae.engine.distributed import blocks
from medmae.find import find
from medmae.nets.build import resenc
from medmae.nets.sparse import Blocks, Masked
from medmae.nets.sparse.unet import sparse_unet
from medmae.testing.batches import awake, example_batch, mixed_batch, pieces
from medmae.testing.building import total_loss

TINY = {"sequences": ("t1n", "t2w"), "scale": "test"}


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return find("spark3d").build(**(TINY | options))


@pytest.mark.parametrize("plain", [False, True])
def test_names_are_those_of_the_stock_network_and_the_fillers(plain: bool) -> None:
    method = build(plain=plain)
    recipe = find("spark3d").recipe(**TINY, plain=plain)
    names = ("features", "blocks", "kernels", "strides", "decoder_convs")
    stock = resenc(**{name: recipe[name] for name in names}, plain=plain).build(input_channels=2, num_classes=2)
    mine = method.state_dict()
    fillers = {name for name in mine if name.startswith("decoder.densify.")}
    assert set(mine) - fillers == set(stock.state_dict())
    assert all(mine[name].shape == value.shape for name, value in stock.state_dict().items())
    assert len(fillers) == 3 + 2 * 2, "a vector per stage, and a convolution in all but the finest"
    stock.load_state_dict({name: mine[name] for name in mine if name not in fillers})
    batch = example_batch(method)
    tokens = method.tokenizer(batch)
    with torch.no_grad():
        found = method.encoder(tokens, tokens.layout).dense()
        image = torch.cat([batch["t1n"], batch["t2w"]], 1)
        for a, b in zip(found, stock.encoder(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"decode": 0.4}, {"stem": "per_modality"}, {"densify": "norm_conv"}])
@pytest.mark.parametrize("lacking", [False, True])
def test_both_executions_give_one_loss_and_one_gradient(options: dict[str, Any], lacking: bool) -> None:
    found = []
    for execution in ("block", "masked"):
        method = awake(build(execution=execution, **options)).double()
        batch = {k: v.double() if v.is_floating_point() else v for k, v in
                 (mixed_batch(method) if lacking else example_batch(method)).items()}  # fmt: skip
        loss = total_loss(method(batch))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in method.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=0)
    largest = max(float(g.abs().max()) for g in found[1][1].values())
    for name, gradient in found[1][1].items():
        assert float((found[0][1][name] - gradient).abs().max()) <= 1e-8 * largest, name


@pytest.mark.parametrize("decode", [0.25, 0.5, 1.0])
def test_a_share_of_the_hidden_cubes_is_asked_for_in_all_sequences(decode: float) -> None:
    method = build(decode=decode)
    batch = mixed_batch(method)
    tokens, plan, guess = pieces(method, batch)
    n = method.tokenizer.grid.length
    for row, present in enumerate(batch["present"].sum(1).tolist()):
        seen, asked = (getattr(plan, what)[row] for what in ("visible", "target"))
        seen, asked = seen[seen >= 0], asked[asked >= 0]
        assert len(seen) == present * 16, "a quarter of 64 cubes"
        assert len((seen % n).unique()) == 16, "the same cubes in every sequence"
        assert len((asked % n).unique()) == -(-48 * decode // 1)
    onto = method.decoder._onto(method.encoder(tokens.at(plan.visible), tokens.layout).execution,
                                tokens.layout.at(plan.target))  # fmt: skip
    assert isinstance(onto, Masked if decode == 1 else Blocks)
    expected = [16 + -int(-48 * decode // 1)] * 3
    assert onto.cells.visible.flatten(1).sum(1).tolist() == expected
    assert bool(guess.isfinite().all())


def test_a_cube_that_is_neither_visible_nor_asked_for_does_not_exist() -> None:
    """Asking for another cube changes the other guesses: its features are in the statistics, and only then."""
    method = awake(build(decode=0.5, sequences=("t1n",)))
    tokens = method.tokenizer(example_batch(method))
    seen = torch.arange(16).expand(3, -1)
    few, more = torch.arange(20, 30).expand(3, -1), torch.arange(20, 31).expand(3, -1)
    with torch.no_grad():
        first = method.guess(tokens, MaskPlan(seen, few))
        second = method.guess(tokens, MaskPlan(seen, more))[:, :10]
        padded = method.guess(tokens, MaskPlan(seen, torch.nn.functional.pad(few, (0, 2), value=-1), ragged=True))
    assert float((first - second).abs().max()) > 1e-4
    assert torch.equal(padded[:, :10], first)


def test_mask_ratios_may_be_drawn() -> None:
    method = build(mask_ratio=(0.4, 0.9))
    counts = {int((method.plan(example_batch(method, seed=s)).visible >= 0).sum(1)[0]) for s in range(8)}
    assert len(counts) > 3
    assert all(2 * 6 <= count <= 2 * 39 for count in counts)


def test_anisotropic_networks_and_cubes() -> None:
    method = build(
        size=(8, 32, 32), block=(2, 8, 8), kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (1, 2, 2),
        (2, 2, 2)),
    )  # fmt: skip
    loss = total_loss(method(example_batch(method)))
    loss.backward()
    assert bool(loss.isfinite())
    assert method.decoder.densify[1].conv.kernel_size == (1, 3, 3)


def test_recomputing_activations_changes_no_gradient() -> None:
    grads = []
    for on in (False, True):
        method = build(decode=0.5)
        method.checkpoint_activations(on)
        total_loss(method(example_batch(method))).backward()
        grads.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], rtol=1e-5, atol=1e-7)


def test_every_sequence_is_compared() -> None:
    method = build()
    batch = example_batch(method)
    losses = []
    for name in method.sequences:
        changed = batch | {name: batch[name] + 10}
        with torch.no_grad():
            losses.append(float(total_loss(method(changed))))
    with torch.no_grad():
        plain = float(total_loss(method(batch)))
    assert all(loss > plain + 1 for loss in losses)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decode": 0.0}, "decode must be"),
        ({"plain": True, "stem": "per_modality"}, "plain networks"),
        ({"size": (12, 12, 12), "block": (3, 3, 3)}, "do not nest"),
        ({"size": (16, 16, 18)}, "not a multiple"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        build(**options)


@pytest.mark.parametrize("option", ["execution", "densify", "stem"])
def test_unknown_options_are_refused(option: str) -> None:
    recipe = find("spark3d").recipe(**TINY)
    names = ("features", "blocks", "kernels", "strides", "decoder_convs")
    chosen = resenc(**{name: recipe[name] for name in names})
    with pytest.raises(UsageError, match=f"{option} must be"):
        sparse_unet(names=("a",), grid=Grid((16,) * 3, (4,) * 3), architecture=chosen, **{option: "other"})


def test_presets_are_plain_values() -> None:
    recipe = find("spark3d").recipe(preset="published")
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["mask_ratio"] == [0.6, 0.9]
    assert recipe["decode"] == 1.0


def test_sequences_can_be_hidden_whole_where_all_cubes_are_decoded() -> None:
    method = find("spark3d").build(scale="test", complete=1.0)
    batch = example_batch(method, samples=6)
    plan, n = method.plan(batch), method.tokenizer.grid.length
    for ids in plan.visible:
        assert set(torch.bincount(ids[ids >= 0] // n, minlength=4).tolist()) == {0, n}
    assert bool(method(batch)["reconstruction"].isfinite())
    with pytest.raises(UsageError, match="complete must be 0"):
        find("spark3d").build(scale="test", complete=0.5, decode=0.5)


@pytest.mark.parametrize("options", [{}, {"decode": 0.5}])
def test_a_batch_in_which_nothing_is_visible_is_one_function_too(options: dict[str, Any]) -> None:
    """So high a ratio that not one of the cubes is left."""
    losses = []
    for execution in ("block", "masked"):
        method = awake(build(execution=execution, mask_ratio=0.99, **options))
        loss = total_loss(method(example_batch(method)))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_only_modules_that_are_called_may_be_sharded_one_by_one() -> None:
    """Stages are walked over: what gathers the pieces of a sharded module would never run."""
    method = build()
    assert all(type(block).__name__ == "Densify" for block in blocks(method))
