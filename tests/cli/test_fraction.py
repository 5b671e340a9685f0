"""``--fraction``: fewer training subjects, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.cli.finetune_run import _fewer
from medmae.data.cohort import Case, Cohort


def _cohort(subjects: int) -> Cohort:
    cases = tuple(
        Case(f"c{i}", f"s{i // 2}", {"t1n": Path(f"{i}.nii")}, split="test" if i // 2 % 7 == 0 else "train")
        for i in range(2 * subjects)
    )
    return Cohort(spec=_spec(), cases=cases, sequences=("t1n",))


def _spec() -> Any:
    from medmae.data.spec import Spec

    return Spec.model_validate(
        {"medmae": 1, "name": "x", "root": ".", "pattern": "{case}/{seq}.nii", "sequences": ["t1n"]}
    )


def _kept(cohort: Cohort, fraction: float) -> dict[str, set[str]]:
    goal: Any = SimpleNamespace(stratum=lambda outcome: outcome)
    wish: Any = SimpleNamespace(fraction=fraction, seed=3)
    outcomes = {case.key: "ab"[int(case.subject[1:]) % 3 == 0] for case in cohort.cases}
    parts = _fewer(cohort, outcomes, wish, goal).split()
    return {name: {case.subject for case in cases} for name, cases in parts.items()}


@given(st.integers(4, 30), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_smaller_shares_lie_in_larger_ones_and_the_rest_stays(subjects: int, a: float, b: float) -> None:
    cohort = _cohort(subjects)
    whole = {name: {c.subject for c in cases} for name, cases in cohort.split().items()}
    small, large = _kept(cohort, min(a, b)), _kept(cohort, max(a, b))
    assert small["train"] <= large["train"] <= whole["train"]
    assert small["test"] == large["test"] == whole["test"]
    assert len(large["train"]) >= max(a, b) * len(whole["train"])
    for stratum in (0, 1):  # both groups keep someone
        group = {s for s in whole["train"] if (int(s[1:]) % 3 == 0) == bool(stratum)}
        assert not group or small["train"] & group
