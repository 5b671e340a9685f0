"""How fast samples are made, and how many bytes they lie in: one command, one Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/loader.py --workers 1 2

makes its own cases of BraTS size (240x240x155, four sequences, int16, a skull-stripped head with noise), prepares
them, and times one sample of four 128^3 crops on one core: from medmae's tiers, through a MONAI chain, from MONAI's
PersistentDataset, from .nii.gz by nibabel and from .npy by hand. Rounds of all contenders are interleaved and medians
are taken, so that a busy machine disturbs all of them alike; the process keeps to one core. ``--workers 1 2`` adds
what arrives over processes (on all cores), ``--device cuda`` the device tier and the batch finishing there.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmae.core.random import mix
from medmae.data.augment import Augmentation, draw_augmentation, finish_batch
from medmae.data.cache import Entry, ensure
from medmae.data.crops import CropReader, make_memory_twins
from medmae.data.loader import Crops, VolumeSource
from medmae.data.preprocess import PreprocessSettings
from medmae.data.stream import Draw

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
SHAPE = (240, 240, 155)
Maker = Callable[[], Callable[[int], Any]]


@dataclass(frozen=True)
class BenchmarkCase:
    key: str
    images: dict[str, Path]
    label: None = None
    mask: None = None


def make_case(folder: Path, number: int) -> BenchmarkCase:
    """A head: three smooth tissues per sequence, correlated anatomy, noise of 4 %, exact zero around it."""
    import nibabel
    from scipy import ndimage

    rng = np.random.default_rng(number)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij", sparse=True)
    brain = (grid[0] / 0.56) ** 2 + (grid[1] / 0.72) ** 2 + (grid[2] / 0.86) ** 2 < 1
    coarse = rng.normal(size=[n // 5 + 2 for n in SHAPE])
    anatomy = ndimage.zoom(coarse, 5.2, order=1)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    tissue = np.digitize(ndimage.gaussian_filter(anatomy, 1.5), [-0.15, 0.15])
    files = {}
    for name in SEQUENCES:
        levels = rng.uniform(250, 900, 3)
        values = ndimage.gaussian_filter(levels[tissue], 0.7)
        values = np.where(brain, values * (1 + 0.04 * rng.normal(size=SHAPE)), 0).clip(0).astype(np.int16)
        files[name] = folder / f"case{number}" / f"{name}.nii.gz"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), files[name])
    return BenchmarkCase(f"case{number}", files)


@dataclass(frozen=True)
class BenchmarkCohort:
    cases: tuple[BenchmarkCase, ...]
    sequences: tuple[str, ...] = SEQUENCES
    spec: PreprocessSettings = field(default_factory=PreprocessSettings)

    def split(self) -> dict[str, tuple[BenchmarkCase, ...]]:
        return {"train": self.cases, "val": (), "test": ()}


def size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def evict(paths: Iterable[Path]) -> None:
    """Ask the system to forget the pages of these files."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def interleaved(contenders: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each contender, of processor time and on the wall; one warm-up round.

    Processor time is what a sample costs a core: it does not count the time that others had the core.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            core, wall = time.process_time(), time.perf_counter()
            work(number)
            if number:
                times[name].append((1e3 * (time.process_time() - core), 1e3 * (time.perf_counter() - wall)))
    return {
        name: (statistics.median(t[0] for t in found), statistics.median(t[1] for t in found))
        for name, found in times.items()
    }


def monai_chain(cases: list[BenchmarkCase], size: int) -> tuple[Any, Any, list[dict[str, str]]]:
    """The usual chain: what is deterministic, what is random, and the list of files."""
    from monai import transforms as mt

    fixed = [
        mt.LoadImaged(keys=SEQUENCES),
        mt.EnsureChannelFirstd(keys=SEQUENCES),
        mt.ConcatItemsd(keys=SEQUENCES, name="image"),
        mt.DeleteItemsd(keys=SEQUENCES),
        mt.NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
    ]
    random = [
        mt.RandSpatialCropd(keys="image", roi_size=(size,) * 3, random_size=False),
        *[mt.RandFlipd(keys="image", prob=0.5, spatial_axis=axis) for axis in range(3)],
        mt.RandScaleIntensityd(keys="image", factors=0.1, prob=1.0),
        mt.RandShiftIntensityd(keys="image", offsets=0.1, prob=1.0),
    ]
    items = [{name: str(path) for name, path in case.images.items()} for case in cases]
    return mt.Compose(fixed), mt.Compose(random), items


def by_nibabel(case: BenchmarkCase, start: tuple[int, ...], size: int) -> np.ndarray:
    import nibabel

    cut = tuple(slice(s, s + size) for s in start)
    return np.stack([np.asanyarray(nibabel.load(path).dataobj)[cut] for path in case.images.values()])


def crops_of(entries: tuple[Entry, ...], tier: str, size: int) -> Crops:
    return Crops(
        entries,
        size=(size,) * 3,
        sequences=SEQUENCES,
        tier=tier,
        labels=False,
        artifacts=None,
        foreground_share=1.0,
        first_validation=len(entries),
    )


