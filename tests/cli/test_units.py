"""The units of a reconstruction are named for what they are."""

from __future__ import annotations

import pytest

from medmae.cli.units import scale_of

CT = {
    "preprocess": {"windows": {"pet": [0.0, 5.0]}},
    "statistics": {"ct": {"mean": -1000.0, "std": 2000.0}, "pet": {"mean": 0.0, "std": 5.0}},
}


@pytest.mark.parametrize(("target", "low", "high"), [("ct", -1000.0, 1000.0), ("pet", 0.0, 5.0)])
@pytest.mark.parametrize("units", [None, "cohort"])
def test_a_window_is_no_average_over_cases(target: str, low: float, high: float, units: str | None) -> None:
    scale = scale_of(target, CT, units=units, match=None)
    assert (scale.kind, scale.mean, scale.std) == ("files", low, high - low)
    assert "window" in scale.source
    assert "training cases" not in scale.source


def test_the_models_own_units_of_a_window_run_from_0_to_1() -> None:
    scale = scale_of("ct", CT, units="zscore", match=None)
    assert (scale.kind, scale.mean, scale.std) == ("window", 0.0, 1.0)
    assert "0 is -1000 and 1 is 1000" in scale.source


def test_values_that_were_never_normalized_are_the_files_own() -> None:
    scale = scale_of("t1n", {"preprocess": {"normalize": "none"}}, units="zscore", match=None)
    assert (scale.kind, scale.mean, scale.std) == ("files", 0.0, 1.0)


def test_deviations_stay_deviations() -> None:
    known = {"statistics": {"t1n": {"mean": 400.0, "std": 60.0}}}
    assert scale_of("t1n", known, units="zscore", match=None).kind == "zscore"
    assert scale_of("t1n", known, units=None, match=None).kind == "cohort"
