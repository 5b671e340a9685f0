"""The prototype probe: its formula, and that classes have nothing to do with one another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medmae.core.tokens import TokenLayout, Tokens
from medmae.nets.encoded import Encoded
from medmae.nets.prototype import PrototypeHead, asymmetric


def encoded(n: int = 12, width: int = 16, prefix: int = 1, *, missing: bool = False) -> Encoded:
    ids = torch.arange(n).expand(2, -1).clone()
    if missing:
        ids[0, n // 2 :] = -1
    layout = TokenLayout(ids, torch.zeros(2, n, 2), torch.zeros_like(ids), None, n, ragged=missing)
    tokens = Tokens(layout, torch.randn(2, n, width))
    return Encoded(tokens, torch.randn(2, prefix, width), layout, tokens)


def test_the_formula() -> None:
    head, x = PrototypeHead(16, 3, prototypes=4), encoded()
    torch.nn.init.normal_(head.weight)
    focal = x.tokens.content - x.prefix[:, :1]
    expected = torch.zeros(2, 3)
    for b in range(2):
        for c in range(3):
            expected[b, c] = head.bias[c].detach()
            for j in range(4):
                prototype = head.prototypes[c, j].detach()
                similar = [float(F.cosine_similarity(z, prototype, dim=0)) / 1.01 for z in focal[b]]
                expected[b, c] += max(0.0, float(head.weight[c, j].detach())) * max(0.0, *similar)
    torch.testing.assert_close(head(x).detach(), expected, atol=1e-5, rtol=1e-5)


def test_places_may_be_permuted_and_classes_are_apart() -> None:
    head, x = PrototypeHead(16, 3), encoded()
    order = torch.randperm(12)
    turned = Encoded(Tokens(x.tokens.layout, x.tokens.content[:, order]), x.prefix, x.full, x.seen)
    before = head(x)
    torch.testing.assert_close(head(turned), before)
    with torch.no_grad():
        head.prototypes[1] = 0
    after = head(x)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert torch.equal(after[:, 1], torch.full((2,), -2.0))


def test_a_class_is_learned_from_one_token_and_the_encoder_gets_no_gradient() -> None:
    torch.manual_seed(1)
    head = PrototypeHead(16, 2, prototypes=3)
    call = torch.randn(2, 16)
    optimizer = torch.optim.AdamW([{"params": [head.prototypes], "lr": 0.04}, {"params": [head.weight, head.bias]}])
    for step in range(200):
        x = encoded(prefix=1)
        labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]) if step % 2 else torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        for b, row in enumerate(labels):
            for c in row.nonzero():
                x.tokens.content[b, torch.randint(12, ())] = 3 * call[c] + x.prefix[b, 0]
        loss = asymmetric(head(x), labels) + head.spread()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert x.tokens.content.grad is None
    assert bool(((head(x) > head(x).mean()) == (labels > 0.5)).all())


def test_missing_tokens_are_no_evidence() -> None:
    head, x = PrototypeHead(16, 3), encoded(missing=True)
    before = head(x)
    x.tokens.content[0, 6:] = 1e3 * torch.randn(6, 16)
    assert torch.equal(head(x), before)


def test_enlarged_maps_and_encoders_without_cls() -> None:
    x = encoded()
    assert PrototypeHead(16, 3, grid=(3, 4)).evidence(x).shape == (2, 3, 20, 48)
    assert PrototypeHead(16, 3, grid=(3, 2, 2)).evidence(x).shape == (2, 3, 20, 96)
    bare = encoded(prefix=0)
    with pytest.raises(ValueError, match="focal=False"):
        PrototypeHead(16, 3)(bare)
    assert PrototypeHead(16, 3, focal=False)(bare).shape == (2, 3)
    with pytest.raises(ValueError, match="4 axes"):
        PrototypeHead(16, 3, grid=(1, 1, 1, 1))


def test_spread_is_zero_at_right_angles() -> None:
    head = PrototypeHead(16, 2, prototypes=4)
    with torch.no_grad():
        head.prototypes.copy_(5 * torch.linalg.qr(torch.randn(2, 16, 4)).Q.transpose(1, 2))
        assert float(head.spread()) < 1e-6
        head.prototypes[:, 1] = head.prototypes[:, 0]
    assert float(head.spread().detach()) == pytest.approx(2 / 32, rel=1e-4)  # four ones among 2 * 4 * 4 values


def test_the_asymmetric_loss() -> None:
    logits, labels = torch.randn(4, 5), torch.randint(2, (4, 5)).float()
    plain = asymmetric(logits, labels, negative=0.0, positive=0.0, margin=0.0)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(logits, labels))
    easy = torch.full((1, 1), -4.0)
    assert float(asymmetric(easy, torch.zeros(1, 1))) == 0  # below the margin
    p = torch.tensor(0.3)
    hard = asymmetric(p.logit().view(1, 1), torch.zeros(1, 1))
    assert float(hard) == pytest.approx(-((0.25) ** 4) * torch.log(torch.tensor(0.75)).item(), rel=1e-5)
