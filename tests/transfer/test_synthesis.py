"""Synthesis: what the loss looks at, what it begins with, and every subset through one network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medmae.core.errors import UsageError
from medmae.evaluate.baselines import Baselines, Sums
from medmae.evaluate.metrics import Ssim
from medmae.find import find
from medmae.transfer.building import build, build_objective
from medmae.transfer.finetuned import Finetuned, drop_sequences
from medmae.transfer.synthesis import Synthesis, prior_of, similarity

NAMES = ("t1n", "t1c", "t2w", "t2f")
SIZE = (32, 32, 32)
SUBSETS = [s for k in (1, 2, 3) for s in itertools.combinations(NAMES, k)]


def recipe(**objective) -> dict:
    base = find("bm_mae").recipe(scale="test", sequences=NAMES, depth=1)
    head = {"kind": "synthesis", "features": 4, "dropout": 0.1, "hidden": 8}
    return {
        "backbone": {"method": "bm_mae", "recipe": base}, "head": head,
        "objective": {"kind": "synthesis", "names": list(NAMES), **objective},
    }  # fmt: skip


def model(**objective) -> Finetuned:
    torch.manual_seed(0)
    return build(recipe(**objective))


def images(count: int = 2, size: tuple[int, ...] = (12, 13, 14)) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    batch = {name: torch.randn(count, 1, *size) for name in NAMES}
    inside = torch.zeros(count, 1, *size)
    inside[:, :, 2:10, 2:10, 2:10] = 1
    return {**batch, "foreground": inside, "spacing": torch.ones(count, 3), "key": torch.arange(count) + 5}


def sums() -> Sums:
    found, rng = Sums(NAMES), np.random.default_rng(0)
    for i in range(3):
        hidden = rng.normal(size=(6, 6, 6))
        case = {
            n: (hidden * (k + 1) + 0.3 * rng.normal(size=hidden.shape) + k).astype("f4") for k, n in enumerate(NAMES)
        }
        if i == 2:
            case.pop("t2w")
        found.add(case, np.ones(hidden.shape, bool))
    return found


def flags(*rows: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[name in row for name in NAMES] for row in rows])


def test_the_loss_is_that_of_what_is_hidden() -> None:
    batch, raw = images(), torch.randn(2, 4, 12, 13, 14)
    batch |= {"had": flags(NAMES, ("t1n", "t2w")), "present": flags(("t1n", "t2f"), ("t2w",))}
    found = Synthesis(names=NAMES, l1=2.0, l2=3.0, ssim=0.5, ranges=[4.0, 5.0, 6.0, 7.0])(raw, batch)
    inside = batch["foreground"][:, 0] > 0
    pairs = [(0, 1), (0, 2), (1, 0)]
    change = torch.cat([(raw[b, c] - batch[NAMES[c]][b, 0])[inside[b]] for b, c in pairs])
    torch.testing.assert_close(found["l1"], 2 * change.abs().mean())
    torch.testing.assert_close(found["l2"], 1.5 * change.square().mean())
    maps = []
    for b, c in pairs:
        region = inside[b].numpy()
        maps.append(Ssim(batch[NAMES[c]][b, 0].numpy(), region, width=4.0 + c).map(raw[b, c].numpy())[region])
    torch.testing.assert_close(
        float(found["dissimilarity"]), 0.5 * (1 - np.concatenate(maps).mean()), rtol=1e-4, atol=0
    )


def test_what_is_missing_or_given_has_no_effect_on_the_loss() -> None:
    objective, batch = Synthesis(names=NAMES), images()
    batch |= {"had": flags(NAMES, ("t1n", "t2w")), "present": flags(("t1n", "t2f", "t1c"), ("t2w",))}
    raw = torch.randn(2, 4, 12, 13, 14, requires_grad=True)
    before = sum(objective(raw, batch).values())
    before.backward()
    moved = [(b, c) for b in range(2) for c in range(4) if raw.grad[b, c].abs().sum() > 0]
    assert moved == [(0, 2), (1, 0)]
    outside = batch["foreground"].expand(2, 4, -1, -1, -1) == 0
    assert not raw.grad[outside].any()
    changed = dict(batch)
    changed["t1c"] = torch.full_like(batch["t1c"], float("nan"))  # given to one, missing in the other
    changed["t2w"] = torch.stack([batch["t2w"][0], torch.full_like(batch["t2w"][1], 9.0)])
    torch.testing.assert_close(sum(objective(raw, changed).values()), before, rtol=0, atol=0)
    nothing = {**batch, "present": batch["had"]}
    assert sum(objective(raw, nothing).values()) == 0


def test_the_similarity_has_the_right_gradient() -> None:
    torch.manual_seed(0)
    guess, truth = torch.randn(2, 1, 5, 6, 7, dtype=torch.float64)
    region = torch.rand(1, 5, 6, 7) > 0.3
    guess.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda g: similarity(g.float(), truth.float(), region, torch.tensor([4.0])).sum().double(),
        guess, eps=1e-2, atol=2e-2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["t1n"]}, "at least two"),
        ({"names": ["t1n", "t1n"]}, "each once"),
        ({"names": NAMES, "l1": -1}, "at least 0"),
        ({"names": NAMES, "l1": 0, "l2": 0, "ssim": 0}, "not all 0"),
        ({"names": NAMES, "ranges": [1.0]}, "one above 0"),
        ({"names": NAMES, "prior": [{"sequences": ["adc"], "voxels": 3, "products": [[1, 0], [0, 1]]}]}, "do not fit"),
    ],
)
def test_values_that_cannot_be_meant(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_objective({"kind": "synthesis", **options})


@torch.no_grad()
def test_it_begins_with_the_linear_regression_of_every_subset() -> None:
    known = sums()
    method, baselines = model(prior=prior_of(known)).eval(), Baselines(known)
    batch = {**images(2, SIZE), "present": flags(("t1n", "t2f"), ("t1c",))}
    found = method.predict(batch)["volumes"]
    for row, given in enumerate((("t1n", "t2f"), ("t1c",))):
        shown = {name: batch[name][row, 0].numpy() for name in given}
        for channel, name in enumerate(NAMES):
            if name not in given:
                fit = baselines.fit("linear", given, name)
                torch.testing.assert_close(
                    found[row, channel], torch.tensor(fit(shown, like=shown[given[0]])), rtol=1e-4, atol=1e-4
                )


def test_every_subset_runs_and_what_is_missing_leaves_no_trace() -> None:
    method = model(prior=prior_of(sums())).eval()
    torch.nn.init.normal_(method.head.last.weight)
    batch = {**images(len(SUBSETS), SIZE), "present": flags(*SUBSETS)}
    with torch.no_grad():
        found = method.predict(batch)["volumes"]
        other = dict(batch)
        for channel, name in enumerate(NAMES):
            gone = ~batch["present"][:, channel]
            other[name] = torch.where(gone[:, None, None, None, None], torch.randn_like(batch[name]), batch[name])
        again = method.predict(other)["volumes"]
    assert found.isfinite().all()
    torch.testing.assert_close(again, found, rtol=0, atol=0)


def test_training_moves_everything_and_always_hides_something() -> None:
    method = model().train()
    batch = images(3, SIZE)
    torch.nn.init.normal_(method.head.last.weight)
    sum(method(batch).values()).backward()
    still = {n for n, p in method.head.named_parameters() if p.grad is None}
    assert all("seg_layers" in name for name in still)  # those of the coarse scales are for deep supervision
    had = torch.ones(500, 4, dtype=torch.bool)
    kept = drop_sequences(had, torch.arange(500), probability=1.0, proper=True)
    assert kept.any(1).all()
    assert not kept.all(1).any()


@torch.no_grad()
def test_validation_hides_the_same_every_time() -> None:
    method, batch = model().eval(), images(2, SIZE)
    first, second = method(batch), method(batch)
    assert {k: float(v) for k, v in first.items()} == {k: float(v) for k, v in second.items()}
    other = method({**batch, "key": batch["key"] + 100})
    assert float(other["l1"]) != float(first["l1"])
