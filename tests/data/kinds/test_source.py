"""Which sample comes when: the same whatever the workers, processes and resumes; and what is left out."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from medmae.core.errors import DataError, OutOfMemory
from medmae.data.kinds.listing import Listing, Sample
from medmae.data.kinds.source import Kind, SampleSource, survey
from medmae.data.spec import Split

SEED = 3


class Numbers:
    """A sample is its row and the key it was read with."""

    name, suffixes, entries = "image", (".png",), ("image",)

    def __init__(self, *broken: str, kill: bool = False) -> None:
        self.broken, self.kill = broken, kill

    def read(self, sample: Sample, *, key: int, training: bool) -> dict[str, np.ndarray]:
        if self.kill and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if sample.key in self.broken:
            raise DataError(f"{sample.path}: broken")
        return {"pixels": np.array([int(sample.key), key % 9973 if training else -1])}

    def finish(self, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        return {"image": batch["pixels"].float()}

    def facts(self, sample: Sample) -> dict[str, Any]:
        if sample.key in self.broken:
            raise DataError(f"{sample.path}: broken")
        return {"number": int(sample.key)}

    def describe(self) -> dict[str, Any]:
        return {"kind": "image"}


def listing(n: int = 20, *, on_error: str = "fail") -> Listing:
    samples = tuple(
        Sample(f"{i}", Path(f"{i}.png"), None if i == 0 else "ab"[i % 2], f"p{i}", None, {"toy": i}) for i in range(n)
    )
    return Listing("twenty", "image", samples, ("a", "b"), rule=Split(), on_error=on_error)


def taken(source: SampleSource, *, steps: int, start: int = 0, batch: int = 4, rank: int = 0, world: int = 1) -> Tensor:
    stream = source.train(start=start, batch=batch, rank=rank, world=world, seed=SEED)
    batches = [next(stream) for _ in range(steps)]
    return torch.cat([torch.cat([b["pixels"], b["key"][:, None], b["index"][:, None]], 1) for b in batches])


def test_a_batch() -> None:
    source = SampleSource(listing(), Numbers())
    assert isinstance(Numbers(), Kind)
    assert source.counts == {"train": 16, "val": 2, "test": 2}
    assert (source.size, source.validation_size, source.sequences) == (16, 2, ("image",))
    raw = next(source.train(start=0, batch=16, rank=0, world=1, seed=SEED))
    batch = source.finish(raw, device="cpu", training=True)
    assert sorted(batch) == ["image", "index", "key", "target_class"]
    assert batch["image"][:, 0].tolist() == batch["index"].tolist()
    classes = [-1 if i == 0 else i % 2 for i in batch["index"].tolist()]
    assert batch["target_class"].tolist() == classes
    assert len(set(batch["index"].tolist())) == 16  # an epoch is every training sample once


def test_workers_do_not_change_the_samples() -> None:
    alone = taken(SampleSource(listing(), Numbers()), steps=7)
    assert torch.equal(alone, taken(SampleSource(listing(), Numbers(), workers=2), steps=7))


def test_processes_and_resumes_do_not_change_the_samples() -> None:
    source = SampleSource(listing(), Numbers())
    alone = taken(source, steps=6)
    assert torch.equal(alone[8:], taken(source, steps=4, start=2))
    two = [taken(source, steps=6, batch=2, rank=rank, world=2).view(6, 2, -1) for rank in (0, 1)]
    assert torch.equal(alone, torch.cat(two, 1).flatten(0, 1))
    assert not torch.equal(alone[:16, 1:3], alone[8:24, 1:3])


def test_repeats_share_a_reading_and_differ_in_key() -> None:
    source = SampleSource(listing(), Numbers(), repeat=2)
    assert source.size == 32
    rows = taken(source, steps=2)
    assert torch.equal(rows[::2, :2], rows[1::2, :2])
    assert not (rows[::2, 2] == rows[1::2, 2]).any()
    across = taken(source, steps=4, batch=1)  # also where a batch ends between them
    assert torch.equal(across[::2, :2], across[1::2, :2])


def test_validation_is_fixed_and_shared_out() -> None:
    source = SampleSource(listing(40), Numbers())
    whole = torch.cat([b["index"] for b in source.validation(batch=3, rank=0, world=1, seed=SEED)])
    parts = [torch.cat([b["index"] for b in source.validation(batch=3, rank=r, world=2, seed=SEED)]) for r in (0, 1)]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
    assert all((b["pixels"][:, 1] == -1).all() for b in source.validation(batch=3, rank=0, world=1, seed=SEED))
    test = source.usable("test")
    ordered = torch.cat([b["index"] for b in source.in_order(test[::-1], batch=3)])
    assert [str(i) for i in ordered.tolist()] == [s.key for s in test[::-1]]


def test_broken_samples_are_all_named() -> None:
    with pytest.raises(DataError, match=r"2 of 20 sample(.|\n)*3.png: broken(.|\n)*5.png: broken(.|\n)*on_error=skip"):
        SampleSource(listing(), Numbers("3", "5"))


def test_broken_samples_are_skipped_by_policy_and_the_split_stays() -> None:
    whole = SampleSource(listing(), Numbers())
    broken = whole.usable("train")[2].key
    source = SampleSource(listing(on_error="skip"), Numbers(broken))
    assert source.size == 15
    assert source.usable("val") == whole.usable("val")
    assert f"{broken}.png: broken" in source.notes[-1]
    assert int(broken) not in taken(source, steps=8)[:, 0].tolist()
    everything = [str(i) for i in range(20)]
    with pytest.raises(DataError, match="no image to train on"):
        SampleSource(listing(on_error="skip"), Numbers(*everything))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_breaks_later_is_named(workers: int) -> None:
    kind = Numbers(*map(str, range(20)))
    source = SampleSource(listing(), kind, check=False, workers=workers)
    with pytest.raises(DataError, match=r"^\d+.png: broken$"):
        taken(source, steps=1)


def test_a_killed_worker_is_told_as_want_of_memory() -> None:
    source = SampleSource(listing(), Numbers(kill=True), workers=1)
    with pytest.raises(OutOfMemory, match="Use fewer workers"):
        taken(source, steps=1)


def test_the_model_remembers_who_it_was_trained_on() -> None:
    source = SampleSource(listing(), Numbers())
    told = source.describe()
    assert len(told["subjects"]) == 16
    assert not set(told["subjects"]) & set(told["validation_subjects"])
    assert told["cases"] == {"train": 16, "validation": 2}
    assert told["reading"] == {"kind": "image"}
    assert told["classes"] == ["a", "b"]


def test_a_survey_keeps_the_facts_of_the_others() -> None:
    found = survey(listing().samples, Numbers("4"), workers=2)
    assert list(found.problems) == ["4"]
    assert len(found.facts) == 19
