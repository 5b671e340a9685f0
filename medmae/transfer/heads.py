"""Heads: from the features of a patient to the few numbers a task asks for.

Every head normalizes what it gets, because the variance of a mean depends on how many sequences there are. None of
them looks at how many that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.tokens import Batch

from .pooling import POOLS, Features, pooled_width

KINDS = ("linear", "mlp", "attentive")


class VectorHead(nn.Module):
    """Pool, normalize, and a linear map or a small network.

    Args:
        width: features per place that come in.
        outputs: numbers that go out.
        pool: one of ``medmae.transfer.pooling.POOLS``.
        hidden: units in between; None for a linear map.
        dropout: of the normalized features and the hidden units, in [0, 1).
    """

    def __init__(
        self, width: int, outputs: int, *, pool: str = "mean", hidden: int | None = None, dropout: float | int = 0.0
    ) -> None:
        super().__init__()
        self.pool = pool
        width = pooled_width(width, pool)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.inner = None if hidden is None else nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden or width, outputs)
        _start_small(self.outer)

    def forward(self, features: Features, batch: Batch) -> Float[Tensor, "b outputs"]:
        """The raw numbers."""
        x = self.drop(self.norm(features.pooled(self.pool)))
        if self.inner is not None:
            x = self.drop(F.gelu(self.inner(x)))
        found: Tensor = self.outer(x)
        return found

    def start(self, values: Float[Tensor, " outputs"]) -> None:
        """Let the answer begin with ``values``."""
        _start(self.outer, values)


class AttentiveHead(nn.Module):
    """A learned question to all places, instead of a mean over them; places outside the foreground are not asked.

    Args:
        width: features that come in; must be a multiple of ``heads``.
        outputs: numbers that go out.
        heads: questions that are asked side by side.
        dropout: of the answer, in [0, 1).

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, width: int, outputs: int, *, heads: int = 4, dropout: float | int = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.norm, self.key_value = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.last, self.drop, self.outer = nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, outputs)
        _start_small(self.outer)

    def forward(self, features: Features, batch: Batch) -> Float[Tensor, "b outputs"]:
        """The raw numbers."""
        values = self.norm(features.values)
        b, n, d = values.shape
        key, value = self.key_value(values).reshape(b, n, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        query = self.query.to(key.dtype).expand(b, -1, -1).reshape(b, 1, self.heads, -1).transpose(1, 2)
        mask = (features.weight > 0)[:, None, None]
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        found: Tensor = self.outer(self.drop(self.last(answer.transpose(1, 2).reshape(b, d))))
        return found

    def start(self, values: Float[Tensor, " outputs"]) -> None:
        """Let the answer begin with ``values``."""
        _start(self.outer, values)


def _start(layer: nn.Linear, values: Float[Tensor, " outputs"]) -> None:
    with torch.no_grad():
        layer.bias.copy_(values)


def _start_small(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def build_head(recipe: Mapping[str, Any], *, width: int, outputs: int) -> VectorHead | AttentiveHead:
    """The head that ``recipe`` describes.

    Args:
        recipe: ``kind`` (linear, mlp, attentive), and what goes with it: ``pool``, ``hidden``, ``dropout``, ``heads``.
        width: features that come in.
        outputs: numbers that go out.

    Raises:
        UsageError: there is no such kind or pooling, or numbers that do not fit.
    """
    options = dict(recipe)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise UsageError(f"there is no head {kind!r}; there are {', '.join(KINDS)}")
    if options.get("pool", "mean") not in POOLS:
        raise UsageError(f"pooling {options['pool']!r} is not known; it is one of {', '.join(POOLS)}")
    try:
        if kind == "attentive":
            options.pop("pool", None)
            return AttentiveHead(width, outputs, **options)
        hidden = options.pop("hidden", None)
        return VectorHead(width, outputs, hidden=(hidden or 256) if kind == "mlp" else None, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the {kind} head cannot be built: {error}") from error
