"""What the answers are: content, normalized content, codes, features of a teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.target import Codes, Content, Features, Normalized
from medmae.core.tokens import Tokens
from medmae.nets.embed import SharedEmbed
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder


def tokens_of(image: torch.Tensor, patch: tuple[int, ...]) -> Tokens:
    return ModalityGrid(("a",), Grid(tuple(image.shape[2:]), patch, image.shape[1]))({"a": image})


@pytest.fixture
def tokens() -> Tokens:
    return tokens_of(3 * torch.randn(2, 3, 8, 8) + 5, (4, 4))


def test_content_is_the_content(tokens: Tokens) -> None:
    assert Content()(tokens) is tokens.content


def test_normalized_is_the_rule_of_mae(tokens: Tokens) -> None:
    x = tokens.content
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(Normalized()(tokens), expected)


def test_normalized_per_channel_is_the_rule_of_videomae(tokens: Tokens) -> None:
    x = tokens.content.unflatten(-1, (16, 3))
    expected = (x - x.mean(-2, keepdim=True)) / (x.var(-2, keepdim=True).sqrt() + 1e-6)
    torch.testing.assert_close(Normalized(channels=3, eps_outside=True)(tokens), expected.flatten(-2))


def test_scale_brings_a_guess_back_to_intensities(tokens: Tokens) -> None:
    target = Normalized(channels=3, floor=0.2)
    mean, divisor = target.scale(tokens.content)
    back = target(tokens).unflatten(-1, (-1, 3)) * divisor + mean
    torch.testing.assert_close(back.flatten(-2), tokens.content)


def test_the_floor_keeps_noise_in_air_small() -> None:
    air = tokens_of(1e-2 * torch.randn(1, 1, 8, 8, 8), (8, 8, 8))
    assert float(Normalized()(air).square().mean()) > 0.9
    assert float(Normalized(floor=0.1)(air).square().mean()) < 0.01
    constant = tokens_of(torch.full((1, 1, 8, 8, 8), 3.0), (4, 4, 4))
    assert bool((Normalized()(constant).abs() < 1e-2).all())


def test_codes_are_the_classes_of_a_frozen_book(tokens: Tokens) -> None:
    book = nn.Linear(48, 10)
    target = Codes(book)
    assert torch.equal(target(tokens), book(tokens.content).argmax(-1))
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert torch.equal(Codes(lambda x: x[..., :5])(tokens), tokens.content[..., :5].argmax(-1))


def encoder() -> ViTEncoder:
    return ViTEncoder(embed=SharedEmbed(48, 16), positions=SinCos(16), width=16, depth=1, heads=2)


def test_a_teacher_is_a_frozen_copy_in_evaluation_mode(tokens: Tokens) -> None:
    student = encoder()
    target = Features(student, momentum=None)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert not target.train().teacher.training
    expected = nn.functional.layer_norm(student(tokens, tokens.layout).tokens.content, (16,))
    assert torch.equal(target(tokens), expected)
    assert not target(tokens).requires_grad
    raw = Features(student, normalize=False)(tokens)
    assert torch.equal(raw, student(tokens, tokens.layout).tokens.content)
    with torch.no_grad():
        student.prefix_tokens += 1
    target.follow(student)
    assert torch.equal(target(tokens), expected)


def test_a_teacher_with_momentum_follows() -> None:
    student = encoder()
    target = Features(student, momentum=0.75)
    before = [parameter.clone() for parameter in target.teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    target.follow(student)
    for old, new in zip(before, target.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_impossible_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        Features(encoder(), momentum=momentum)


def test_a_code_book_never_trains() -> None:
    """Neither its dropout nor its running statistics may change while the student trains."""
    book = nn.Sequential(nn.Linear(48, 7), nn.BatchNorm1d(4), nn.Dropout(0.9))
    target = nn.ModuleList([Codes(book)]).train()[0]
    tokens = tokens_of(torch.randn(2, 3, 8, 8), (4, 4))
    assert torch.equal(target(tokens), target(tokens))
    assert not book[1].running_mean.any()
    assert target.training
    assert not book.training
