"""One vector per patient: from any encoder, from any subset of sequences, alone or in a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medmae.core.errors import CheckpointError
from medmae.find import find
from medmae.testing import example_batch, mixed_batch
from medmae.transfer.backbone import features, volume_features

METHODS = ("bm_mae", "resenc_mae", "simclr", "byol")
WIDTH = {"bm_mae": 48, "resenc_mae": 10, "simclr": 10, "byol": 10}


def build(name: str):
    torch.manual_seed(0)
    return find(name).build(scale="test").eval()


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_ragged_batches_equal_single_runs(name: str) -> None:
    method = build(name)
    batch = mixed_batch(method)
    together = features(method, batch)
    assert together.shape == (3, WIDTH[name])
    for row in range(3):
        mine = {key: value[row : row + 1] for key, value in batch.items()}
        if bool(mine["present"].all()):
            mine.pop("present")
        torch.testing.assert_close(features(method, mine)[0], together[row], rtol=0, atol=1e-4)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_everything_is_visible_and_what_is_missing_leaves_no_trace(name: str) -> None:
    method = build(name)
    batch = mixed_batch(method)
    filled = dict(batch)
    for column, sequence in enumerate(method.sequences):
        has = batch["present"][:, column].reshape(-1, 1, 1, 1, 1)
        filled[sequence] = torch.where(has, batch[sequence], torch.full_like(batch[sequence], torch.nan))
    assert torch.equal(features(method, batch), features(method, filled))
    grid = method.tokenizer.grid
    whole = example_batch(method)
    for axis in range(2, 5):  # every corner of every sequence matters
        for name_ in method.sequences:
            changed = dict(whole)
            changed[name_] = whole[name_].clone()
            changed[name_].select(axis, grid.size[0] // 2)[:] += 1
            assert not torch.equal(features(method, whole), features(method, changed))


@torch.no_grad()
def test_tokens_count_by_their_share_of_foreground() -> None:
    method = build("bm_mae")
    batch = example_batch(method, samples=1)
    batch["foreground"] = torch.zeros_like(batch["foreground"])
    batch["foreground"][..., :8, :8, :8] = 1.0  # the first patch
    tokens = method.tokenizer(batch)
    content = method.encoder(tokens, tokens.layout).tokens.content
    first = content[0, :: method.tokenizer.grid.length].mean(0)
    torch.testing.assert_close(features(method, batch)[0], first, rtol=0, atol=1e-5)
    batch["foreground"] = torch.zeros_like(batch["foreground"])
    torch.testing.assert_close(features(method, batch)[0], content[0].mean(0), rtol=0, atol=1e-5)
    lacking = example_batch(method, samples=1, lacking=((1, 3),))
    tokens = method.tokenizer(lacking)
    content = method.encoder(tokens, tokens.layout).tokens.content[0]
    weight = tokens.layout.weight[0] * tokens.layout.exists[0]
    mean = (content.nan_to_num() * weight[:, None]).sum(0) / weight.sum()
    torch.testing.assert_close(features(method, lacking)[0], mean, rtol=0, atol=1e-5)


def volume(size: tuple[int, ...], names: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=draw) for name in names}, torch.ones(size, dtype=torch.bool)


@pytest.mark.parametrize("name", ["bm_mae", "simclr"])
def test_a_volume_is_the_mean_of_the_windows_that_cover_it(name: str) -> None:
    method = build(name)
    size = method.tokenizer.grid.size
    long = (2 * size[0], *size[1:])
    images, inside = volume(long, method.sequences[:2])
    inside[: size[0] // 2] = False
    found = volume_features(method, images, inside, spacing=(1, 1, 1))
    parts, weights = [], []
    for start in (0, size[0]):
        window = {key: image[None, None, start : start + size[0]] for key, image in images.items()}
        window |= {name: torch.zeros(1, 1, *size) for name in method.sequences[2:]}
        window["present"] = torch.tensor([[name in images for name in method.sequences]])
        window["foreground"] = inside[None, None, start : start + size[0]].float()
        parts.append(features(method, window)[0].detach())
        weights.append(float(window["foreground"].sum()))
    assert weights == [0.5 * weights[1], weights[1]]
    expected = (weights[0] * parts[0] + weights[1] * parts[1]) / sum(weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    at_once = volume_features(method, images, inside, spacing=(1, 1, 1), batch_size=5)
    torch.testing.assert_close(found, at_once, rtol=0, atol=1e-5)
    inside[: size[0]] = False  # a window without foreground is not looked at
    torch.testing.assert_close(volume_features(method, images, inside, spacing=(1, 1, 1)), parts[1], rtol=0, atol=1e-5)


def test_small_volumes_are_padded_and_unknown_sequences_ignored() -> None:
    method = build("simclr")
    images, inside = volume((9, 16, 11), method.sequences)
    found = volume_features(method, images | {"adc": images["t1n"]}, inside, spacing=(1, 1, 1))
    assert found.shape == (10,)
    assert bool(found.isfinite().all())
    nothing = volume_features(method, images, inside & False, spacing=(1, 1, 1))
    assert bool(nothing.isfinite().all())


def test_what_has_no_features_is_refused() -> None:
    method = build("simclr")
    images, inside = volume((16, 16, 16), ("adc",))
    with pytest.raises(CheckpointError, match="the case has adc"):
        volume_features(method, images, inside, spacing=(1, 1, 1))
    with pytest.raises(CheckpointError, match="no tokenizer"):
        features(nn.Linear(1, 1), {})
    with pytest.raises(CheckpointError, match="3 axes"):
        volume_features(find("mae").build(scale="test"), images, inside, spacing=(1, 1, 1))
    method.encoder.forward = lambda *_: torch.zeros(1)
    with pytest.raises(CheckpointError, match="gives a Tensor"):
        features(method, example_batch(method))
