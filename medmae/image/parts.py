"""What the methods of this folder share: what is asked of dense maps, and a scale for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.heterogeneous import Answer, Task
from medmae.core.loss import class_map, l1, mse
from medmae.core.target import Content, Normalized
from medmae.core.tokens import Tokens

TEST_SCALE: dict[str, Any] = {
    "width": 48, "depth": 2, "heads": 4, "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 4,
    "size": (32, 32), "patch": (8, 8),
}  # fmt: skip


class TruncatedStandard(nn.Module):
    """Content with zero mean and unit variance over the whole map, both taken without its lowest and highest values.

    Depth has no unit that holds from one image to the next, and a few wild values (MultiMAE, appendix).

    Args:
        cut: share of values left out at either end, in [0, 0.5).
        eps: added to the variance.
    """

    def __init__(self, *, cut: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= cut < 0.5:
            raise ValueError(f"cut must be in [0, 0.5), not {cut}")
        self.cut, self.eps = cut, eps

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n what"]:
        """The standardized content of all tokens of one map."""
        values = tokens.content.float().flatten(1).sort(1).values
        out = int(self.cut * values.shape[1])
        kept = values[:, out : values.shape[1] - out]
        mean, variance = kept.mean(1), kept.var(1)
        return (tokens.content - mean[:, None, None]) / torch.sqrt(variance + self.eps)[:, None, None]


def dense_answers(
    tasks: Sequence[Task], *, absolute: Sequence[str] = (), normalized: Sequence[str] = ()
) -> tuple[Answer, ...]:
    """What MultiMAE asks of its tasks: classes of maps of labels, values of all others.

    Args:
        tasks: of the method.
        absolute: names of tasks that are standardized, and compared by absolute difference.
        normalized: names of tasks of which pixels normalized per patch are asked as well.
    """
    answers = []
    for i, task in enumerate(tasks):
        n = task.grid.content
        if task.classes:
            answers.append(Answer(task.name, i, n * task.classes, n, class_map(task.classes)))
            continue
        plain = (l1, TruncatedStandard()) if task.name in absolute else (mse, Content())
        answers.append(Answer(task.name, i, n, n, *plain))
        if task.name in normalized:
            answers.append(Answer(f"{task.name}_normalized", i, n, n, mse, Normalized()))
    return tuple(answers)