def processor_seconds() -> float:
    """Of this process and its workers, while they live."""
    import psutil

    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


def throughput(source: VolumeSource, *, batch: int, seconds: float, device: str | None = None) -> tuple[float, float]:
    """Samples a second that arrive in the training process, and what one costs all cores together in milliseconds.

    With a device, batches are finished there too. Starting the workers and filling their queues is not counted.
    """
    stream = source.train(start=0, batch=batch, rank=0, world=1, seed=0)

    def take() -> None:
        ready = next(stream)
        if device is not None:
            source.finish(ready, device=device, training=True)

    for _ in range(24):
        take()
    begin, core, count = time.perf_counter(), processor_seconds(), 0
    while time.perf_counter() - begin < seconds:
        take()
        count += batch
    if device is not None and device.startswith("cuda"):
        torch.cuda.synchronize()
    rate = count / (time.perf_counter() - begin)
    core = 1e3 * (processor_seconds() - core) / count
    stream.close()  # type: ignore[attr-defined]
    return rate, core


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def measure_core(cases: list[BenchmarkCase], whole: tuple[Entry, ...], tight: tuple[Entry, ...], arguments: Any) -> str:
    """One sample on one core, warm and cold, and the bytes it lies in."""
    from monai.data import PersistentDataset

    size, rounds = arguments.size, arguments.rounds
    rng = np.random.default_rng(0)
    starts = [tuple(int(rng.integers(0, n - size + 1)) for n in SHAPE) for _ in range(rounds + 1)]
    fixed, random, items = monai_chain(cases, size)
    folder = whole[0].folder.parent.parent
    persistent = PersistentDataset(items, fixed, cache_dir=folder / "persistent")

    def draws(i: int) -> list[Draw]:
        return [Draw(i % len(cases), mix(0, i), mix(0, i))]

    def sample(tier: str) -> Maker:
        def make() -> Callable[[int], Any]:
            crops = crops_of(tight, tier, size)
            return lambda i: crops.__getitems__(draws(i))

        return make

    def crop(tier: str) -> Maker:
        def make() -> Callable[[int], Any]:
            reader, out = CropReader(tier=tier), np.empty((4, size, size, size), np.int16)
            return lambda i: reader.images(whole[i % len(whole)], SEQUENCES, starts[i], out)

        return make

    def by_hand() -> Callable[[int], Any]:
        maps = [np.load(entry.folder / "images.npy", mmap_mode="r") for entry in whole]

        def cut(i: int) -> np.ndarray:
            window = tuple(slice(s, s + size) for s in starts[i])
            return np.ascontiguousarray(maps[i % len(maps)][(slice(None), *window)])

        return cut

    for number in range(len(cases)):
        persistent[number]
    packed = [path for case in cases for path in case.images.values()]
    blosc = [entry.folder / "images.b2nd" for entry in whole]
    npy = [entry.folder / "images.npy" for entry in whole]
    pt = list((folder / "persistent").glob("*.pt"))
    closed = [entry.folder / name for entry in tight for name in ("images.b2nd", "foreground.b2nd")]
    opened = [entry.folder / name for entry in tight for name in ("images.npy", "foreground.npy")]
    contenders: dict[str, tuple[Maker, list[Path]]] = {
        "sample: medmae, disk": (sample("disk"), closed),
        "sample: medmae, memory": (sample("memory"), opened),
        "sample: MONAI chain": (lambda: lambda i: random(fixed(items[i % len(items)])), packed),
        "sample: MONAI PersistentDataset": (lambda: lambda i: random(persistent[i % len(items)]), pt),
        "crop: medmae, disk": (crop("disk"), blosc),
        "crop: medmae, memory": (crop("memory"), npy),
        "crop: nibabel .nii.gz": (lambda: lambda i: by_nibabel(cases[i % len(cases)], starts[i], size), packed),
        "crop: .npy by hand": (by_hand, npy),
    }

    def chilled(make: Maker, paths: list[Path]) -> float:
        gc.collect()  # a file that is still mapped cannot be forgotten
        evict(paths)
        begin = time.perf_counter()
        make()(0)
        return 1e3 * (time.perf_counter() - begin)

    cold = {name: statistics.median(chilled(*entry) for _ in range(5)) for name, entry in contenders.items()}
    warm = interleaved({name: make() for name, (make, _) in contenders.items()}, rounds)
    gzip, count, rows = size_of(packed), len(packed), []
    for name, (_, paths) in contenders.items():
        base = warm["sample: MONAI chain" if name.startswith("sample") else "crop: nibabel .nii.gz"]
        each, share = size_of(paths) / count / 1e6, size_of(paths) / gzip
        speed = base[0] / warm[name][0]
        core, wall = warm[name]
        row = (f"{core:.2f}", f"{wall:.2f}", f"{cold[name]:.1f}", f"{speed:.1f}", f"{each:.2f}", f"{share:.2f}")
        rows.append((name, *row))
    reader = CropReader(tier="disk")
    exact = all(
        np.array_equal(by_nibabel(case, start, size), _read(reader, entry, start, size))
        for case, entry, start in zip(cases, whole, starts, strict=False)
    )
    head = (
        f"one core, 4 x {size}^3",
        "core ms",
        "wall ms",
        "wall ms, cold",
        "times faster",
        "MB a volume",
        "bytes / .nii.gz",
    )
    text = table("One sample on one core", head, rows)
    told = (
        f'Crops bit-exact against nibabel: **{exact}**. Core ms are processor time; "times faster" compares them with'
    )
    return f"{text}\n{told}\nthe MONAI chain (samples) or nibabel (crops)."


