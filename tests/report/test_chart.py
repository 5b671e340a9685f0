"""Charts draw what can be drawn."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from medmae.core.errors import UsageError
from medmae.report.chart import HEIGHT, MOST_POINTS, WIDTH, chart_svg, legend
from medmae.report.values import Chart, Curve

NAN = float("nan")


def points(svg: str) -> list[tuple[float, float]]:
    return [tuple(map(float, p.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for p in line.split()]  # type: ignore[misc]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(1.0, 0.5, 0.1), (3e-9, 1e4, 5.0), (2.0, 2.0, 2.0)])
def test_points_lie_inside_the_picture(values: tuple[float, ...], log: bool) -> None:
    """Whatever the range; the SVG is well formed."""
    svg = chart_svg(Chart("t", (Curve("a", (1, 2, 3), values),), log=log))
    ElementTree.fromstring(svg)
    found = points(svg)
    assert len(found) == 3
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in found)


def test_a_narrow_logarithmic_axis_has_ticks() -> None:
    """Also where no power of ten is near."""
    svg = chart_svg(Chart("t", (Curve("a", (1, 2), (0.42, 0.48)),), log=True))
    assert len(re.findall('text-anchor="end"', svg)) >= 3


def test_gaps_and_empty_curves() -> None:
    """NaN splits a line; a single point is a dot; values that a logarithm cannot show are left out."""
    svg = chart_svg(Chart("t", (Curve("a", (1, 2, 3, 4, 5), (1.0, 2.0, NAN, 4.0, 5.0)), Curve("b", (2,), (3.0,)))))
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 1
    assert "no values" in chart_svg(Chart("t", ()))
    assert "no values" in chart_svg(Chart("t", (Curve("a", (1, 2), (-1.0, 0.0)),), log=True))
    assert "n/a" not in legend(Chart("t", (Curve("a", (1, 2), (1.0, NAN)),)))


def test_long_curves_are_thinned() -> None:
    """The file does not grow with the run."""
    n = 20 * MOST_POINTS
    svg = chart_svg(Chart("t", (Curve("a", tuple(range(n)), tuple(float(i) for i in range(n))),)))
    assert len(points(svg)) <= MOST_POINTS


def test_unequal_lengths_are_refused() -> None:
    """A curve has as many positions as values."""
    with pytest.raises(UsageError, match="2 positions and 1 values"):
        Curve("a", (1, 2), (1.0,))
