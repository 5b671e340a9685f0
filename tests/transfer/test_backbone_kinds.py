"""One vector per sample from encoders of images, clips, points and sound, on a grid or not."""

from __future__ import annotations

import pytest
import torch

from medmae.find import find
from medmae.testing import example_batch
from medmae.transfer.backbone import Backbone, features

METHODS = ("mae", "fcmae", "ca_mae", "videomae", "point_mae", "audio_mae")


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_vector_per_sample_that_the_other_samples_do_not_change(name: str) -> None:
    torch.manual_seed(0)
    method = find(name).build(scale="test").eval()
    batch = example_batch(method)
    together = features(method, batch)
    assert together.shape == (len(batch["key"]), Backbone(method).width)
    assert torch.isfinite(together).all()
    for row in range(len(together)):
        alone = features(method, {key: value[row : row + 1] for key, value in batch.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


@torch.no_grad()
def test_groups_of_points_count_alike() -> None:
    torch.manual_seed(0)
    method = find("point_mae").build(scale="test").eval()
    batch = example_batch(method)
    tokens = method.tokenizer(batch)
    content = method.encoder(tokens, tokens.layout).tokens.content
    torch.testing.assert_close(features(method, batch), content.mean(1), rtol=0, atol=1e-5)
