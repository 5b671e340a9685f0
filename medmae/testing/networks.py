"""The networks of a method: what they compute does not depend on how they are asked."""

from __future__ import annotations

from typing import Any

import torch

from medmae.find import Found
from medmae.nets.encoded import Pyramid

from .batches import awake, example_batch, pieces
from .building import build


def everything_visible_is_the_plain_network(found: Found) -> None:
    """With all tokens visible, in any order, the encoder is the plain network over the full set.

    This is what makes the encoder of a masked autoencoder usable without masks, and what sparse layers must reduce to.
    """
    method = awake(build(found))
    encoder = getattr(method, "encoder", None)
    assert encoder is not None, f"{type(method).__name__} has no encoder: offer it, or exempt this check on the card"
    tokens = method.tokenizer(example_batch(method))
    total = tokens.layout.total
    with torch.no_grad():
        plain = encoder(tokens, tokens.layout)
        order = torch.stack([torch.randperm(total, generator=torch.Generator().manual_seed(s)) for s in range(3)])
        for ragged in (False, True):
            shuffled = encoder(tokens.at(order, ragged=ragged), tokens.layout)
            for mine, other in zip(_maps(shuffled), _maps(plain), strict=True):
                apart = float((mine - other).abs().max()) if other.numel() else 0.0
                assert apart <= 1e-4, (
                    f"with everything visible the encoder differs from the plain network by {apart:.3g}"
                )


def _maps(encoded: Any) -> list[torch.Tensor]:
    """What an encoder found, in the order of the full set: maps of a pyramid, coarse to fine, or tokens and prefix."""
    if isinstance(encoded, Pyramid):
        return list(encoded.dense()[::-1])
    return [encoded.tokens.onto(encoded.full, torch.zeros(())).content, encoded.prefix]


def no_graph_breaks(found: Found) -> None:
    """Given its plan, the step on a complete batch is one graph for the compiler, and compiled it gives the same loss.

    Plans are drawn outside of the graph: they are integers, and for some samplers their shape depends on the draw.
    """
    method = awake(build(found))
    batch = example_batch(method)
    _, plan, _ = pieces(method, batch)

    def step(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses: dict[str, torch.Tensor] = method(batch, plan)
        return losses

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    try:
        found_losses = compiled(batch)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"the step breaks the graph: {error}") from error
    finally:
        torch._dynamo.reset()
    for name, value in step(batch).items():
        apart = abs(float((value - found_losses[name]).detach()))
        assert apart <= 1e-5, f"compiled, the loss {name!r} differs by {apart:.3g}"
