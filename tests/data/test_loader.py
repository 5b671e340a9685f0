"""The source of samples: the same for any number of workers and processes, incomplete cases marked, crops on target."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from volumes import FakeCohort, FakeSpec, FileCase, Section, make_case

from medmae.core.errors import DataError, OutOfMemory, UsageError
from medmae.data.artifacts import Artifacts
from medmae.data.augment import Augmentation
from medmae.data.loader import VolumeSource
from medmae.data.preprocess import prepare

SIZE = (16, 16, 16)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> FakeCohort:
    folder = tmp_path_factory.mktemp("cohort")
    cases = [make_case(folder, f"c{i}", seed=10 * i, label=i % 2 == 0) for i in range(4)]
    cases.append(make_case(folder, "half", sequences=("t2w",), seed=90, background=-77))
    cases.append(make_case(folder, "flat", shape=(30, 28, 10), seed=70))
    return FakeCohort(tuple(cases), (make_case(folder, "v", seed=80), make_case(folder, "w", seed=81)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def source(cohort: FakeCohort, cache: Path, **changes: object) -> VolumeSource:
    return VolumeSource(cohort, **{"size": SIZE, "cache": cache, **changes})


def first(src: VolumeSource, steps: int, *, start: int = 0, batch: int = 4, rank: int = 0, world: int = 1):
    return list(islice(src.train(start=start, batch=batch, rank=rank, world=world, seed=5), steps))


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_batch_is_what_the_contract_says(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache)
    assert src.size == 6
    assert src.sequences == ("t1n", "t2w")
    (batch,) = first(src, 1, batch=6)
    done = src.finish(batch, device="cpu", training=True)
    assert done["t1n"].shape == done["t2w"].shape == done["foreground"].shape == (6, 1, *SIZE)
    assert done["present"].shape == (6, 2)
    assert done["spacing"].tolist() == [[1.0, 1.0, 2.0]] * 6
    assert sorted(done["index"].tolist()) == list(range(6))
    assert done["key"].dtype == torch.int64
    half = done["index"].tolist().index(4)
    assert done["present"][half].tolist() == [False, True]
    assert (done["t1n"][half] == 0).all()
    assert done["t2w"][half].any()
    flat = done["index"].tolist().index(5)
    assert not done["foreground"][flat, 0, :, :, :2].any() or not done["foreground"][flat, 0, :, :, -2:].any()
    for name in ("t1n", "t2w"):
        assert (done[name][~done["foreground"]] == 0).all()


def test_labels_come_with_cases_that_have_one(cohort: FakeCohort, cache: Path):
    labeled = FakeCohort(cohort.train)
    src = source(labeled, cache, labels=True, size=(24, 26, 20))
    assert src.size == 2
    assert "4 case(s) left out" in src.notes[0]
    (batch,) = first(src, 1, batch=2)
    done = src.finish(batch, device="cpu", training=True)
    assert done["label"].dtype == torch.int64
    assert done["label"].shape == (2, 1, 24, 26, 20)
    assert (done["label"] == 4).sum((1, 2, 3, 4)).tolist() == [48, 48]


def test_a_crop_holds_the_values_of_its_volume(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache, augmentation=Augmentation.none())
    prepared = [prepare(case, cohort.spec) for case in cohort.train]
    for batch in first(src, 3):
        done = src.finish(batch, device="cpu", training=True)
        for i, index in enumerate(done["index"].tolist()):
            item = prepared[index]
            start = src._crops.start(index, int(done["key"][i]))
            for name in item.images:
                known = item.statistics[name]
                z = (item.images[name].values() - np.float32(known.mean)) / np.float32(known.std) * item.foreground
                padded = np.pad(z, 32)
                truth = padded[tuple(slice(s + 32, s + 48) for s in start)]
                assert np.allclose(done[name][i, 0].numpy(), truth, atol=2e-5)


@pytest.mark.parametrize("tier", ["memory", "device"])
def test_all_tiers_deliver_the_same(cohort: FakeCohort, cache: Path, tier: str):
    disk, other = source(cohort, cache), source(cohort, cache, tier=tier)
    for a, b in zip(first(disk, 3), first(other, 3), strict=True):
        one = disk.finish(a, device="cpu", training=True)
        assert_same(one, other.finish(b, device="cpu", training=True))
    for a, b in zip(
        disk.validation(batch=2, rank=0, world=1, seed=1),
        other.validation(batch=2, rank=0, world=1, seed=1),
        strict=True,
    ):
        assert_same(disk.finish(a, device="cpu", training=False), other.finish(b, device="cpu", training=False))


def test_two_processes_deliver_what_one_does_and_resuming_needs_the_step(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache)
    whole = first(src, 4)
    halves = [first(src, 4, batch=2, rank=r, world=2) for r in range(2)]
    for step, batch in enumerate(whole):
        for name in batch:
            assert torch.equal(batch[name], torch.cat([halves[0][step][name], halves[1][step][name]])), name
    for a, b in zip(whole[2:], first(src, 2, start=2), strict=True):
        assert_same(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing_and_never_repeat_each_other(cohort: FakeCohort, cache: Path):
    alone = first(source(cohort, cache, size=(6, 6, 6)), 6, batch=2)
    shared = first(source(cohort, cache, size=(6, 6, 6), workers=3), 6, batch=2)
    for a, b in zip(alone, shared, strict=True):
        assert_same(a, b)
    keys = [key for batch in shared for key in batch["key"].tolist()]
    assert len(set(keys)) == len(keys)
    crops = {tuple(batch["volumes"][i].flatten().tolist()) for batch in shared for i in range(2)}
    assert len(crops) == len(keys)
    assert all(batch["volumes"].is_shared() for batch in shared)


@pytest.mark.slow
def test_a_killed_worker_is_told_as_want_of_memory(cohort: FakeCohort, cache: Path):
    import os
    import signal

    import torch.multiprocessing

    stream = source(cohort, cache, workers=1).train(start=0, batch=1, rank=0, world=1, seed=0)
    next(stream)
    (worker,) = torch.multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OutOfMemory, match="shm-size"):
        list(islice(stream, 50))


def test_iterating_leaves_the_global_generator_alone(cohort: FakeCohort, cache: Path):
    before = torch.get_rng_state()
    first(source(cohort, cache), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_crops_are_centered_on_the_foreground(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache, size=(9, 9, 9))
    prepared = [prepare(case, cohort.spec) for case in cohort.train]
    seen = set()
    for crop in range(60):
        for index in range(4):
            start = src._crops.start(index, crop)
            seen.add((index, start))
            shape = prepared[index].shape
            assert all(0 <= s <= n - 9 for s, n in zip(start, shape, strict=True))
            inner = all(0 < s < n - 9 for s, n in zip(start, shape, strict=True))
            if inner:
                assert prepared[index].foreground[tuple(s + 4 for s in start)]
    assert len(seen) > 200


def test_validation_never_moves(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache)
    assert src.validation_size == 2
    one = list(src.validation(batch=2, rank=0, world=1, seed=1))
    two = list(src.validation(batch=1, rank=0, world=2, seed=1)) + list(
        src.validation(batch=1, rank=1, world=2, seed=1)
    )
    assert len(one) == 1
    assert torch.equal(one[0]["volumes"], torch.cat([b["volumes"] for b in two]))
    assert torch.equal(one[0]["key"], torch.cat([b["key"] for b in two]))
    done = src.finish(one[0], device="cpu", training=False)
    assert "present" not in done
    assert_same(done, src.finish(one[0], device="cpu", training=False))


def test_several_plans_share_a_crop(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache, repeat=3, augmentation=Augmentation.none())
    assert src.size == 18
    (batch,) = first(src, 1, batch=6)
    assert batch["volumes"].shape[0] == 2
    done = src.finish(batch, device="cpu", training=True)
    assert done["t2w"].shape[0] == 6
    assert torch.equal(done["t2w"][0], done["t2w"][2])
    assert len(set(done["key"].tolist())) == 6
    device = source(cohort, cache, repeat=3, augmentation=Augmentation.none(), tier="device")
    assert_same(done, device.finish(first(device, 1, batch=6)[0], device="cpu", training=True))


def test_a_choice_of_sequences(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache, sequences=("t1n",))
    assert src.size == 5  # one case has no t1n
    (batch,) = first(src, 1, batch=5)
    assert set(src.finish(batch, device="cpu", training=False)) == {"t1n", "foreground", "key", "spacing", "index"}
    with pytest.raises(DataError, match="pd"):
        source(cohort, cache, sequences=("pd",))


def test_artifacts_are_for_training_only(cohort: FakeCohort, cache: Path):
    plain, marked = source(cohort, cache), source(cohort, cache, artifacts=Artifacts(probability=1.0, kinds=("bias",)))
    (a,), (b,) = first(plain, 1), first(marked, 1)
    assert not torch.equal(a["volumes"], b["volumes"])
    assert torch.equal(a["foreground"], b["foreground"])
    assert_same(first(marked, 1)[0], b)
    one, two = (next(s.validation(batch=2, rank=0, world=1, seed=1)) for s in (plain, marked))
    assert_same(one, two)


def test_the_description_names_no_file(cohort: FakeCohort, cache: Path):
    src = source(cohort, cache)
    text = json.dumps(src.describe())
    assert not any(
        case.key + "/" in text or str(path) in text for case in cohort.train for path in case.images.values()
    )
    told = src.describe()
    assert told["sequences"] == ["t1n", "t2w"]
    assert told["crop"] == [16, 16, 16]
    assert len(told["subjects"]) == 6
    assert len(told["files"]) == 11
    from medmae.data.inference import load_case

    loaded = load_case(cohort.train[0].images, told["preprocess"])
    assert {digest[:16] for digest in loaded.files.values()} <= set(told["files"])  # leakage can be seen


def test_cases_left_out_are_noted(cohort: FakeCohort, tmp_path: Path):
    case = make_case(tmp_path, "a")
    other = make_case(tmp_path, "b", shape=(20, 20, 20))
    mixed = FileCase("mixed", {"t1n": case.images["t1n"], "t2w": other.images["t2w"]})
    spec = FakeSpec(geometry=Section(on_mismatch="skip"))
    src = source(FakeCohort((case, mixed), spec=spec), tmp_path / "cache")
    assert src.size == 1
    assert "mixed" in src.notes[0]


@pytest.mark.parametrize("wrong", [{"tier": "cloud"}, {"size": (0, 8, 8)}, {"repeat": 0}, {"workers": -1}])
def test_impossible_requests_are_refused(cohort: FakeCohort, cache: Path, wrong: dict[str, object]):
    with pytest.raises(UsageError):
        source(cohort, cache, **wrong)


def test_real_cases_through_the_cohort(real_data: Path, tmp_path: Path):
    from medmae.data.cohort import open_cohort

    (tmp_path / "spec.yaml").write_text(
        f"medmae: 1\nname: real\nroot: {real_data / 'small'}\npattern: '{{case}}/{{seq}}.nii.gz'\n"
        "sequences: [t1n, t1c, t2w, t2f]\ncases: (MET|MS|brats13)\nmask: {file: '{case}/mask.nii.gz'}\n"
        "split: {val: 0.2, test: 0}\n"
    )
    src = VolumeSource(open_cohort(tmp_path / "spec.yaml"), size=(48, 48, 48), cache=tmp_path / "cache")
    assert src.size == 4
    assert src.validation_size == 1
    for batch in first(src, 2):
        done = src.finish(batch, device="cpu", training=True)
        for name in src.sequences:
            assert torch.isfinite(done[name]).all()
            assert done[name].abs().max() < 40
        assert done["foreground"].float().mean() > 0.3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tier", ["disk", "memory", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_finishes_as_the_host_does(cohort: FakeCohort, cache: Path, tier: str, workers: int):
    settings = Augmentation(gamma=1.5, gamma_probability=0.5, noise=0.1, noise_probability=0.5)
    src = source(cohort, cache, tier=tier, workers=workers, augmentation=settings)
    for batch in first(src, 6):
        host = src.finish(batch, device="cpu", training=True)
        device = src.finish(batch, device="cuda", training=True)
        assert set(host) == set(device)
        for name, value in device.items():
            assert value.device.type == "cuda"
            assert torch.allclose(value.cpu().double(), host[name].double(), atol=1e-4), name
