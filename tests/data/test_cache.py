"""The cache serves exactly what was prepared, and never anything stale."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from volumes import FakeSpec, FileCase, Section, make_case, volume, write

from medmae.core.errors import DataError, MedmaeError, UsageError
from medmae.data import cache
from medmae.data.crops import CropReader, make_memory_twins
from medmae.data.preprocess import PreprocessSettings, prepare
from medmae.data.preprocess_command import run_cache_clear, run_cache_status, run_preprocess


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("built")
    case = make_case(folder, "a", shape=(70, 40, 36), label=True)
    (entry,) = cache.ensure([case], PreprocessSettings(), folder=folder / "cache")
    assert entry is not None
    make_memory_twins(entry)
    return entry, prepare(case, PreprocessSettings())


@pytest.mark.parametrize("tier", ["disk", "memory"])
@pytest.mark.parametrize("start", [(0, 0, 0), (30, 5, 7), (-4, -9, 20), (60, 35, 30), (-100, 0, 0)])
def test_crops_are_bit_exact_and_padded_with_background(built, tier: str, start: tuple[int, int, int]):
    entry, prepared = built
    size = (32, 24, 16)
    reader = CropReader(tier=tier)
    images = np.full((3, *size), 77, np.int16)
    mask, label = np.full(size, 7, np.uint8), np.full(size, 7, np.int16)
    reader.images(entry, ("t2w", "pd", "t1n"), start, images)
    reader.foreground(entry, start, mask)
    reader.label(entry, start, label)

    def truth(array: np.ndarray) -> np.ndarray:
        padded = np.pad(array, 128)
        return padded[tuple(slice(s + 128, s + 128 + n) for s, n in zip(start, size, strict=True))]

    assert np.array_equal(images[0], truth(prepared.images["t2w"].stored))
    assert not images[1].any()
    assert np.array_equal(images[2], truth(prepared.images["t1n"].stored))
    assert np.array_equal(mask, truth(prepared.foreground))
    assert np.array_equal(label, truth(prepared.label))


def test_manifest_carries_the_statistics(built):
    entry, prepared = built
    values = cache.read_manifest(entry.folder.parent)["entries"][entry.key]
    assert values["statistics"]["t1n"]["mean"] == prepared.statistics["t1n"].mean
    assert cache.Entry.from_json(json.loads(json.dumps(values)), entry.folder) == entry


def test_what_exists_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = [make_case(tmp_path, "a"), make_case(tmp_path, "b", seed=5)]
    first = cache.ensure(cases[:1], PreprocessSettings(), folder=tmp_path / "cache")
    prepared: list[str] = []
    monkeypatch.setattr(cache, "prepare", lambda case, *a, **k: prepared.append(case.key) or prepare(case, *a, **k))
    second = cache.ensure(cases, PreprocessSettings(), folder=tmp_path / "cache")
    assert prepared == ["b"]
    assert second[0] == first[0]
    cache.ensure(cases[::-1], PreprocessSettings(), folder=tmp_path / "cache")
    assert prepared == ["b"]


@pytest.mark.parametrize("aged", [True, False])
def test_a_changed_file_is_never_served_stale(tmp_path: Path, aged: bool, monkeypatch: pytest.MonkeyPatch):
    case = make_case(tmp_path, "a")
    path = case.images["t1n"]
    write(path.with_suffix(""), volume((24, 26, 20), seed=0))  # uncompressed, so that the size stays the same
    case = FileCase("a", {"t1n": path.with_suffix("")})
    path = case.images["t1n"]
    if aged:
        from medmae.data import fingerprint

        monkeypatch.setattr(fingerprint, "_RACY_NS", 0)
        time.sleep(0.02)
    (old,) = cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")
    before = path.stat()
    if aged:
        time.sleep(0.02)
    write(path, volume((24, 26, 20), seed=9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same modification time
    assert path.stat().st_size == before.st_size
    (new,) = cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")
    assert new.key != old.key
    assert new.statistics["t1n"] == prepare(case, PreprocessSettings()).statistics["t1n"]


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from medmae.data import fingerprint

    path = make_case(tmp_path, "a").images["t1n"]
    monkeypatch.setattr(fingerprint, "_RACY_NS", 0)
    time.sleep(0.02)
    prints = fingerprint.Fingerprints(tmp_path)
    first = prints.of(path)
    prints.save()
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *a: pytest.fail("read again"))
    assert fingerprint.Fingerprints(tmp_path).of(path) == first
    assert path.name not in (tmp_path / "files.json").read_text()


@pytest.mark.parametrize(
    "other",
    [
        PreprocessSettings(orientation="LPS"),
        PreprocessSettings(spacing=(2.0, 2.0, 2.0)),
        PreprocessSettings(margin=3.0),
        PreprocessSettings(normalize="none"),
        PreprocessSettings(windows={"t1n": (0.0, 5.0)}),
        PreprocessSettings(on_mismatch="resample"),
        FakeSpec(label=Section(remap={4: 3})),
    ],
)
def test_any_changed_setting_has_another_name(built, other, tmp_path: Path):
    case = make_case(tmp_path, "a")
    keys = [cache.cached_keys([case], spec, folder=tmp_path)[0] for spec in (PreprocessSettings(), other)]
    assert keys[0] != keys[1]


def test_another_version_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = make_case(tmp_path, "a")
    (old,) = cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    (new,) = cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")
    assert new.key != old.key


def test_a_detached_data_file_counts(tmp_path: Path):
    from medmae.data.fingerprint import Fingerprints

    (tmp_path / "a.mhd").write_text("ObjectType = Image\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"one")
    first = Fingerprints(None).of(tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes(b"two")
    assert Fingerprints(None).of(tmp_path / "a.mhd") != first


def test_a_damaged_entry_is_built_anew(tmp_path: Path):
    case = make_case(tmp_path, "a")
    (entry,) = cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")
    whole = (entry.folder / "images.b2nd").read_bytes()
    (entry.folder / "images.b2nd").write_bytes(whole[: len(whole) // 2])
    assert cache.status(tmp_path / "cache")["damaged"] == 1
    (again,) = cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")
    assert again.intact()
    assert again.key == entry.key


def test_an_interrupted_build_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = [make_case(tmp_path, name, seed=i * 7) for i, name in enumerate("abc")]
    done: list[str] = []

    def dies(case, *args, **kwargs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.key)
        return prepare(case, *args, **kwargs)

    monkeypatch.setattr(cache, "prepare", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.ensure(cases, PreprocessSettings(), folder=tmp_path / "cache")
    monkeypatch.setattr(cache, "prepare", lambda case, *a, **k: done.append(case.key) or prepare(case, *a, **k))
    entries = cache.ensure(cases, PreprocessSettings(), folder=tmp_path / "cache")
    assert done == ["a", "b", "c"]
    assert all(entry is not None and entry.intact() for entry in entries)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.name.startswith(".")]


def test_all_faults_are_named_at_once_and_good_cases_stay(tmp_path: Path):
    good = make_case(tmp_path, "good")
    bad = make_case(tmp_path, "broken", seed=3)
    bad.images["t1n"].write_bytes(bad.images["t1n"].read_bytes()[:200])
    gone = make_case(tmp_path, "gone", seed=6)
    gone.images["t2w"].unlink()
    with pytest.raises(DataError, match="2 of 3 cases") as error:
        cache.ensure([good, bad, gone], PreprocessSettings(), folder=tmp_path / "cache")
    assert "broken" in str(error.value)
    assert "gone" in str(error.value)
    assert cache.status(tmp_path / "cache")["entries"] == 1


def test_a_named_pipe_is_a_fault_and_not_waited_for(tmp_path: Path):
    case = make_case(tmp_path, "a")
    case.images["t2w"].unlink()
    os.mkfifo(case.images["t2w"])
    with pytest.raises(DataError, match="not a regular file"):
        cache.ensure([case], PreprocessSettings(), folder=tmp_path / "cache")


def test_a_finished_cache_is_served_from_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case, folder = make_case(tmp_path, "a"), tmp_path / "cache"
    built = cache.ensure([case], PreprocessSettings(), folder=folder)

    def refuse(folder: Path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache, "locked", refuse)
    assert cache.ensure([case], PreprocessSettings(), folder=folder) == built
    with pytest.raises(UsageError, match="cannot be written"):
        cache.ensure([make_case(tmp_path, "b", seed=5)], PreprocessSettings(), folder=folder)


def test_a_cache_that_cannot_be_written_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        cache.ensure([make_case(tmp_path, "a")], PreprocessSettings(), folder=tmp_path / "file")

    def full(folder: Path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "locked", full)
    with pytest.raises(MedmaeError, match="disk is full"):
        cache.ensure([make_case(tmp_path, "b", seed=5)], PreprocessSettings(), folder=tmp_path / "cache")


def test_cases_left_out_by_the_policy_are_told(tmp_path: Path):
    case = make_case(tmp_path, "a")
    write(case.images["t2w"], volume((24, 26, 21), seed=1))
    told: list[str] = []
    settings = PreprocessSettings(on_mismatch="skip")
    assert cache.ensure([case], settings, folder=tmp_path / "cache", on_problem=told.append) == (None,)
    assert "t2w" in told[0]


def test_clear_keeps_what_it_is_told_and_touches_nothing_else(tmp_path: Path):
    cases = [make_case(tmp_path, "a"), make_case(tmp_path, "b", seed=5)]
    folder = tmp_path / "cache"
    first, second = cache.ensure(cases, PreprocessSettings(), folder=folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("keep")
    assert cache.clear(folder, keep=[second.key]) == 1
    assert not first.folder.exists()
    assert second.intact()
    assert (folder / "notes" / "mine.txt").exists()
    assert list(cache.read_manifest(folder)["entries"]) == [second.key]
    assert cache.clear(tmp_path / "nowhere") == 0


@pytest.mark.slow
def test_workers_build_what_one_process_builds(tmp_path: Path):
    cases = [make_case(tmp_path, name, seed=i * 7) for i, name in enumerate("abc")]
    alone = cache.ensure(cases, PreprocessSettings(), folder=tmp_path / "one")
    shared = cache.ensure(cases, PreprocessSettings(), folder=tmp_path / "two", workers=2)
    assert [e.key for e in alone] == [e.key for e in shared]
    assert [e.statistics for e in alone] == [e.statistics for e in shared]


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for i, name in enumerate("ab"):
        make_case(tmp_path / "data", name, seed=i * 7)
    (tmp_path / "spec.yaml").write_text(
        "medmae: 1\nname: x\nroot: data\npattern: '{case}/{seq}.nii.gz'\nsequences: [t1n, t2w]\n"
    )
    folder = tmp_path / "cache"
    assert run_preprocess(str(tmp_path / "spec.yaml"), cache=folder, tier="memory")["ready"] == 2
    assert len(list(folder.glob("*/images.npy"))) == 2
    assert run_cache_status(cache=folder)["entries"] == 2
    assert run_cache_clear(cache=folder, data=str(tmp_path / "spec.yaml"))["removed"] == 0
    assert run_cache_clear(cache=folder)["removed"] == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 of 2 cases ready" in captured.err
    with pytest.raises(UsageError, match="tier"):
        run_preprocess(str(tmp_path / "spec.yaml"), cache=folder, tier="device")
