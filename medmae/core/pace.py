"""How fast one parameter learns next to the others, as a pure function of how much of the run is done.

Fine-tuning wants early layers to move less than late ones, and a pre-trained encoder to wait until a fresh head has
settled. Whoever trains need not know why: it multiplies the learning rate of the parameter by a number.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """A factor of the learning rate: piecewise linear over the run.

    Attributes:
        factor: what every value is multiplied by, at least 0.
        course: points (share of the run that is done, value), in order. Between two points the value is interpolated,
            before the first and after the last it is constant; two points at one share make a jump.
    """

    factor: float = 1.0
    course: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    def __post_init__(self) -> None:
        places = [place for place, _ in self.course]
        if not places or places != sorted(places) or self.factor < 0 or min(value for _, value in self.course) < 0:
            raise ValueError(
                f"factor {self.factor} and course {self.course}: points come in order, nothing is negative"
            )

    @property
    def constant(self) -> bool:
        """Whether the length of the run does not matter."""
        return len({value for _, value in self.course}) == 1

    def at(self, done: float) -> float:
        """The factor when the share ``done`` of the run, in [0, 1], is behind."""
        before, after = None, None
        for point in self.course:
            if point[0] <= done:
                before = point
            elif after is None:
                after = point
        if before is None or after is None:
            return self.factor * (before or after or (0.0, 1.0))[1]
        way = (done - before[0]) / (after[0] - before[0])
        return self.factor * (before[1] + way * (after[1] - before[1]))


STEADY = Pace()
"""The pace of everything, unless a method says otherwise."""
