"""How one sequence is scaled, where a data set's own rule replaces the general ``normalize``.

A network that is fine-tuned elsewhere must meet in pre-training the very values it will be fed there. So a rule says
what that other program does to a volume: which values are cut, and what is subtracted and divided by. Means and
deviations are taken from the file's own voxels, before any resampling, because that is where others take them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medmae.core.errors import UsageError
from medmae.data.foreground import bounding_box

KINDS = ("zscore", "zscore_foreground", "fixed", "minmax", "none")


@dataclass(frozen=True)
class Rule:
    """What becomes of the values of one sequence: (value - mean) / std, after cutting to ``clip``.

    ``kind``: "zscore" (mean and standard deviation of everything in the foreground's bounding box),
    "zscore_foreground" (of the foreground, and 0 outside), "fixed" (``mean`` and ``std`` as given), "minmax" (to
    [0, 1]), "none".
    """

    kind: str = "zscore_foreground"
    clip: tuple[float, float] | None = None
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a rule's kind cannot be {self.kind!r}; it is one of {', '.join(KINDS)}")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise UsageError(f"a rule's clip {list(self.clip)}: the first value is not below the second")
        if not self.std > 0:
            raise UsageError(f"a rule's std must be positive, not {self.std}")

    @classmethod
    def of(cls, values: Any) -> Rule:
        """From JSON values, or from itself. UsageError for keys nobody knows."""
        if isinstance(values, cls):
            return values
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, Mapping) or (unknown := sorted(set(values) - set(known))):
            what = repr(unknown[0]) if isinstance(values, Mapping) else repr(values)
            raise UsageError(f"a rule for a sequence has {', '.join(known)}; {what} is none of them")
        clip = values.get("clip")
        kept = {k: float(v) for k, v in values.items() if k in ("mean", "std")}
        return cls(values.get("kind", cls.kind), None if clip is None else (float(clip[0]), float(clip[1])), **kept)

    def describe(self) -> dict[str, Any]:
        """JSON values; :meth:`of` reads them back."""
        values: dict[str, Any] = {"kind": self.kind}
        if self.clip is not None:
            values["clip"] = list(self.clip)
        return values | ({"mean": self.mean, "std": self.std} if self.kind == "fixed" else {})

    def scale(
        self, values: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"]
    ) -> tuple[Float[np.ndarray, "x y z"], float, float]:
        """The values after cutting, the mean and the standard deviation to scale them by.

        ``inside`` is what counts as foreground; statistics see nothing outside its bounding box, and no voxel that
        is not finite.
        """
        values = values if self.clip is None else np.clip(values, *self.clip)
        start, stop = bounding_box(inside)
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        chosen = values[box][inside[box]] if self.kind == "zscore_foreground" else values[box]
        chosen = chosen[np.isfinite(chosen)]
        if self.kind == "fixed" or self.kind == "none" or not chosen.size:
            return values, self.mean, self.std
        if self.kind == "minmax":
            low, high = float(chosen.min()), float(chosen.max())
            return values, low, max(high - low, 1e-8)
        return values, float(chosen.mean(dtype=np.float64)), max(float(chosen.std(dtype=np.float64)), 1e-8)


def scale_all(
    arrays: Mapping[str, Float[np.ndarray, "x y z"]], inside: Bool[np.ndarray, "x y z"], rules: Mapping[str, Rule]
) -> tuple[dict[str, Float[np.ndarray, "x y z"]], dict[str, tuple[float, float]]]:
    """Every array after its rule's cut, and (mean, std) of each one that has a rule.

    Where another sequence's rule keeps the background, the background of a "zscore_foreground" one becomes its mean,
    which is 0 once it is scaled.
    """
    done, scales = dict(arrays), {}
    mixed = keeps_background(rules)
    for name in arrays:
        if name in rules:
            values, mean, std = rules[name].scale(arrays[name], inside)
            if mixed and rules[name].kind == "zscore_foreground":
                values = np.where(inside, values, np.float32(mean))
            done[name], scales[name] = values, (mean, std)
    return done, scales


def keeps_background(rules: Mapping[str, Rule]) -> bool:
    """Whether the background of some sequence has values of its own, so that it cannot be set to 0 for all."""
    return any(rule.kind != "zscore_foreground" for rule in rules.values())
