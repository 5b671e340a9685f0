"""Every subset, every missing sequence, every case: what a model and the baselines make of them.

A missing-modality model is only as good as its worst subset, so none is left out: each non-empty proper subset of the
sequences a case has is given, and every sequence outside it that the case really has is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from .baselines import NAMES, Baselines, Fit
from .metrics import Truth, measure


@dataclass(frozen=True, eq=False)
class Subject:
    """One case as arrays.

    Attributes:
        code: what the case is called in tables; a hash where names must not be shown.
        images: sequence -> image, normalized as the model wants it.
        foreground: the voxels that count.
        label: region to be measured apart, or None.
    """

    code: str
    images: Mapping[str, Float[np.ndarray, "*size"]]
    foreground: Bool[np.ndarray, "*size"]
    label: Bool[np.ndarray, "*size"] | None = None


Guess = Callable[[Subject, tuple[str, ...], tuple[str, ...]], Mapping[str, np.ndarray]]
"""(case, sequences it may look at, targets) -> target -> image. It must not look at other images of the case."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        case: code of the case.
        given: sequences that were shown.
        target: sequence that was asked for.
        method: ``model`` or the name of a baseline.
        values: metric -> value; those ending in ``_label`` only where the case has one.
    """

    case: str
    given: tuple[str, ...]
    target: str
    method: str
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def subset(self) -> str:
        """The given sequences as one word, ``t1n+t2w``."""
        return "+".join(self.given)


def subsets(sequences: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every non-empty proper subset, small ones first, each in the order of ``sequences``."""
    return tuple(s for k in range(1, len(sequences)) for s in itertools.combinations(sequences, k))


def evaluate(
    subjects: Iterable[Subject],
    models: Mapping[str, Guess],
    *,
    sequences: Sequence[str],
    baselines: Baselines | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure every model and baseline on every case, subset and target; cases come and go one at a time.

    Args:
        subjects: the cases; one that has a single sequence gives no row.
        models: name -> guess.
        sequences: those the models know; others of a case are left aside.
        baselines: fitted on training cases.
        on_row: called with each row as it is made.
    """
    rows = []
    for subject in subjects:
        for row in rows_of(subject, models, sequences=sequences, baselines=baselines):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def rows_of(
    subject: Subject, models: Mapping[str, Guess], *, sequences: Sequence[str], baselines: Baselines | None = None
) -> Iterator[Row]:
    """The rows of one case."""
    names = tuple(name for name in sequences if name in subject.images)
    truths = (
        {n: Truth.of(subject.images[n], subject.foreground, label=subject.label) for n in names}
        if len(names) > 1
        else {}
    )
    known: dict[object, Mapping[str, float]] = {}  # many subsets share a formula, the mean all of them
    for given in subsets(names):
        targets = tuple(name for name in names if name not in given)
        shown = Subject(subject.code, {name: subject.images[name] for name in given}, subject.foreground, None)
        answers = {name: model(shown, given, targets) for name, model in models.items()}
        for target in targets:
            for name, answer in answers.items():
                yield Row(subject.code, given, target, name, measure(answer[target], truths[target]))
            for name, fit in _fits(baselines, given, target):
                key = (target, fit.constant, tuple(sorted(fit.slopes.items())))
                if key not in known:
                    guess = fit(shown.images, like=truths[target].image)
                    known[key] = measure(guess, truths[target])
                yield Row(subject.code, given, target, name, known[key])


def _fits(baselines: Baselines | None, given: tuple[str, ...], target: str) -> Iterator[tuple[str, Fit]]:
    """The baselines that can say something of the target."""
    if baselines is None:
        return
    for name in NAMES:
        fit = baselines.fit(name, given, target)
        if fit is not None:
            yield name, fit
