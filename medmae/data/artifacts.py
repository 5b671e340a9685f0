"""MRI artifacts as an opt-in augmentation, from torchio, in the loader's workers.

They need the whole crop in float and work in k-space, which is too slow for the default path: with a probability of
0.2 a worker spends most of its time here. The volume's statistics are kept, because a scanner's artifact changes the
values and not what they are compared with; slope and intercept are chosen anew for the changed values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int16

from medmae.core.errors import UsageError
from medmae.core.random import mix

KINDS = ("bias", "motion", "ghosting", "spike", "blur")


@dataclass(frozen=True)
class Artifacts:
    """``probability`` that a sequence of a sample gets one artifact, drawn evenly from ``kinds``."""

    probability: float = 0.2
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UsageError(
                f"artifact {unknown[0] if unknown else '(none)'} is not known; choose from {', '.join(KINDS)}"
            )
        if not 0 <= self.probability <= 1:
            raise UsageError(f"the probability of an artifact lies in [0, 1], not {self.probability}")

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**dataclasses.asdict(self), "kinds": list(self.kinds)}


def apply_artifacts(
    volumes: Int16[np.ndarray, "m x y z"],
    calibration: Float32[np.ndarray, "m 4"],
    *,
    key: int,
    settings: Artifacts,
) -> None:
    """Change ``volumes`` and their slope and intercept in ``calibration`` in place; rows with std 0 are absent."""
    for row in range(len(volumes)):
        seed = mix(key, 0x617274, row)
        chance, choice = (seed % (1 << 24)) / (1 << 24), (seed >> 24) % len(settings.kinds)
        if calibration[row, 3] == 0 or chance >= settings.probability:
            continue
        slope, inter = calibration[row, 0], calibration[row, 1]
        values = volumes[row].astype(np.float32) * slope + inter
        changed = _damage(values, settings.kinds[choice], seed)
        low, high = float(changed.min()), float(changed.max())
        step = (high - low) / 65535 or 1.0
        volumes[row] = (np.rint((changed - low) / step) - 32768).astype(np.int16)
        calibration[row, 0], calibration[row, 1] = step, low + 32768 * step


def _damage(values: np.ndarray, kind: str, seed: int) -> np.ndarray:
    import torchio

    transform = {
        "bias": torchio.RandomBiasField,
        "motion": torchio.RandomMotion,
        "ghosting": torchio.RandomGhosting,
        "spike": torchio.RandomSpike,
        "blur": torchio.RandomBlur,
    }[kind]()
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):  # torchio draws from the global generators
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        try:
            result = transform(torchio.ScalarImage(tensor=torch.from_numpy(values)[None]))  # type: ignore[no-untyped-call]
        finally:
            np.random.set_state(before)
    return np.asarray(result.data[0].numpy(), np.float32)
