"""The segmentation decoder of token encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medmae.core.grid import Grid, ModalityGrid
from medmae.nets.unetr import FusedStem, UnetrDecoder, token_map

STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 1))
NAMES = ("a", "b", "c")


def decoder(**options: Any) -> UnetrDecoder:
    return UnetrDecoder(names=NAMES, width=12, strides=STRIDES, classes=3, features=4, **options).eval()


def levels(samples: int = 2) -> list[torch.Tensor]:
    return [torch.randn(samples, 12, 3, 2, 4) for _ in range(2)]


def test_scales_come_finest_first_and_one_alone_when_supervision_is_off() -> None:
    net, images = decoder(deep_supervision=True), torch.randn(2, 3, 12, 8, 8)
    present, hidden = torch.ones(2, 3, dtype=torch.bool), levels()
    scores = net(images, present, hidden)
    assert [tuple(score.shape) for score in scores] == [(2, 3, 12, 8, 8), (2, 3, 6, 4, 4)]
    net.deep_supervision = False
    torch.testing.assert_close(net(images, present, hidden), scores[0])


def test_a_missing_sequence_leaves_no_trace() -> None:
    net, images, hidden = decoder(), torch.randn(2, 3, 12, 8, 8), levels()
    present = torch.tensor([[True, False, True], [True, True, True]])
    other = images.clone()
    other[0, 1] = float("nan")
    torch.testing.assert_close(net(images, present, hidden), net(other, present, hidden), rtol=0, atol=0)
    without = UnetrDecoder(names=("a", "c"), width=12, strides=STRIDES, classes=3, features=4).eval()
    without.load_state_dict({k: v for k, v in net.state_dict().items() if ".each.b." not in k})
    alone = without(images[:1, [0, 2]], torch.ones(1, 2, dtype=torch.bool), [level[:1] for level in hidden])
    torch.testing.assert_close(net(images, present, hidden)[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scale_does_not_depend_on_how_many_are_present(count: int) -> None:
    """The same image in every channel, through the same weights, gives the same features however many there are."""
    stem = FusedStem(NAMES, 5)
    for conv in stem.each.values():
        conv.load_state_dict(stem.each["a"].state_dict())
    image = torch.randn(1, 1, 6, 6, 6)
    one = stem(image.expand(1, 3, -1, -1, -1), torch.tensor([[True, False, False]]))
    some = stem(image.expand(1, 3, -1, -1, -1), torch.arange(3)[None] < count)
    torch.testing.assert_close(one, some, atol=1e-6, rtol=1e-5)
    net = decoder()
    images = torch.randn(1, 3, 12, 8, 8)
    normalized = net.stem_norm(net.stem(images, torch.arange(3)[None] < count))
    torch.testing.assert_close(normalized.std((2, 3, 4)), torch.ones(1, 4), atol=0.02, rtol=0)


def test_tokens_are_averaged_over_the_sequences_that_have_one() -> None:
    tokenizer = ModalityGrid(NAMES, Grid((4, 2, 2), (2, 2, 2)))
    batch = {name: torch.randn(2, 1, 4, 2, 2) for name in NAMES}
    full = tokenizer(batch | {"present": torch.tensor([[True, False, True], [False, False, False]])})
    found = token_map(full, full.layout, (2, 1, 1))
    expected = (full.content[0, :2] + full.content[0, 4:]) / 2
    torch.testing.assert_close(found[0].flatten(1).T, expected)
    assert found[1].abs().max() == 0
    with pytest.raises(ValueError, match="whole grids"):
        token_map(full, full.layout, (4, 1, 1))


def test_every_parameter_gets_a_gradient() -> None:
    net = decoder(deep_supervision=True).train()
    scores = net(torch.randn(2, 3, 12, 8, 8), torch.ones(2, 3, dtype=torch.bool), levels())
    torch.stack([score.square().sum() for score in scores]).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name


def test_bad_strides_and_levels_are_refused() -> None:
    for strides in (((1, 1, 1),), ((2, 2, 2), (2, 2, 2)), ((1, 1), (2, 2))):
        with pytest.raises(ValueError, match="triples"):
            UnetrDecoder(names=NAMES, width=12, strides=strides, classes=3)
    with pytest.raises(ValueError, match="2 scales"):
        decoder()(torch.randn(2, 3, 12, 8, 8), torch.ones(2, 3, dtype=torch.bool), levels()[:1])
