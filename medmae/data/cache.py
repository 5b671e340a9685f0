"""Prepared cases on disk, compressed in small blocks so that a crop costs a crop and not a volume.

An entry is a folder named by a hash of what went in: the content of every file of the case, the preprocessing
settings, the label remap and the version of this format. A changed file or setting has another name, so nothing
stale can be served; an entry is written under a temporary name and renamed when complete, so nothing half-written
can be either, and an interrupted build goes on where it stopped. ``manifest.json`` gathers what the loader needs of
all entries: shapes, slopes and the statistics of every volume, so that no statistic is ever computed while
training.

Layout of an entry: ``images.b2nd`` (int16 [sequence x y z]), ``foreground.b2nd`` (uint8), ``label.b2nd`` where
there is one, ``points.npy`` (foreground voxels to center crops on), ``entry.json``. The ``memory`` tier adds
uncompressed ``.npy`` twins that are mapped into memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmae.core.errors import DataError
from medmae.data.fingerprint import Fingerprints, case_files, case_hash, entry_key, read_json, write_json
from medmae.data.preprocess import Prepared, PreprocessSettings, SkippedCaseError, Statistics, label_remap, prepare
from medmae.data.workers import Outcome, each, progress
from medmae.data.writing import writing

VERSION = 2
TIERS = ("disk", "memory", "device")
CHUNK, BLOCK = 64, 32


def default_folder() -> Path:
    """Where caches go unless told: ``MEDMAE_CACHE``, else ``medmae`` in the user's cache; cohorts can share it."""
    told = os.environ.get("MEDMAE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(told) if told else Path(base) / "medmae").expanduser()


@dataclass(frozen=True)
class Entry:
    """One cached case, as the manifest knows it."""

    key: str
    folder: Path
    case: str
    sequences: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    spacing: tuple[float, float, float]
    slope: Mapping[str, float]
    inter: Mapping[str, float]
    statistics: Mapping[str, Statistics]
    label: str | None
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    odd: Mapping[str, str] = dataclasses.field(default_factory=dict)
    voxels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_values: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the folder, as JSON values."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], folder: Path) -> Entry:
        """The inverse of :meth:`to_json`."""
        known = dict(values)
        known["statistics"] = {name: Statistics(**item) for name, item in values["statistics"].items()}
        for name in ("sequences", "shape", "spacing", "label_values"):
            known[name] = tuple(values.get(name, ()))
        known["affine"] = tuple(tuple(row) for row in values["affine"])
        return cls(folder=folder, **known)

    def intact(self) -> bool:
        """Whether every file is there with the size it was written with."""
        try:
            return all((self.folder / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False


# ---------------------------------------------------------------- building


def write_entry(folder: Path, key: str, prepared: Prepared, files: Mapping[str, str]) -> Entry:
    """Store one prepared case under ``folder/key``, completely or not at all."""
    import blosc2

    blosc2.set_nthreads(1)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=folder))
    try:
        names = tuple(prepared.images)
        _compress(temporary / "images.b2nd", np.stack([prepared.images[name].stored for name in names]))
        _compress(temporary / "foreground.b2nd", prepared.foreground)
        if prepared.label is not None:
            _compress(temporary / "label.b2nd", prepared.label)
        np.save(temporary / "points.npy", prepared.points.astype(np.int32))
        entry = Entry(
            key=key,
            folder=folder / key,
            case=case_hash(files),
            sequences=names,
            shape=prepared.shape,
            affine=tuple(tuple(float(v) for v in row) for row in prepared.affine),
            spacing=prepared.spacing,
            slope={name: prepared.images[name].slope for name in names},
            inter={name: prepared.images[name].inter for name in names},
            statistics=dict(prepared.statistics),
            label=None if prepared.label is None else str(prepared.label.dtype),
            files=dict(files),
            sizes={path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
            odd=dict(prepared.odd),
            voxels=dict(prepared.voxels),
            label_values=prepared.label_values,
        )
        write_json(temporary / "entry.json", entry.to_json())
        _publish(temporary, folder / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return entry


def _publish(temporary: Path, final: Path) -> None:
    for path in temporary.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    os.chmod(temporary, 0o755)
    for _ in range(8):
        try:
            os.rename(temporary, final)
            return
        except OSError:
            # Another process finished the same entry, or a damaged one lies there: in both cases ours is complete.
            aside = Path(tempfile.mkdtemp(prefix=".old-", dir=final.parent))
            with contextlib.suppress(FileNotFoundError):
                os.rename(final, aside / "entry")
            shutil.rmtree(aside, ignore_errors=True)
    raise DataError(f"{final}: cannot be written; is the folder writable and on one file system?")


def _compress(path: Path, array: np.ndarray) -> None:
    import blosc2

    lead = array.ndim - 3
    shape = array.shape[lead:]
    chunks = (1,) * lead + tuple(min(CHUNK, n) for n in shape)
    blocks = (1,) * lead + tuple(min(BLOCK, n) for n in shape)
    # LZ4HC packs about as well as gzip and unpacks an order of magnitude faster. Bytes are shuffled, not bits:
    # MRI codes use about 11 bits, and so the high bytes compress best together.
    blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
        urlpath=str(path),
        mode="w",
    )


def _sweep(folder: Path) -> None:
    """Remove what a killed build left; only under the lock, because whoever builds holds it."""
    for path in folder.glob(".*"):
        if _is_leftover(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_leftover(path: Path) -> bool:
    """Whether this is a temporary folder of :func:`write_entry`, as it names them."""
    named = re.fullmatch(r"\.([0-9a-f]{8}|old)-\w+", path.name) is not None
    return named and path.is_dir() and not path.is_symlink()


def _build_one(
    case: Any, settings: PreprocessSettings, remap: dict[int, int], folder: Path, key: str, files: dict[str, str]
) -> tuple[str, str]:
    """In a worker: prepare and write one entry; returns ("ok" | "skip" | "bad", message)."""
    try:
        prepared = prepare(case, settings, remap=remap)
        write_entry(folder, key, prepared, files)
    except SkippedCaseError as error:
        return "skip", str(error)
    except (DataError, OSError, ValueError, RuntimeError) as error:
        return "bad", f"{type(error).__name__}: {error}" if not isinstance(error, DataError) else str(error)
    return "ok", ""


def _state(outcome: Outcome) -> tuple[str, str]:
    """What became of one case; faults of the program itself are raised."""
    if outcome.died:
        return "bad", "the process reading it was killed (a damaged file, or memory)"
    if outcome.error is not None:
        raise outcome.error
    state, message = outcome.value
    return state, message


def _preload(settings: PreprocessSettings) -> tuple[str, ...]:
    return ("medmae.data.preprocess", *(("monai.transforms",) if settings.spacing is not None else ()))


def ensure(
    cases: Sequence[Any],
    spec: Any,
    *,
    folder: str | Path,
    workers: int = 1,
    quiet: bool = False,
    on_problem: Callable[[str], None] | None = None,
) -> tuple[Entry | None, ...]:
    """Entries for ``cases`` in their order, building what is missing; None for a case that the policy leaves out.

    Only one process builds at a time; others wait and then find the work done. Every case is tried before a
    DataError names all faults; what was built until then stays. ``on_problem`` is told of each case left out.
    """
    folder = Path(folder).expanduser()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    settings, remap = PreprocessSettings.of(spec), label_remap(spec)

    faults: list[str] = []
    files: list[dict[str, str]] = []
    prints = Fingerprints(folder)
    with progress("reading", len(cases), quiet=quiet) as advance:
        for case in cases:
            try:
                files.append(case_files(case, prints))
            except DataError as error:
                faults.append(f"{case.key}: {error}")
                files.append({})
            advance()
    keys = [entry_key(item, settings.describe(), remap, version=VERSION) if item else "" for item in files]
    known = load_entries(folder, keys)
    if not faults and len(known) == len(set(keys)):  # a finished cache is served from a read-only disk, too
        with contextlib.suppress(OSError), locked(folder):
            prints.save()
        return tuple(known[key] for key in keys)
    with writing(folder), locked(folder):
        prints.save()
        _sweep(folder)
        known = load_entries(folder, keys)
        todo = {k: (c, f) for k, c, f in zip(keys, cases, files, strict=True) if k and k not in known}
        jobs = [(case, settings, remap, folder, key, item) for key, (case, item) in todo.items()]
        skipped = set()
        in_processes = workers if workers > 1 and len(jobs) > 1 else 0
        with progress("preparing", len(jobs), quiet=quiet) as advance:
            for job, outcome in each(_build_one, jobs, workers=in_processes, preload=_preload(settings)):
                advance()
                state, message = _state(outcome)
                if state == "bad":
                    faults.append(f"{job[0].key}: {message}")
                elif state == "skip":
                    skipped.add(job[4])
                    if on_problem is not None:
                        on_problem(message)
        _sweep(folder)  # a worker that was killed leaves its own; all have ended by now
        fresh = load_entries(folder, [key for key in todo if key not in skipped])
        _update_manifest(folder, fresh.values())
    if faults:
        raise DataError(f"{len(faults)} of {len(cases)} cases cannot be prepared:\n" + "\n".join(faults))
    known |= fresh
    return tuple(known.get(key) for key in keys)


# ---------------------------------------------------------------- manifest


def load_entries(folder: Path, keys: Iterable[str]) -> dict[str, Entry]:
    """The intact entries among ``keys``, from the manifest where it knows them, else from the entries themselves."""
    manifest = read_manifest(folder)["entries"]
    found = {}
    for key in dict.fromkeys(keys):
        values = manifest.get(key) or read_json(folder / key / "entry.json", None) if key else None
        if values is not None:
            entry = Entry.from_json(values, folder / key)
            if entry.intact():
                found[key] = entry
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json``; an empty one where there is none or it is of another version."""
    manifest = read_json(folder / "manifest.json", {})
    if manifest.get("version") != VERSION:
        return {"version": VERSION, "entries": {}}
    return dict(manifest)


def _update_manifest(folder: Path, entries: Iterable[Entry]) -> None:
    entries = list(entries)
    if entries:
        manifest = read_manifest(folder)
        manifest["entries"].update({entry.key: entry.to_json() for entry in entries})
        write_json(folder / "manifest.json", manifest)


def cached_keys(cases: Sequence[Any], spec: Any, *, folder: str | Path) -> list[str]:
    """Names of the entries of these cases with these settings, whether they are there or not."""
    prints = Fingerprints(Path(folder).expanduser())
    settings, remap = PreprocessSettings.of(spec).describe(), label_remap(spec)
    return [entry_key(case_files(case, prints), settings, remap, version=VERSION) for case in cases]


def status(folder: str | Path) -> dict[str, Any]:
    """What a cache holds: entries, damaged ones, bytes, sequences."""
    folder = Path(folder).expanduser()
    entries, damaged = _all_entries(folder)
    counts: dict[str, int] = {}
    for entry in entries:
        for name in entry.sequences:
            counts[name] = counts.get(name, 0) + 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return {
        "folder": str(folder),
        "version": VERSION,
        "entries": len(entries),
        "damaged": len(damaged),
        "bytes": size,
        "sequences": dict(sorted(counts.items())),
    }


def clear(folder: str | Path, *, keep: Iterable[str] = ()) -> int:
    """Remove every entry (but those whose key is in ``keep``) and leftovers of interrupted builds; returns how many.

    Touches only folders this cache made: names of 32 hexadecimal digits holding an ``entry.json``, and temporary
    ones.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return 0
    kept = set(keep)
    removed = 0
    with writing(folder), locked(folder):
        for path in sorted(folder.iterdir()):
            ours = _is_key(path.name) and (path / "entry.json").is_file()
            leftover = _is_leftover(path)
            if (ours and path.name not in kept) or leftover:
                shutil.rmtree(path)
                removed += int(ours)
        manifest = read_manifest(folder)
        manifest["entries"] = {key: value for key, value in manifest["entries"].items() if key in kept}
        write_json(folder / "manifest.json", manifest)
    return removed


def _all_entries(folder: Path) -> tuple[list[Entry], list[str]]:
    keys = [path.name for path in sorted(folder.iterdir()) if _is_key(path.name)] if folder.is_dir() else []
    found = load_entries(folder, keys)
    return list(found.values()), [key for key in keys if key not in found]


def _is_key(name: str) -> bool:
    return len(name) == 32 and all(letter in "0123456789abcdef" for letter in name)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in a cache folder; released by the system when the process dies."""
    import fcntl

    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)
