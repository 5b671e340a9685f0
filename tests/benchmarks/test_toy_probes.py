"""The parts of ``benchmarks/toy_probes.py`` that could lie without being noticed: rows, labels, parts, weights."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medmae.find import find

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
toy_probes = pytest.importorskip("toy_probes", reason="the benchmarks are not here (installed package)")

TINY: dict[str, Any] = {"width": 24, "depth": 1, "heads": 4, "decoder_width": 24, "decoder_depth": 1}


@pytest.fixture(scope="module")
def setup() -> Any:
    few = toy_probes.SETUPS["mae"]
    return dataclasses.replace(few, samples=60, recipe={**few.recipe, **TINY}, steps=2, batch=4)


@pytest.fixture(scope="module")
def source(setup: Any) -> Any:
    return toy_probes.source_of("mae", setup)


def test_rows_belong_to_their_labels(source: Any) -> None:
    rows, labels, _ = toy_probes.seen(source, lambda batch: batch["target_class"][:, None].float(), batch=7)
    assert [source.listing.classes[int(row)] for row in rows[:, 0]] == labels


def test_nothing_of_the_test_part_is_trained_on(source: Any) -> None:
    parts = source.listing.split()
    assert len(parts["test"]) == 18
    held = {source.listing.samples.index(sample) for sample in (*parts["test"], *parts["val"])}
    batches = itertools.islice(source.train(start=0, batch=16, rank=0, world=1, seed=0), 8)
    trained = {index for batch in batches for index in batch["index"].tolist()}
    assert len(trained) == 36
    assert not trained & held


def test_arms_of_a_seed_start_from_the_same_weights(setup: Any) -> None:
    one, again, other = (toy_probes.fresh("mae", setup, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["encoder.embed.linear.weight"], other["encoder.embed.linear.weight"])


def test_training_changes_weights_and_settling_only_statistics(setup: Any, source: Any) -> None:
    method = toy_probes.fresh("mae", setup, 0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    toy_probes.settle_norms(method, source)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    toy_probes.train(method, source, setup, lr=1e-3, seed=0)
    assert not torch.equal(before["decoder.head.weight"], method.state_dict()["decoder.head.weight"])

    points = dataclasses.replace(toy_probes.SETUPS["point_mae"], samples=40)
    clouds = toy_probes.source_of("point_mae", points)
    method = toy_probes.fresh("point_mae", points, 0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    toy_probes.settle_norms(method, clouds, batches=2, batch=4)
    changed = {name for name, value in method.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all("running" in name or "tracked" in name for name in changed)


@pytest.mark.parametrize("name", list(toy_probes.SETUPS))
def test_every_setup_is_a_method_on_the_toy_of_its_kind(name: str) -> None:
    chosen = toy_probes.SETUPS[name]
    assert find(name).card.kind == chosen.kind
    with torch.device("meta"):
        find(name).build(**chosen.recipe)