def _read(reader: CropReader, entry: Entry, start: tuple[int, ...], size: int) -> np.ndarray:
    out = np.empty((4, size, size, size), np.int16)
    reader.images(entry, SEQUENCES, start, out)  # type: ignore[arg-type]
    return out


def measure_finish(tight: tuple[Entry, ...], arguments: Any) -> str:
    """Casting, normalizing, flipping and varying a delivered batch on the device."""
    device, batch = arguments.device, arguments.batch
    crops = crops_of(tight, "memory", arguments.size)
    ready = crops.__getitems__([Draw(i % len(tight), mix(0, i), mix(0, i)) for i in range(batch)])
    ready = {name: value.to(device) if name in ("volumes", "foreground") else value for name, value in ready.items()}

    def work(settings: Augmentation | None) -> Callable[[int], None]:
        def run(number: int) -> None:
            draws = settings and draw_augmentation(ready["key"] + number, settings, sequences=4)
            finish_batch(ready, sequences=SEQUENCES, device=device, draws=draws or None)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        return run

    contenders = {
        "cast, normalize": work(None),
        "and flips, scale, shift": work(Augmentation()),
        "and contrast": work(Augmentation(gamma=1.5, gamma_probability=1.0)),
    }
    found = interleaved(contenders, max(5, arguments.rounds))
    rows = [(name, f"{core / batch:.2f}", f"{wall / batch:.2f}") for name, (core, wall) in found.items()]
    return table(f"Finishing a batch of {batch} on {device}", ("step", "core ms a sample", "wall ms a sample"), rows)


def measure_workers(cohort: BenchmarkCohort, cache: Path, arguments: Any) -> str:
    """Samples a second that arrive in the training process."""
    rows = []
    for tier in ("disk", "memory"):
        for workers in arguments.workers:
            source = VolumeSource(
                cohort, size=(arguments.size,) * 3, cache=cache, tier=tier, workers=workers, quiet=True
            )
            found = [throughput(source, batch=2, seconds=arguments.seconds) for _ in range(3)]
            rate, core = (statistics.median(values) for values in zip(*found, strict=True))
            rows.append((tier, str(workers), f"{rate:.0f}", f"{core:.1f}", f"{1e3 / core:.0f}"))
    if arguments.device != "cpu":
        source = VolumeSource(cohort, size=(arguments.size,) * 3, cache=cache, tier="device", quiet=True)
        rate, core = throughput(source, batch=arguments.batch, seconds=arguments.seconds, device=arguments.device)
        rows.append(("device, finished", "0", f"{rate:.0f}", f"{core:.1f}", f"{1e3 / core:.0f}"))
    head = ("tier", "workers", "samples/s arriving", "core ms a sample, all processes", "samples/s and core")
    return table("Through the DataLoader, over processes", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=None, help="keep the generated cases here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        cases = [make_case(folder / "data", number) for number in range(arguments.cases)]
        begin = time.perf_counter()
        tight = _ready(cases, PreprocessSettings(), folder / "cache")
        prepared = (time.perf_counter() - begin) / len(cases)
        whole = _ready(cases, PreprocessSettings(crop="none"), folder / "cache")
        for entry in (*tight, *whole):
            make_memory_twins(entry)
        print(f"## Loader benchmark, {datetime.date.today().isoformat()}\n")
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        everywhere = os.sched_getaffinity(0)
        gpu = f", {torch.cuda.get_device_name()}" if arguments.device.startswith("cuda") else ""
        print(
            f"{model.group(1) if model else 'CPU'}, {len(everywhere)} cores{gpu}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, load average {os.getloadavg()[0]:.1f}."
        )
        print(
            f"Command: `python benchmarks/loader.py {' '.join(sys.argv[1:])}`. {arguments.cases} synthetic cases of ",
            end="",
        )
        print(
            f"240x240x155 x 4; medians of {arguments.rounds} interleaved rounds. Preparing a case: {prepared:.1f} s.\n"
        )
        os.sched_setaffinity(0, {max(everywhere)})
        print(measure_core(cases, whole, tight, arguments), flush=True)
        print()
        print(measure_finish(tight, arguments), flush=True)
        os.sched_setaffinity(0, everywhere)
        if arguments.workers:
            print(measure_workers(BenchmarkCohort(tuple(cases)), folder / "cache", arguments))


def _ready(cases: list[BenchmarkCase], settings: PreprocessSettings, cache: Path) -> tuple[Entry, ...]:
    entries = ensure(cases, settings, folder=cache, quiet=True)
    return tuple(entry for entry in entries if entry is not None)


if __name__ == "__main__":
    main()
