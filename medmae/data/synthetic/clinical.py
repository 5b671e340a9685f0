"""The clinical table: a class and a survival time that the images can explain in part.

Volumes come from the finished label map, location from the site of the tumor, so what a network would have to read off
the images is what the table was made from; the rest is chance and censoring, as in life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medmae.data.synthetic.tumor import Plan

MEDIAN_DAYS = 430.0
SHAPE = 1.6  # of the Weibull distribution: hazard grows with time
MIDLINE_MM = 25.0  # tumors nearer to the midline than this are harder to operate on


@dataclass(frozen=True)
class Patient:
    """One row of the clinical table."""

    idh: str
    age: int
    os_days: int
    os_event: int


def draw_age(rng: np.random.Generator, *, mutant: bool) -> int:
    """Age in years; mutants are younger."""
    return int(np.clip(rng.normal(43 if mutant else 61, 11), 19, 88))


def risk(*, volumes: Mapping[str, float], site: tuple[float, float, float], mutant: bool, age: int) -> float:
    """Log hazard against a middling patient: large cores and edema, midline sites, age and wild type shorten life."""
    core = np.log1p(volumes["ncr"] + volumes["et"]) - np.log1p(15.0)
    edema = np.log1p(volumes["ed"]) - np.log1p(30.0)
    midline = max(0.0, 1 - abs(site[0]) / MIDLINE_MM)
    return float(0.6 * core + 0.3 * edema + 0.8 * midline + 0.02 * (age - 58) + (-0.8 if mutant else 0.2))


def draw_patient(rng: np.random.Generator, *, plan: Plan, volumes: Mapping[str, float], age: int) -> Patient:
    """Outcome of the patient whose tumor was ``plan`` and grew to ``volumes`` (milliliters)."""
    hazard = risk(volumes=volumes, site=plan.site, mutant=plan.mutant, age=age)
    scale = MEDIAN_DAYS / np.log(2) ** (1 / SHAPE)
    death = scale * np.exp(-hazard) * rng.weibull(SHAPE)
    censored = rng.uniform(300, 3000)
    days = max(1, round(min(death, censored)))
    return Patient("mutant" if plan.mutant else "wildtype", age, days, int(death <= censored))
