"""Factors of a patch."""

from __future__ import annotations

import pytest

from medmae.nets.strides import raising


@pytest.mark.parametrize(
    ("patch", "stages"),
    [
        ((8, 8, 8), ((2, 2, 2),) * 3),
        ((12, 12, 12), ((3, 3, 3), (2, 2, 2), (2, 2, 2))),
        ((16, 16, 4), ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))),
        ((1, 5), ((1, 5),)),
        ((1, 1, 1), ()),
    ],
)
def test_factors(patch: tuple[int, ...], stages: tuple[tuple[int, ...], ...]) -> None:
    assert raising(patch) == stages


def test_no_voxels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one voxel"):
        raising((8, 0, 8))
