"""A pace is a pure function of how much of the run is done."""

from __future__ import annotations

import pytest

from medmae.core.pace import STEADY, Pace


def test_values_between_before_and_after_points() -> None:
    pace = Pace(0.5, ((0.2, 0.0), (0.4, 1.0), (0.4, 0.0), (0.6, 1.0)))
    found = [pace.at(done) for done in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)]
    assert found == pytest.approx([0, 0, 0.25, 0, 0.25, 0.5, 0.5])
    assert not pace.constant
    assert STEADY.constant
    assert STEADY.at(0.3) == 1
    assert Pace(0.1).at(1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("course", [(), ((0.5, 1.0), (0.1, 1.0)), ((0.0, -1.0),)])
def test_what_cannot_be_meant(course) -> None:
    with pytest.raises(ValueError, match="in order"):
        Pace(1.0, course)
