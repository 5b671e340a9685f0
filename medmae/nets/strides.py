"""How a patch is built up from its token: the factors of every axis, one pyramid stage after the other.

Decoders that raise a token to its voxels, and networks that write a pyramid between the two, must agree on the stages.
Factors are as small as they can be: twos while an axis is even, its smallest prime factor once it is odd.
"""

from __future__ import annotations

from collections.abc import Sequence


def raising(patch: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Factors per stage and axis from the token to the voxels, coarse to fine; their product per axis is the patch.

    An axis that is done before the others has ones at the coarse end, where the tokens already have its resolution.

    Args:
        patch: voxels per axis of a patch.

    Raises:
        ValueError: an edge is below 1.
    """
    if min(patch) < 1:
        raise ValueError(f"a patch has at least one voxel per axis, not {tuple(patch)}")
    rest, stages = list(patch), []
    while max(rest) > 1:
        stage = tuple(_smallest_factor(edge) for edge in rest)
        rest = [edge // factor for edge, factor in zip(rest, stage, strict=True)]
        stages.append(stage)
    return tuple(reversed(stages))


def _smallest_factor(n: int) -> int:
    return next((k for k in range(2, n + 1) if n % k == 0), 1)
