"""Ways to make one vector of what an encoder says."""

from __future__ import annotations

import pytest
import torch

from medmae.core.errors import CheckpointError, UsageError
from medmae.find import find
from medmae.testing import example_batch, mixed_batch
from medmae.transfer.backbone import Backbone, features
from medmae.transfer.heads import build_head
from medmae.transfer.pooling import Features, pooled_width

CASES = (("bm_mae", "mean"), ("bm_mae", "cls"), ("bm_mae", "modality"), ("resenc_mae", "mean"), ("eva_mae", "mean"),
         ("bm_mae", "mean_max"), ("resenc_mae", "mean_max"))  # fmt: skip


def backbone(name: str, **options) -> Backbone:
    torch.manual_seed(0)
    return Backbone(find(name).build(scale="test"), **options).eval()


@pytest.mark.parametrize(("name", "pool"), CASES)
@pytest.mark.parametrize("layer", [None, 0])
@torch.no_grad()
def test_ragged_batches_equal_single_runs(name: str, pool: str, layer: int | None) -> None:
    model = backbone(name, layer=layer)
    batch = mixed_batch(model)
    together = model(batch).pooled(pool)
    assert together.shape == (3, pooled_width(model.width, pool))
    for row in range(3):
        mine = {key: value[row : row + 1] for key, value in batch.items()}
        if bool(mine["present"].all()):
            mine.pop("present")
        torch.testing.assert_close(model(mine).pooled(pool)[0], together[row], rtol=0, atol=1e-4)


@torch.no_grad()
def test_missing_tokens_do_not_dilute_a_mean() -> None:
    model = backbone("bm_mae")
    batch = mixed_batch(model)
    batch["foreground"] = torch.ones_like(batch["foreground"])
    tokens = model.tokenizer(batch)
    content = model.encoder(tokens, tokens.layout).tokens.content
    for row in range(3):
        mean = content[row][tokens.layout.exists[row]].mean(0)
        torch.testing.assert_close(model(batch).pooled()[row], mean)


@torch.no_grad()
def test_a_hidden_layer_is_another_one() -> None:
    model, deep = backbone("bm_mae", layer=0), backbone("bm_mae")
    batch = example_batch(model)
    assert not torch.equal(model(batch).pooled(), deep(batch).pooled())
    with pytest.raises(UsageError, match="layers 0 to 1"):
        backbone("bm_mae", layer=2)


@torch.no_grad()
def test_every_sequence_counts_alike_by_modality() -> None:
    model = backbone("bm_mae")
    batch = mixed_batch(model)
    found = model(batch)
    means = found.by_modality()
    there = batch["present"]
    assert torch.equal(~means.isnan().any(-1), there)
    for row in range(3):
        torch.testing.assert_close(found.pooled("modality")[row], means[row][there[row]].mean(0))
    tokens = model.tokenizer.grid.length
    weight = found.weight[0, tokens : 2 * tokens, None]
    mean = (found.values[0, tokens : 2 * tokens] * weight).sum(0) / weight.sum()
    torch.testing.assert_close(means[0, 1], mean)


@pytest.mark.parametrize("name", ["bm_mae", "resenc_mae", "eva_mae"])
@torch.no_grad()
def test_a_region_of_interest_is_what_counts(name: str) -> None:
    model = backbone(name)
    batch = example_batch(model, samples=2)
    batch["region"] = torch.zeros_like(batch["foreground"])
    batch["region"][0, ..., :8, :8, :8] = 1
    found = model(batch, region="region")
    whole = model(batch)
    assert not torch.equal(found.pooled()[0], whole.pooled()[0])
    torch.testing.assert_close(found.pooled()[1], whole.pooled()[1])  # an empty region: the foreground
    if name == "bm_mae":
        first = found.values[0, :: model.tokenizer.grid.length].mean(0)  # 8 voxels are one patch
        torch.testing.assert_close(found.pooled()[0], first)
    with pytest.raises(UsageError, match="no region"):
        model(batch, region="tumor")


@torch.no_grad()
def test_what_an_encoder_cannot_give() -> None:
    cnn = backbone("resenc_mae")
    batch = example_batch(cnn)
    for pool, words in (("cls", "CLS"), ("modality", "joins")):
        with pytest.raises(CheckpointError, match=words):
            cnn(batch).pooled(pool)
    with pytest.raises(UsageError, match="pooling 'max'"):
        cnn(batch).pooled("max")


@torch.no_grad()
def test_a_method_and_its_backbone_agree() -> None:
    torch.manual_seed(0)
    method = find("bm_mae").build(scale="test").eval()
    batch = mixed_batch(method)
    assert torch.equal(features(method, batch), Backbone(method)(batch).pooled())


def test_depths_for_layer_decay() -> None:
    model = backbone("bm_mae")
    found = {name.split(".")[1]: set() for name, _ in model.named_parameters()}
    for name, _ in model.named_parameters():
        found[name.split(".")[1]].add(model.depth(name))
    assert found == {"embed": {0}, "prefix_tokens": {0}, "blocks": {1, 2}, "norm": {2}}
    cnn = backbone("resenc_mae")
    assert {cnn.depth(name) for name, _ in cnn.named_parameters()} == {0, 1, 2, 3}


def test_frozen_stays_in_evaluation_mode_and_gives_no_gradient() -> None:
    model = backbone("bm_mae", frozen=True).train()
    assert not model.encoder.training
    assert not model(example_batch(model)).pooled().requires_grad


def test_a_place_that_is_missing_or_does_not_count_is_no_maximum() -> None:
    """Missing places hold zeros, which would win among negative features; the region decides what else counts."""
    model = backbone("point_mae")
    known = model(example_batch(model))
    values = torch.tensor([[[-1.0, -4.0], [-3.0, -2.0], [0.0, 0.0], [9.0, 9.0]]])
    weight = torch.tensor([[1.0, 0.5, 0.0, 0.0]])
    found = Features(values, weight, None, values[:, :0], known.encoded).pooled("mean_max")
    torch.testing.assert_close(found, torch.tensor([[-2.5 / 1.5, -5.0 / 1.5, -1.0, -2.0]]))
    nothing = Features(values, torch.zeros(1, 4), None, values[:, :0], known.encoded)
    torch.testing.assert_close(nothing.pooled("mean_max"), torch.tensor([[1.25, 0.75, 9.0, 9.0]]))


def test_a_head_reads_the_mean_and_the_maximum() -> None:
    model = backbone("point_mae")
    head = build_head({"kind": "mlp", "pool": "mean_max", "hidden": 8}, width=model.width, outputs=3)
    batch = example_batch(model)
    assert head(model(batch), batch).shape == (len(batch["points"]), 3)
