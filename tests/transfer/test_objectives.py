"""Losses next to formulas and a maintained survival library; what is not known is out of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medmae.core.errors import UsageError
from medmae.transfer.building import build_objective
from medmae.transfer.objectives import CLASS, EVENT, TIME, VALUE, Classes, Hazards, partial_likelihood

NAN = math.nan
BATCHES = {
    "classes": {CLASS: torch.tensor([0, 2, -1, 1])},
    "cox": {TIME: torch.tensor([3.0, 1.0, NAN, 2.0]), EVENT: torch.tensor([1.0, 1.0, 1.0, 0.0])},
    "hazards": {TIME: torch.tensor([3.0, 1.0, 2.0, 2.0]), EVENT: torch.tensor([1.0, 1.0, NAN, 0.0])},
    "regression": {VALUE: torch.tensor([1.0, 2.0, NAN, 5.0])},
}
RECIPES = {
    "classes": {"count": 3, "weights": [0.5, 1.0, 1.5]},
    "cox": {},
    "hazards": {"edges": [1.0, 2.0, 4.0]},
    "regression": {"mean": 2.0, "std": 3.0},
}


@pytest.mark.parametrize("kind", RECIPES)
def test_what_is_not_known_is_out_of_the_loss(kind: str) -> None:
    objective = build_objective({"kind": kind, **RECIPES[kind]})
    batch = BATCHES[kind]
    raw = torch.randn(4, objective.outputs, requires_grad=True)
    loss = sum(objective(raw, batch).values())
    loss.backward()
    assert bool(raw.grad.isfinite().all())
    assert bool((raw.grad[2] == 0).all())
    assert bool((raw.grad[:2] != 0).any())
    keep = torch.tensor([0, 1, 3])
    without = objective(raw[keep], {name: values[keep] for name, values in batch.items()})
    torch.testing.assert_close(sum(without.values()), loss)
    nothing = objective(raw[2:3], {name: values[2:3] for name, values in batch.items()})
    assert sum(nothing.values()).item() == 0
    assert all(len(value) == 4 for value in objective.read(raw).values())
    assert objective.start().shape == (objective.outputs,)


def test_class_weights_do_not_cancel_out_in_a_batch() -> None:
    raw = torch.randn(1, 2)
    light, heavy = (Classes(count=2, weights=[w, 2 - w]) for w in (0.5, 1.5))
    batch = {CLASS: torch.tensor([0])}
    torch.testing.assert_close(3 * light(raw, batch)["cross_entropy"], heavy(raw, batch)["cross_entropy"])
    torch.testing.assert_close(Classes(count=2)(raw, batch)["cross_entropy"], F.cross_entropy(raw, torch.tensor([0])))


@pytest.mark.parametrize("seed", range(3))
def test_the_partial_likelihood_is_that_of_scikit_survival(seed: int) -> None:
    cox = pytest.importorskip("sksurv.linear_model.coxph")
    rng = np.random.default_rng(seed)
    time, event = rng.integers(1, 6, 20).astype(float), rng.random(20) < 0.7
    score = rng.normal(size=20)
    oracle = cox.CoxPHOptimizer(score[:, None], event, time, np.zeros(1), "efron").nlog_likelihood(np.ones(1))
    mine = partial_likelihood(torch.tensor(score), torch.tensor(time), torch.tensor(event))
    assert mine.item() * event.sum() / 20 == pytest.approx(oracle)


def test_the_partial_likelihood_without_events_and_with_large_scores() -> None:
    score = torch.tensor([1e4, -1e4], requires_grad=True)
    time, never = torch.tensor([1.0, 2.0]), torch.tensor([False, False])
    assert partial_likelihood(score, time, never).item() == 0
    assert bool(partial_likelihood(score, time, ~never).isfinite())


def naive_hazard(raw: torch.Tensor, time: float, event: bool, edges: list[float]) -> float:
    """Negative log-likelihood, word by word."""
    hazard = torch.sigmoid(raw.double())
    total, start = 0.0, 0.0
    for k, edge in enumerate(edges):
        last = k == len(edges) - 1
        if event and (start < time <= edge or (last and time > edge) or (k == 0 and time == 0)):
            return total - math.log(hazard[k])
        if not event and time < edge:
            return total
        total -= math.log(1 - hazard[k])
        start = edge
    return total


def test_discrete_hazards_word_by_word() -> None:
    edges = [1.0, 2.0, 4.0]
    objective = Hazards(edges=edges)
    for time in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0):
        for event in (True, False):
            raw = torch.randn(1, 3)
            found = objective(raw, {TIME: torch.tensor([time]), EVENT: torch.tensor([float(event)])})["hazard"]
            assert found.item() == pytest.approx(naive_hazard(raw[0], time, event, edges), abs=1e-5), (time, event)


def test_survival_falls_and_risk_orders() -> None:
    objective = Hazards(edges=[100.0, 200.0, 400.0])
    found = objective.read(torch.tensor([[-2.0, -2.0, -2.0], [2.0, 2.0, 2.0], [-100.0, -100.0, -100.0]]))
    assert bool((found["survival"].diff(dim=1) <= 0).all())
    assert found["risk"][1] > found["risk"][0] > found["risk"][2]
    assert found["expected"][2].item() == pytest.approx(400)
    start = objective.read(objective.start()[None])["survival"][0]
    torch.testing.assert_close(start[:2], torch.tensor([2 / 3, 1 / 3]))


@pytest.mark.parametrize(
    "recipe",
    [
        {"kind": "dice"}, {"kind": "classes", "count": 1}, {"kind": "classes", "count": 2, "weights": [1.0]},
        {"kind": "hazards", "edges": [2.0, 1.0]}, {"kind": "hazards", "edges": [0.0, 1.0]},
        {"kind": "regression", "std": 0.0}, {"kind": "cox", "ties": "no"},
    ],
)  # fmt: skip
def test_what_cannot_be_meant(recipe) -> None:
    with pytest.raises(UsageError):
        build_objective(recipe)
