"""One synthetic case, a pure function of (seed, index), whatever order cases are made in and by how many workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int16, UInt8

from medmae.data.synthetic.anatomy import grow, load_template, pose
from medmae.data.synthetic.clinical import Patient, draw_age, draw_patient
from medmae.data.synthetic.signal import SEQUENCES, Scan, acquire, draw_scans
from medmae.data.synthetic.tumor import Plan, displace, grow_tumor, plan_tumor

# Every aspect draws from a stream of its own, so that changing one leaves the others as they were.
ASPECTS = ("pose", "plan", "anatomy", "tumor", "scans", "images", "patient", "missing")


@dataclass(frozen=True)
class SyntheticCase:
    """Images (int16), label map and brain mask on one grid, with how they came about."""

    images: Mapping[str, Int16[np.ndarray, "x y z"]]
    label: UInt8[np.ndarray, "x y z"]
    mask: Bool[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    plan: Plan
    volumes: Mapping[str, float]
    patient: Patient
    scans: tuple[Scan, ...]

    def describe(self) -> dict[str, Any]:
        """JSON-able facts of the case."""
        return {
            "patient": asdict(self.patient),
            "tumor": asdict(self.plan),
            "volumes_ml": {name: round(value, 3) for name, value in self.volumes.items()},
            "scans": [scan.describe() for scan in self.scans],
        }


def case_name(index: int) -> str:
    """Folder name of case ``index``."""
    return f"synth_{index:05d}"


def stream(seed: int, index: int, aspect: str) -> np.random.Generator:
    """The generator that draws ``aspect`` of case ``index``."""
    return np.random.default_rng([seed, index, ASPECTS.index(aspect)])


def make_case(index: int, *, seed: int, spacing: float) -> SyntheticCase:
    """Case ``index`` of the cohort ``seed`` on the template's grid at ``spacing`` millimeters."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums of matrix products depend on the number of threads
        return _make_case(index, seed, spacing)


def _make_case(index: int, seed: int, spacing: float) -> SyntheticCase:
    template = load_template(spacing)
    where = pose(stream(seed, index, "pose"), template=template)
    plan = plan_tumor(stream(seed, index, "plan"), template=template, where=where)
    where = displace(where, plan=plan, spacing=spacing)
    patient_stream = stream(seed, index, "patient")
    age = draw_age(patient_stream, mutant=plan.mutant)
    atrophy = float(np.clip((age - 30) / 50, 0, 1))
    anatomy = grow(stream(seed, index, "anatomy"), template=template, where=where, atrophy=atrophy)
    tumor = grow_tumor(stream(seed, index, "tumor"), plan=plan, anatomy=anatomy, spacing=spacing)
    scans = draw_scans(stream(seed, index, "scans"))
    images = acquire(stream(seed, index, "images"), anatomy=anatomy, tumor=tumor, scans=scans, spacing=spacing)
    volumes = tumor.volumes(spacing)
    patient = draw_patient(patient_stream, plan=plan, volumes=volumes, age=age)
    return SyntheticCase(images, tumor.label, anatomy.brain, template.affine, plan, volumes, patient, scans)


def present_sequences(index: int, *, seed: int, missing: float) -> tuple[str, ...]:
    """The sequences that case ``index`` has when each is lost with probability ``missing``; at least one stays."""
    draws = stream(seed, index, "missing").random(len(SEQUENCES) + 1)
    present = tuple(name for name, draw in zip(SEQUENCES, draws[:-1], strict=True) if draw >= missing)
    return present or (SEQUENCES[int(draws[-1] * len(SEQUENCES))],)
