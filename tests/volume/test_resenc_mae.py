"""Dense MAE on the residual encoder U-Net: what is hidden, what is compared, and what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmae.checkpoint import load_model, save_model
from medmae.core.errors import UsageError
from medmae.find import find
from medmae.nets.build import resenc
from medmae.testing import example_batch
from medmae.volume.complete import complete

FOUND = find("resenc_mae")


def test_a_cube_is_hidden_in_all_sequences_of_a_patient_at_once() -> None:
    method = FOUND.build(scale="test")
    batch = example_batch(method, lacking=((), (1,), ()))
    plan, n = method.plan(batch), method.tokenizer.grid.length
    for row in range(3):
        ids = plan.visible[row][plan.visible[row] >= 0]
        per = [set((ids[ids // n == m] % n).tolist()) for m in range(4)]
        there = [cells for m, cells in enumerate(per) if not (row == 1 and m == 1)]
        assert all(cells == there[0] for cells in there)
        assert len(there[0]) == n // 4


def test_a_range_of_ratios_is_drawn_per_sample() -> None:
    method = FOUND.build(scale="test", mask_ratio=(0.25, 0.75))
    batch = example_batch(method, samples=40)
    n = method.tokenizer.grid.length
    counts = (method.plan(batch).visible >= 0).sum(1) / 4
    assert counts.min() >= n * 0.25 - 1
    assert counts.max() <= n * 0.75
    assert len(counts.unique()) > 8
    with pytest.raises(UsageError, match="from low to high"):
        FOUND.build(scale="test", mask_ratio=(0.7, 0.3))


def test_only_hidden_foreground_voxels_of_all_channels_are_compared() -> None:
    method = FOUND.build(scale="test", sequences=("a", "b")).eval()
    batch = example_batch(method)
    plan = method.plan(batch)
    with torch.no_grad():
        loss = float(method(batch, plan)["reconstruction"])
        tokens = method.tokenizer(batch)
        guess = method.guess(tokens, plan)
        canvas = type(tokens)(tokens.layout.at(plan.target), guess).onto(tokens.layout, torch.zeros(())).content
        asked = (
            type(tokens)(tokens.layout.at(plan.target), torch.ones_like(guess))
            .onto(tokens.layout, torch.zeros(()))
            .content
        )
        total = count = 0.0
        n, grid = method.tokenizer.grid.length, method.tokenizer.grid
        for m, name in enumerate("ab"):
            part = slice(m * n, (m + 1) * n)
            counted = (grid.unpatchify(asked[:, part]) > 0) & (batch["foreground"] > 0)
            total += float((grid.unpatchify(canvas[:, part]) - batch[name])[counted].square().sum())
            count += int(counted.sum())
    assert loss == pytest.approx(total / count, rel=1e-5)
    only_second = {**batch, "b": batch["b"] + 1.0 * (batch["foreground"] > 0)}
    with torch.no_grad():
        assert float(method(only_second, plan)["reconstruction"]) != pytest.approx(loss, rel=1e-3)


def test_saved_state_is_a_state_of_the_stock_network_without_doubles(tmp_path: Path) -> None:
    method = FOUND.build(scale="test", sequences=("t1n", "t2w"))
    save_model(tmp_path, method, name="resenc_mae", recipe=FOUND.recipe(scale="test", sequences=("t1n", "t2w")))
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(v.numel() for v in stored.values()) == sum(p.numel() for p in method.parameters())
    recipe = FOUND.recipe(scale="test")
    keys = ("features", "blocks", "kernels", "strides", "decoder_convs")
    stock = resenc(**{key: recipe[key] for key in keys}).build(input_channels=2, num_classes=2)
    stock.load_state_dict(load_model(tmp_path).method.state_dict(), strict=True)
    stem = stock.encoder.stem.convs[0].conv.weight
    assert torch.equal(stem, method.state_dict()["encoder.stem.convs.0.conv.weight"])


def test_it_guesses_a_missing_sequence_of_a_whole_volume() -> None:
    method = FOUND.build(scale="test").eval()
    images = {name: torch.randn(1, 1, 20, 18, 22) for name in ("t1n", "t2w")}
    found = complete(method, images, ["t1c"])
    assert found["t1c"].shape == (1, 1, 20, 18, 22)
    assert bool(found["t1c"].isfinite().all())
    other = complete(method, {**images, "t2w": images["t2w"] + 1}, ["t1c"])
    assert not torch.equal(found["t1c"], other["t1c"])


def test_a_window_that_is_no_multiple_of_the_cube_says_what_would_be() -> None:
    with pytest.raises(UsageError, match="crop or pad"):
        FOUND.build(scale="test", size=(18, 16, 16))


def test_sequences_can_be_hidden_whole_so_that_missing_ones_are_learned() -> None:
    method = FOUND.build(scale="test", complete=0.5)
    batch = example_batch(method, samples=60)
    plan, n = method.plan(batch), method.tokenizer.grid.length
    whole = 0
    for ids in plan.visible:
        per = torch.bincount(ids[ids >= 0] // n, minlength=4)
        if bool((per == n // 4).all()):
            continue
        assert set(per.tolist()) == {0, n}
        whole += 1
    assert 15 <= whole <= 45


@pytest.mark.parametrize("options", [{}, {"plain": True}, {"stem": "per_modality"}])
def test_channels_are_loaded_by_the_names_of_their_sequences(tmp_path: Path, options: dict) -> None:
    torch.manual_seed(0)
    recipe = FOUND.recipe(scale="test", sequences=["t1n", "t2w"], **options)
    method = FOUND.build(**recipe).eval()
    save_model(tmp_path, method, name="resenc_mae", recipe=recipe)
    batch = example_batch(method)
    kept = float(method(batch)["reconstruction"].detach())
    turned = load_model(tmp_path, sequences=("t2w", "t1n")).method
    assert float(turned(batch)["reconstruction"].detach()) == pytest.approx(kept, rel=1e-5)

    larger = load_model(tmp_path, sequences=("t2f", "t2w", "t1n"))
    stem, head = next(larger.method.encoder.parameters()), larger.method.decoder.seg_layers[-1].weight
    old = next(method.encoder.parameters())
    if not options.get("stem"):
        assert torch.equal(stem[:, 1], old[:, 1])
        assert torch.equal(stem[:, 2], old[:, 0])
        assert not torch.equal(stem[:, 0], old[:, 0])
    assert torch.equal(head[[2, 1]], method.decoder.seg_layers[-1].weight)
    assert "decoder.seg_layers.1.weight[t2f]" in larger.report.fresh

    other = load_model(tmp_path, sequences=("t1n", "t1c")).report  # as many, but not the same
    assert "decoder.seg_layers.1.weight[t1c]" in other.fresh
    assert "decoder.seg_layers.1.weight[t2w]" in other.dropped
    fewer = load_model(tmp_path, sequences=("t2w",)).method
    assert torch.equal(fewer.decoder.seg_layers[-1].weight[0], method.decoder.seg_layers[-1].weight[1])
