"""One more thing anybody gets without a network: gradient boosting of single voxels (scikit-learn).

It learns any function of the intensities at a place and nothing of its neighborhood, so what a network has beyond it is
what the network sees around a voxel. There is one model for each subset and target, fitted when it is first asked for:
one model for all subsets, with gaps for what is missing, would have to share its leaves among them and be the weaker
for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from .protocol import Subject

PER_CASE = 10_000
"""Voxels drawn from each training case."""
VOXELS = 200_000
"""Voxels that one model is fitted on, at most."""
ITERATIONS = 150


class Boosting:
    """Voxels of training cases, and the models fitted on them.

    Args:
        sequences: all sequences there may be.
        per_case: voxels drawn from the foreground of each training case.
        seed: of the voxels and of the models.
    """

    def __init__(self, sequences: tuple[str, ...], *, per_case: int = PER_CASE, seed: int = 0) -> None:
        self.sequences, self._per_case, self._seed = tuple(sequences), per_case, seed
        self._rows: list[Float[np.ndarray, "n m"]] = []
        self._models: dict[tuple[tuple[str, ...], str], tuple[tuple[str, ...], Any]] = {}

    def add(self, images: Mapping[str, Float[np.ndarray, "*size"]], foreground: Bool[np.ndarray, "*size"]) -> None:
        """Take in one training case; models that were fitted before do not change."""
        places = np.flatnonzero(foreground)
        if not len(places) or not set(images) & set(self.sequences):
            return
        draw = np.random.default_rng((self._seed, len(self._rows)))
        places = draw.choice(places, min(self._per_case, len(places)), replace=False)
        gap = np.full(len(places), np.nan, np.float32)
        columns = [images[name].ravel()[places] if name in images else gap for name in self.sequences]
        self._rows.append(np.stack(columns, 1).astype(np.float32))

    def guess(
        self, subject: Subject, given: tuple[str, ...], targets: tuple[str, ...]
    ) -> dict[str, Float[np.ndarray, "*size"]]:
        """The targets from the given sequences of a case, 0 outside the foreground; see ``protocol.Guess``.

        A target that no training case has is 0 everywhere, the mean of normalized images.
        """
        inside = subject.foreground
        values = np.stack([subject.images[name][inside] for name in given], 1)
        found = {}
        for target in targets:
            columns, model = self._model(tuple(sorted(given, key=self.sequences.index)), target)
            image = np.zeros(inside.shape, np.float32)
            if model is not None:
                image[inside] = model.predict(values[:, [given.index(name) for name in columns]])
            found[target] = image
        return found

    def _model(self, given: tuple[str, ...], target: str) -> tuple[tuple[str, ...], Any]:
        """What it looks at, and the model: fitted on the voxels of cases that have all of them, or else on those that
        have the target, with gaps, from what is ever there together with it."""
        key = (given, target)
        if key not in self._models:
            self._models[key] = self._fitted(given, target)
        return self._models[key]

    def _fitted(self, given: tuple[str, ...], target: str) -> tuple[tuple[str, ...], Any]:
        from sklearn.ensemble import HistGradientBoostingRegressor

        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, len(self.sequences)), np.float32)
        inputs, aim = rows[:, [self.sequences.index(n) for n in given]], rows[:, self.sequences.index(target)]
        known = ~np.isnan(aim)
        whole = known & ~np.isnan(inputs).any(1)
        places = np.flatnonzero(whole if whole.any() else known)
        there = ~np.isnan(inputs[places]).all(0) if len(places) else np.zeros(len(given), bool)
        if len(places) < 2 or not there.any():
            return (), None
        if len(places) > VOXELS:
            places = np.random.default_rng(self._seed).choice(places, VOXELS, replace=False)
        model = HistGradientBoostingRegressor(
            max_iter=ITERATIONS, learning_rate=0.1, max_leaf_nodes=31, early_stopping=False, random_state=self._seed
        )
        names = tuple(name for name, usable in zip(given, np.atleast_1d(there).tolist(), strict=True) if usable)
        return names, model.fit(inputs[places][:, there], aim[places])
