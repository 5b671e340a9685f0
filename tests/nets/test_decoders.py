"""Decoders are told where they are asked; nothing else may matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.tokens import Tokens
from medmae.nets.decoders import DetailDecoder, JointDecoder
from medmae.nets.embed import ModalityEmbed
from medmae.nets.encoded import Encoded
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder

NAMES = ("t1n", "t1c", "t2f")
TOKENIZER = ModalityGrid(NAMES, Grid((8, 8, 8), (4, 4, 4)))


def joint(names: tuple[str, ...] | None = NAMES, **options: object) -> JointDecoder:
    return JointDecoder(
        encoder_width=24, width=12, depth=2, heads=3, content=64, positions=SinCos(12), names=names, **options
    ).eval()


def encoded(ids: torch.Tensor, *, ragged: bool = False) -> tuple[Tokens, Encoded]:
    torch.manual_seed(4)
    net = ViTEncoder(embed=ModalityEmbed(NAMES, 64, 24), positions=SinCos(24), width=24, depth=1, heads=3).eval()
    tokens = TOKENIZER({name: torch.randn(2, 1, 8, 8, 8) for name in NAMES})
    return tokens, net(tokens.at(ids, ragged=ragged), tokens.layout)


SEEN = torch.tensor([[0, 9, 17, 3], [20, 2, 5, 8]])
ASKED = torch.tensor([[1, 16, 11], [0, 23, 10]])


def test_the_joint_decoder_is_the_classic_one() -> None:
    """Full-length sequence, inverse permutation, head on all tokens: the same numbers."""
    decoder = joint()
    tokens, coded = encoded(SEEN)
    hidden = torch.stack([torch.tensor([i for i in range(24) if i not in row.tolist()]) for row in SEEN])
    restore = torch.cat([SEEN, hidden], 1).argsort(1)
    x = torch.cat([decoder.embed(coded.tokens.content), decoder.mask_token.expand(2, 20, -1)], 1)
    x = x.gather(1, restore[..., None].expand(-1, -1, 12))
    x = x + SinCos(12)(tokens.layout.coords)
    x = x + torch.stack([decoder.modality[name] for name in NAMES]).repeat_interleave(8, 0)
    x = torch.cat([decoder.embed(coded.prefix), x], 1)
    for block in decoder.blocks:
        x = block(x)
    everything = decoder.head(decoder.norm(x))[:, 1:]
    expected = everything.gather(1, ASKED[..., None].expand(-1, -1, 64))
    torch.testing.assert_close(decoder(coded, tokens.layout.at(ASKED)), expected, atol=1e-5, rtol=1e-5)


def test_the_answer_does_not_depend_on_what_else_is_asked() -> None:
    for decoder in (joint(), DetailDecoder(joint(), width=12, names=NAMES)):
        tokens, coded = encoded(SEEN)
        both = decoder(coded, tokens.layout.at(ASKED))
        for i in range(3):
            one = decoder(coded, tokens.layout.at(ASKED[:, i : i + 1]))
            torch.testing.assert_close(one[:, 0], both[:, i], atol=1e-6, rtol=1e-5)


def test_names_are_optional_and_change_the_answer() -> None:
    tokens, coded = encoded(SEEN)
    queries = tokens.layout.at(ASKED)
    assert not joint(None).modality
    decoder = joint()
    before = decoder(coded, queries)
    with torch.no_grad():
        decoder.modality["t2f"] += 1
    assert not torch.equal(decoder(coded, queries), before)


def test_missing_tokens_are_not_attended_to() -> None:
    decoder = joint()
    tokens, coded = encoded(SEEN)
    ids = tokens.layout.id.clone()
    ids[:, 12:16] = -1
    full = replace(tokens.layout, id=ids, ragged=True)
    shifted = replace(full, coords=torch.where(ids[..., None] < 0, 99.0, full.coords))
    queries = tokens.layout.at(ASKED)
    guess = decoder(replace(coded, full=full), queries)
    assert torch.equal(decoder(replace(coded, full=shifted), queries), guess)
    assert not torch.allclose(decoder(coded, queries), guess)


def detail(hidden: int) -> DetailDecoder:
    """A decoder whose correction does not start at zero."""
    decoder = DetailDecoder(joint(), width=12, names=NAMES, hidden=hidden)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.startswith("inner"):
                parameter.normal_()
    return decoder


@pytest.mark.parametrize("hidden", [0, 4])
def test_the_detail_path_starts_as_the_inner_decoder(hidden: int) -> None:
    inner = joint()
    tokens, coded = encoded(SEEN)
    queries = tokens.layout.at(ASKED)
    assert torch.equal(
        DetailDecoder(inner, width=12, names=NAMES, hidden=hidden)(coded, queries), inner(coded, queries)
    )


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_detail_path_borrows_what_is_visible_at_the_same_place(ragged: bool, hidden: int) -> None:
    decoder = detail(hidden)
    ids = torch.cat([SEEN, torch.full((2, 2), -1)], 1) if ragged else SEEN
    tokens, coded = encoded(ids, ragged=ragged)
    queries = tokens.layout.at(ASKED)
    features, out = decoder.inner.features(coded, queries), decoder(coded, queries)
    for row in range(2):
        for i, asked in enumerate(ASKED[row].tolist()):
            columns = [asked % 8 + 8 * m for m in range(3)]
            there = torch.tensor([float(column in SEEN[row].tolist()) for column in columns])
            shown = tokens.content[row, columns] * there[:, None]
            writer = features[row, i] + sum(there[m] * decoder.visible[name] for m, name in enumerate(NAMES))
            gain = torch.cat([decoder.gain[name](writer) for name in NAMES])
            expected = decoder.inner.head(features)[row, i] + gain @ shown
            if hidden:
                weight = torch.stack([decoder.into[name](writer) for name in NAMES], -1)
                inside = torch.relu(weight @ shown + decoder.bias(writer)[:, None])
                expected = expected + decoder.out(writer) @ inside
            torch.testing.assert_close(out[row, i], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("hidden", [0, 4])
def test_the_detail_path_sees_nothing_that_is_hidden(hidden: int) -> None:
    decoder = detail(hidden)
    tokens, coded = encoded(SEEN)
    queries = tokens.layout.at(ASKED)
    content = coded.seen.content.clone().requires_grad_()
    out = decoder(replace(coded, seen=Tokens(coded.seen.layout, content)), queries)
    gradient = torch.autograd.grad(out[0, 1].sum(), content)[0]  # asked: token 16, place 0; visible there: token 0
    assert bool((gradient[0, 0] != 0).any())
    assert bool((gradient[0, 1:] == 0).all())
    assert bool((gradient[1] == 0).all())


def test_everything_that_belongs_to_a_modality_is_kept_by_its_name() -> None:
    """So that one can be added to a trained decoder, and the rest kept."""
    more = (*NAMES, "adc")
    small = DetailDecoder(joint(NAMES), width=12, names=NAMES, hidden=4).state_dict()
    large = DetailDecoder(joint(more), width=12, names=more, hidden=4).state_dict()
    assert all(large[name].shape == value.shape for name, value in small.items())
    assert all("adc" in name.split(".") for name in set(large) - set(small))


def test_missing_queries_get_something_finite() -> None:
    decoder = detail(4)
    tokens, coded = encoded(SEEN)
    asked = torch.tensor([[1, -1, -1], [-1, -1, -1]])
    assert bool(decoder(coded, tokens.layout.at(asked, ragged=True)).isfinite().all())


@pytest.mark.parametrize("ragged", [False, True])
def test_asked_for_all_that_is_hidden_the_full_set_is_not_needed(ragged: bool) -> None:
    whole, short = joint(), joint(asked_only=True)
    short.load_state_dict(whole.state_dict())
    seen = torch.cat([SEEN, torch.full((2, 2), -1)], 1) if ragged else SEEN
    hidden = torch.stack([torch.tensor([i for i in range(24) if i not in row.tolist()]) for row in SEEN])
    tokens, coded = encoded(seen, ragged=ragged)
    queries = tokens.layout.at(torch.nn.functional.pad(hidden, (0, 3), value=-1), ragged=True)
    expected = whole(coded, tokens.layout.at(hidden))
    torch.testing.assert_close(short(coded, queries)[:, :20], expected, atol=1e-5, rtol=1e-5)
    few = tokens.layout.at(ASKED)
    assert not torch.allclose(short(coded, few), whole(coded, few), atol=1e-4)  # what is left out is not attended to


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_prefix_of_its_own_replaces_that_of_the_encoder(prefix: int) -> None:
    decoder = joint(prefix=prefix)
    tokens, coded = encoded(SEEN)
    moved = replace(coded, prefix=coded.prefix + 3)
    queries = tokens.layout.at(ASKED)
    assert torch.equal(decoder(coded, queries), decoder(moved, queries))
    assert ("prefix_tokens" in dict(decoder.named_parameters())) == bool(prefix)
    if prefix:
        before = decoder(coded, queries)
        torch.nn.init.ones_(decoder.prefix_tokens)
        assert not torch.equal(decoder(coded, queries), before)


def test_the_map_from_the_encoder_may_have_no_bias() -> None:
    assert "embed.bias" not in joint(embed_bias=False).state_dict()
