"""Every fault of every case, found before training instead of during it.

Each file is read once, in a worker process, and only small facts come back; judging them needs no pixels. A file
that kills its worker is one more fault (see :mod:`medmae.data.workers`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medmae.data.cohort import Case, Cohort, Found
from medmae.data.facts import LABEL, MANY, MASK, Facts, corners, examine
from medmae.data.geometry import same_grid
from medmae.data.layouts import printable
from medmae.data.spec import Spec
from medmae.data.workers import Outcome, each


@dataclass(frozen=True)
class Finding:
    """One complaint. ``problem`` names no file and no case; ``other`` is the case and role it refers to, if any."""

    case: str
    role: str
    kind: str
    problem: str
    error: bool = True
    other: tuple[str, str] | None = None

    def text(self, name: Callable[[str], str] = printable) -> str:
        """The complaint in words, with cases named by ``name``."""
        tail = f" (the same as {name(self.other[0])} {self.other[1]})" if self.other else ""
        return f"{name(self.case)} {self.role}: {self.problem}{tail}"


@dataclass(frozen=True)
class Checked:
    """The outcome for a cohort: facts by (case, role), complaints, and the faults of the listing itself."""

    cohort: Cohort
    listing: tuple[str, ...]
    facts: Mapping[tuple[str, str], Facts]
    findings: tuple[Finding, ...] = ()
    _kinds: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def errors(self) -> int:
        """How many faults forbid training."""
        return len(self.listing) + sum(finding.error for finding in self.findings)

    @property
    def faulty(self) -> frozenset[str]:
        """Names of the cases with an error."""
        return frozenset(finding.case for finding in self.findings if finding.error)

    def code(self, key: str) -> str:
        """Ten hexadecimal digits from the case's contents, for where names must not be shown.

        Not from its name: names such as BraTS-GLI-00001 are few enough to try them all.
        """
        mine = [facts.digest for (owner, _), facts in sorted(self.facts.items()) if owner == key and facts.digest]
        if not mine:
            return f"case {[case.key for case in self.cohort.cases].index(key) + 1}"
        return hashlib.blake2b("".join(mine).encode(), digest_size=5).hexdigest()

    def kinds(self, key: str, role: str) -> tuple[str, ...]:
        """What is wrong with one file, in a word or two each."""
        return self._kinds.get((key, role), ())

    def __post_init__(self) -> None:
        for item in self.findings:
            if item.error:
                place = (item.case, item.role)
                self._kinds[place] = (*self._kinds.get(place, ()), item.kind)

    def remarks(self) -> tuple[str, ...]:
        """What is no fault of any case but should be known of all of them together."""
        sizes = Counter(
            tuple(round(step, 2) for step in sorted(self.facts[case.key, next(iter(case.images))].spacing))
            for case in self.cohort.cases
            if self.facts[case.key, next(iter(case.images))].fault is None
        )
        if self.cohort.spec.preprocess.spacing is None and len(sizes) > 1:
            some = ", ".join(
                f"{'x'.join(f'{step:g}' for step in size)} mm in {count}" for size, count in sizes.most_common(3)
            )
            return (
                f"{len(sizes)} voxel sizes ({some}) and no preprocess.spacing: each case keeps its own. "
                "Set a spacing unless that is wanted.",
            )
        return ()

    def summary(self) -> str:
        """How many faults of which kind, in one line."""
        kinds = Counter(finding.kind for finding in self.findings if finding.error)
        parts = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
        if self.listing:
            parts.insert(0, f"{len(self.listing)} in the listing")
        return f"{self.errors} fault(s) in {len(self.faulty)} of {len(self.cohort.cases)} case(s): {', '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        codes = {case.key: self.code(case.key) for case in self.cohort.cases}
        return {
            "ok": self.errors == 0,
            "name": self.cohort.spec.name,
            "sequences": list(self.cohort.sequences),
            "notes": [*self.cohort.notes, *self.remarks()],
            "listing": list(self.listing),
            "cases": [
                {
                    "case": case.key,
                    "code": codes[case.key],
                    "subject": case.subject,
                    "files": {role: _facts_json(self.facts[case.key, role]) for role, _ in roles(case)},
                }
                for case in self.cohort.cases
            ],
            "findings": [
                {
                    "case": finding.case,
                    "role": finding.role,
                    "kind": finding.kind,
                    "problem": finding.problem,
                    "error": finding.error,
                    "other": list(finding.other) if finding.other else None,
                }
                for finding in self.findings
            ],
        }


def _facts_json(facts: Facts) -> dict[str, Any]:
    if facts.fault is not None:
        return {"fault": facts.fault}
    return {
        "shape": list(facts.shape),
        "spacing": [round(step, 6) for step in facts.spacing],
        "axes": facts.axes,
        "dtype": facts.dtype,
        "low": facts.low,
        "high": facts.high,
        "nan": facts.nans,
        "infinite": facts.infinite,
    }


def roles(case: Case) -> Iterator[tuple[str, str]]:
    """(role, path) of every file of ``case``: its sequences, then label and mask."""
    for name, path in case.images.items():
        yield name, str(path)
    if case.label is not None:
        yield LABEL, str(case.label)
    if case.mask is not None:
        yield MASK, str(case.mask)


def check_cohort(
    found: Found,
    *,
    workers: int = 1,
    tick: Callable[[int, int], None] | None = None,
    look: Callable[[str, str], Facts] = examine,
) -> Checked:
    """Examine every file of ``found`` in ``workers`` processes (0: in this one) and judge the results.

    ``tick(done, total)`` is called after each file. ``look`` is what a worker does with one file; tests replace it.
    """
    cohort = found.cohort
    jobs = [(case.key, role, path) for case in cohort.cases for role, path in roles(case)]
    facts: dict[tuple[str, str], Facts] = {}
    owners: dict[tuple[str, str], list[str]] = {}
    for key, role, path in jobs:
        owners.setdefault((path, role), []).append(key)
    for (path, role), outcome in each(look, owners, workers=workers):
        facts.update({(key, role): _facts_of(outcome) for key in owners[path, role]})
        if tick is not None:
            tick(len(facts), len(jobs))
    findings: list[Finding] = []
    for case in cohort.cases:
        mine = {role: facts[case.key, role] for role, _ in roles(case)}
        findings += _judge_files(case.key, mine, cohort.spec)
        findings += _judge_geometry(case.key, mine, cohort.spec)
    findings += _duplicates(cohort, facts)
    return Checked(cohort, found.faults, facts, tuple(findings))


def _facts_of(outcome: Outcome) -> Facts:
    if outcome.died:
        return Facts(fault="reading it killed the worker process (a crash in a library, or memory ran out)")
    if outcome.error is not None:
        error = outcome.error
        return Facts(fault=f"cannot be read ({type(error).__name__}: {printable(str(error))})")
    facts: Facts = outcome.value
    return facts


def _judge_files(key: str, mine: Mapping[str, Facts], spec: Spec) -> Iterator[Finding]:
    for role, facts in mine.items():
        if facts.fault is not None:
            yield Finding(key, role, _kind_of(facts.fault), facts.fault)
            continue
        total = int(np.prod(facts.shape))
        if facts.nans:
            yield Finding(key, role, "NaN", f"{facts.nans} of {total} voxels are NaN")
        if facts.infinite:
            yield Finding(key, role, "infinite", f"{facts.infinite} of {total} voxels are infinite")
        if role == MASK:
            if facts.high <= 0:
                yield Finding(key, role, "empty mask", "the foreground mask is empty")
        elif role == LABEL:
            yield from _judge_label(key, facts, spec)
        elif facts.low == facts.high:
            yield Finding(key, role, "constant", f"every voxel is {facts.low:g}")
        if not all(0.05 <= step <= 25 for step in facts.spacing):
            yield Finding(
                key,
                role,
                "spacing",
                f"unusual voxel size: {facts.geometry}; are the units right?",
                error=False,
            )
        if not facts.placed:
            problem = f"qform_code and sform_code are 0: the file does not say how it lies; {facts.axes} is a guess"
            yield Finding(key, role, "no orientation", problem, error=False)
        if facts.forms_apart > 0.5:
            problem = f"sform and qform disagree by {facts.forms_apart:.3g} voxels; the sform is used"
            yield Finding(key, role, "two forms", problem, error=False)


def _kind_of(fault: str) -> str:
    for word in (
        "truncated",
        "killed the worker",
        "empty file",
        "LFS",
        "4-D",
        "5-D",
        "2-D",
        "RGB",
        "singular",
        "sheared",
        "zoom",
    ):
        if word in fault:
            return word
    return "unreadable"


def _judge_label(key: str, facts: Facts, spec: Spec) -> Iterator[Finding]:
    if spec.label is None:
        return
    legal = spec.label.file_values
    fractions = [value for value in facts.values if value != round(value)]
    if fractions or len(facts.values) > MANY:
        yield Finding(
            key,
            LABEL,
            "label values",
            f"not whole numbers, or more than {MANY} of them: an image, or interpolated labels?",
        )
        return
    strange = sorted({int(value) for value in facts.values} - legal)
    if strange:
        shown = ", ".join(map(str, strange[:12])) + (", ..." if len(strange) > 12 else "")
        yield Finding(
            key, LABEL, "label values",
            f"value(s) {shown} are in neither classes nor remap ({', '.join(map(str, sorted(legal)))})",
        )  # fmt: skip
    elif len(facts.values) == 1:
        yield Finding(key, LABEL, "one label", f"every voxel is {facts.values[0]:g}", error=False)


def _judge_geometry(key: str, mine: Mapping[str, Facts], spec: Spec) -> Iterator[Finding]:
    """The odd ones out of a case: whoever does not lie on the grid that most of its sequences share."""
    images = {role: facts for role, facts in mine.items() if facts.fault is None and role not in (LABEL, MASK)}
    if not images:
        return
    votes = {role: sum(_apart(facts, other) is None for other in images.values()) for role, facts in images.items()}
    reference = max(images, key=lambda role: votes[role])
    for role, facts in mine.items():
        if facts.fault is not None or role == reference:
            continue
        difference = _apart(facts, images[reference])
        if difference is not None:
            kind = f"{role} geometry" if role in (LABEL, MASK) else "geometry"
            policy = spec.geometry.on_mismatch
            ending = {
                "error": "",
                "resample": "; it will be resampled",
                "skip": "; the case will be left aside",
            }[policy]
            yield Finding(key, role, kind, f"{difference} of {reference}{ending}", error=policy == "error")


def _apart(one: Facts, two: Facts) -> str | None:
    """How two grids differ, or None where they agree as preprocessing understands it (a tenth of a voxel)."""
    if one.shape != two.shape:
        return f"shape {'x'.join(map(str, one.shape))} is not the {'x'.join(map(str, two.shape))}"
    first, second = (np.reshape(facts.affine, (4, 4)) for facts in (one, two))
    if same_grid(one.shape, first, two.shape, second):
        return None
    distance = float(np.linalg.norm(corners(one.shape) @ (first - second).T, axis=1).max())
    return f"voxels lie up to {distance:.3g} mm from those ({one.axes} against {two.axes})"


def _duplicates(cohort: Cohort, facts: Mapping[tuple[str, str], Facts]) -> list[Finding]:
    """Images with the same voxels under two names; the first by name is the original."""
    first: dict[str, tuple[str, str]] = {}
    findings = []
    for case in cohort.cases:
        for role in case.images:
            here = facts[case.key, role]
            if here.fault is not None or here.low == here.high:
                continue
            original = first.setdefault(here.digest, (case.key, role))
            if original != (case.key, role):
                findings.append(Finding(case.key, role, "duplicate", "same content as another image", other=original))
    return findings
