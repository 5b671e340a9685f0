"""What an encoder hands to a decoder or a head."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from medmae.core.tokens import TokenLayout, Tokens


@dataclass(frozen=True)
class Encoded:
    """Features of the visible tokens.

    Attributes:
        tokens: features with the layout of the visible tokens.
        prefix: tokens that stand for no place (cls, registers); outside the id space, so no index is ever shifted.
        full: layout of the full set, the canvas of a decoder.
        seen: the visible tokens as they came in, for decoders that pass detail through.
        taps: features after chosen blocks, without the prefix.
        tap_prefix: the prefix after these blocks.
    """

    tokens: Tokens
    prefix: Float[Tensor, "b k d"]
    full: TokenLayout
    seen: Tokens
    taps: dict[int, Tensor] = field(default_factory=dict)
    tap_prefix: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pyramid:
    """Features at several resolutions: what a convolutional encoder hands on.

    Attributes:
        levels: maps, fine to coarse; sparse encoders leave zeros where nothing is visible.
        full: layout of the full set, the canvas of a decoder.
        seen: the visible tokens as they came in.
    """

    levels: tuple[Float[Tensor, "b _ ..."], ...]
    full: TokenLayout
    seen: Tokens

    def dense(self) -> tuple[Float[Tensor, "b _ ..."], ...]:
        """The maps, fine to coarse, whatever form an encoder keeps them in."""
        return self.levels


def attention_mask(layout: TokenLayout, prefix: int) -> Bool[Tensor, "b 1 1 s"] | None:
    """Which keys may be attended to: every prefix token and every token that exists; None where that is all."""
    if not layout.ragged:
        return None
    exists = layout.exists
    mask = exists.new_ones(len(exists), prefix + exists.shape[1])
    mask[:, prefix:] = exists
    if prefix == 0:  # a row without any key would give NaN; let it attend to its first (ignored) token
        mask[:, :1] |= ~exists.any(1, keepdim=True)
    return mask[:, None, None]
