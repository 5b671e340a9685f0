"""Block-sparse execution of nnU-Net's ResEnc-L against whole maps times the mask, and against the dense network.

    python benchmarks/block_sparse.py [--quick] [--threads N] [--size 96] [--batch 1] [--out FILE]
    python benchmarks/block_sparse.py --device cuda --size 96 128 160 --batch 2 8

Every configuration runs in a process of its own; the processes of a group are driven in turns through pipes, one pass
each, so that whatever else the machine does falls on all of them alike. Medians over the turns are reported. *Encoder*
is forward and backward through the encoder alone, with a gradient on every level; *step* is forward and backward of the
whole autoencoder, without the optimizer, which is the same for all (its time is given). Kept activations are the bytes
that autograd holds between the passes, parameters excluded, each storage once. The share of gathering is the time in
``index_select`` and ``index_fill_``, from torch's profiler. On a CPU every process starts with a tuned allocator
(``MALLOC_*``, printed), because with glibc's default whole maps cost page faults and the comparison would flatter us.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bm_mae_setups import TUNED
from turns import ROOT, Worker


@dataclass(frozen=True)
class Setup:
    """One configuration.

    Attributes:
        part: ``encoder`` or ``step``.
        kind: ``dense`` (resenc_mae), ``masked`` or ``block`` (spark3d).
        ratio: share of hidden cubes.
        decode: share of them that is asked for.
        compiled: through ``torch.compile``.
        precision: ``fp32`` or ``bf16`` (autocast).
        size: voxels per axis.
        batch: samples.
        device: ``cpu`` or ``cuda``.
        threads: of torch on the CPU.
        scale: of the method; ``tiny`` to try this script out.
    """

    part: str
    kind: str
    ratio: float
    size: int
    batch: int
    device: str
    threads: int
    scale: str
    decode: float = 1.0
    compiled: bool = False
    precision: str = "fp32"

    @property
    def title(self) -> str:
        """What the table says."""
        words = {
            "dense": "dense MAE" if self.part == "step" else "dense",
            "masked": "masked-dense",
            "block": "**block**",
        }
        decode = f", decode {self.decode:g}" if self.decode < 1 else ""
        return words[self.kind] + (", compiled" if self.compiled else "") + decode

    @property
    def group(self) -> tuple[Any, ...]:
        """What it shares with those it is compared with."""
        return self.device, self.size, self.batch, self.part, self.precision, self.ratio


# --- one process --------------------------------------------------------------------------------------------------


def work(setup: Setup) -> None:
    """Serve passes: every line on standard input is one, every answer one line of JSON."""
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(setup.threads)
    torch.manual_seed(0)
    method, run = prepare(setup)
    answer = sys.stdout
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for line in sys.stdin:
        if line.strip() == "facts":
            print(json.dumps(facts(setup, method, run)), file=answer, flush=True)
            continue
        start = now(setup)
        run()
        print(json.dumps({"wall": now(setup) - start}), file=answer, flush=True)


def prepare(setup: Setup) -> tuple[Any, Callable[[], None]]:
    """The method, and one forward and backward pass as a function."""
    import torch

    from medmae.find import find

    options: dict[str, Any] = {"mask_ratio": setup.ratio}
    if setup.kind != "dense":
        options |= {"execution": setup.kind, "decode": setup.decode}
    size = (setup.size,) * 3
    name = "resenc_mae" if setup.kind == "dense" else "spark3d"
    method: Any = find(name).build(scale=setup.scale, sequences=("t1n",), size=size, **options)
    method.to(setup.device)  # each in the memory layout it comes with
    draw = torch.Generator().manual_seed(1)
    batch = {
        "t1n": torch.randn(setup.batch, 1, *size, generator=draw).to(setup.device),
        "key": torch.arange(setup.batch, device=setup.device),
    }
    tokens = method.tokenizer(batch)
    plan = method.plan(batch)

    def encoder() -> Any:
        found = method.encoder(tokens.at(plan.visible), tokens.layout)
        maps = [x for x, _ in found.features] if setup.kind != "dense" else found.levels
        return torch.stack([x.sum(dtype=torch.float32) for x in maps]).sum()

    def step() -> Any:
        return method(batch, plan)["reconstruction"]

    chosen: Any = encoder if setup.part == "encoder" else step
    forward: Any = torch.compile(chosen) if setup.compiled else chosen

    def run() -> None:
        method.zero_grad(set_to_none=True)
        with torch.autocast(setup.device, torch.bfloat16, enabled=setup.precision == "bf16"):
            loss = forward()
        loss.backward()

    return method, run


def now(setup: Setup) -> float:
    """Seconds, after whatever the device still does."""
    if setup.device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def facts(setup: Setup, method: Any, run: Callable[[], None]) -> dict[str, float]:
    """What one pass keeps for its backward pass, what it spends on gathering, and what an optimizer step takes."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Any) -> Any:
        store = x.untyped_storage()
        if store.data_ptr() not in own:
            kept[store.data_ptr()] = store.nbytes()
        return x

    found = {"kept": float("nan"), "gathering": float("nan"), "optimizer": float("nan"), "peak": float("nan")}
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        found["peak"] = torch.cuda.max_memory_allocated() - before
    if not setup.compiled:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            run()
        found["kept"] = float(sum(kept.values()))
    if setup.kind == "block":
        activity = torch.profiler.ProfilerActivity
        activities = [activity.CPU, activity.CUDA] if setup.device == "cuda" else [activity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            run()
        spent = "self_device_time_total" if setup.device == "cuda" else "self_cpu_time_total"
        events = {event.key: float(getattr(event, spent)) for event in profile.key_averages()}
        gathering = events.get("aten::index_select", 0.0) + events.get("aten::index_fill_", 0.0)
        found["gathering"] = gathering / sum(events.values())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4, fused=True)
    for _ in range(2):
        start = now(setup)
        optimizer.step()
        found["optimizer"] = now(setup) - start
    return found


# --- all of them --------------------------------------------------------------------------------------------------


def worker_of(setup: Setup) -> Worker:
    """A process that runs one configuration, one pass at a time."""
    command = [str(Path(__file__).resolve()), "--worker", json.dumps(asdict(setup))]
    return Worker(setup, command, threads=setup.threads, variables=TUNED)


@dataclass(frozen=True)
class Measured:
    """Seconds of every turn, and the facts."""

    seconds: list[float]
    facts: dict[str, float]

    @property
    def middle(self) -> float:
        """Their median."""
        return statistics.median(self.seconds)


def measure(setups: list[Setup], *, turns: int, warm: int) -> dict[Setup, Measured]:
    """Run the configurations of every group in turns."""
    found: dict[Setup, Measured] = {}
    groups = [list(group) for _, group in itertools.groupby(setups, key=lambda s: s.group)]
    for number, group in enumerate(groups, 1):
        workers = [worker_of(setup) for setup in group]
        seconds: dict[Setup, list[float]] = {setup: [] for setup in group}
        for turn in range(warm + turns):
            for worker in workers:
                wall = worker.ask("pass")["wall"]
                place = f"group {number}/{len(groups)} turn {turn + 1}/{warm + turns}"
                print(f"{place} {worker.setup.title}: {wall:.3f} s", file=sys.stderr, flush=True)
                if turn >= warm:
                    seconds[worker.setup].append(wall)
        for worker in workers:
            found[worker.setup] = Measured(seconds[worker.setup], worker.ask("facts"))
            worker.close()
    return found


def setups_for(options: argparse.Namespace) -> list[Setup]:
    """What is compared, group by group."""
    found = []
    for size, batch in itertools.product(options.size, options.batch):
        for part, precision, ratio in itertools.product(options.part, options.precision, options.ratio):
            if part == "step" and ratio != options.ratio[0]:
                continue
            plain: dict[str, Any] = {
                "part": part, "ratio": ratio, "size": size, "batch": batch, "device": options.device,
                "threads": options.threads, "scale": options.scale, "precision": precision,
            }  # fmt: skip
            kinds: list[dict[str, Any]] = [{"kind": "dense"}, {"kind": "masked"}]
            if options.compile and (part == "encoder" or options.device == "cuda"):
                kinds.append({"kind": "masked", "compiled": True})
                if options.device == "cuda":
                    kinds.append({"kind": "dense", "compiled": True})
            kinds.append({"kind": "block"})
            if part == "step":
                kinds += [{"kind": "block", "decode": share} for share in options.decode]
            found += [Setup(**plain, **kind) for kind in kinds]
    return found


# --- the report ---------------------------------------------------------------------------------------------------

GOALS = {  # part, ratio: what the block form (whole decoder) is to reach against whom
    ("encoder", 0.75): {"masked-dense": 3.6, "masked-dense, compiled": 2.8},
    ("encoder", 0.6): {"masked-dense": 2.5},
    ("step", 0.75): {"masked-dense": 2.0, "dense MAE": 1.7},
}
KEPT = {0.75: 0.30, 0.6: 0.45}
GATHERING = 0.12
PARTIAL = 2.5  # decode 0.33 against dense MAE


def tables(found: dict[Setup, Measured]) -> str:
    """Markdown: one table of all configurations, one of the goals."""
    columns = "part | cubes hidden | precision | size, batch | execution | s (min to max) | block is faster | kept, GB"
    lines = [f"| {columns} | gathering |", "|---|---:|---|---|---|---:|---:|---:|---:|"]
    for setup, mine in found.items():
        block = next(m for s, m in found.items() if s.group == setup.group and s.kind == "block" and s.decode == 1)
        low, high = min(mine.seconds), max(mine.seconds)
        kept, share = mine.facts["kept"] / 1e9, mine.facts["gathering"]
        if setup.device == "cuda":
            kept = mine.facts["peak"] / 1e9
        lines.append(
            f"| {setup.part} | {setup.ratio:.0%} | {setup.precision} | {setup.size}^3, {setup.batch} | {setup.title} | "
            f"{mine.middle:.3f} ({low:.3f} to {high:.3f}) | {mine.middle / block.middle:.2f} | "
            f"{'' if kept != kept else f'{kept:.2f}'} | {'' if share != share else f'{share:.1%}'} |"
        )
    lines += ["", "| goal | wanted | measured |  |", "|---|---:|---:|---|"]
    for setup, mine in found.items():
        if setup.kind != "block" or setup.device != "cpu":
            continue
        others = {s.title: m for s, m in found.items() if s.group == setup.group}
        where = f"{setup.part}, {setup.ratio:.0%} hidden, {setup.precision}, {setup.size}^3"
        if setup.decode < 1:
            ratio = others["dense MAE"].middle / mine.middle
            lines.append(goal(f"{where}, decode {setup.decode:g}: times faster than dense MAE", PARTIAL, ratio))
            continue
        for title, wanted in GOALS.get((setup.part, setup.ratio), {}).items():
            if title in others:
                ratio = others[title].middle / mine.middle
                lines.append(goal(f"{where}: times faster than {title}", wanted, ratio))
        if setup.part == "encoder" and setup.ratio in KEPT:
            share = mine.facts["kept"] / others["dense"].facts["kept"]
            lines.append(goal(f"{where}: kept activations against dense", KEPT[setup.ratio], share, most=True))
            lines.append(goal(f"{where}: share of gathering", GATHERING, mine.facts["gathering"], most=True))
    return "\n".join(lines)


def goal(what: str, wanted: float, measured: float, *, most: bool = False) -> str:
    """One row of the table of goals."""
    met = measured <= wanted if most else measured >= wanted
    bound, verdict = "at most" if most else "at least", "met" if met else "**not met**"
    return f"| {what} | {bound} {wanted:g} | {measured:.2f} | {verdict} |"


def machine(options: argparse.Namespace) -> str:
    """Where and when this was measured."""
    import torch

    if options.device == "cuda":
        return f"{datetime.date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}."
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    tuned = " ".join(f"{key}={value}" for key, value in TUNED.items())
    return (
        f"{datetime.date.today()}, {names[0] if names else platform.machine()}, {options.threads} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}, load average at the end {os.getloadavg()[0]:.1f}. "
        f"Allocator of every process: glibc with {tuned}."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="two turns in place of five")
    parser.add_argument("--turns", type=int, help="measured passes per configuration")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, nargs="+", default=[96])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.75, 0.6])
    parser.add_argument("--decode", type=float, nargs="+", default=[0.33])
    parser.add_argument("--precision", choices=("fp32", "bf16"), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--part", choices=("encoder", "step"), nargs="+", default=["encoder", "step"])
    parser.add_argument("--scale", default="l", help="of the methods; 'tiny' tries this script out")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the compiled form out")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    options = parser.parse_args()
    if options.worker:
        work(Setup(**json.loads(options.worker)))
        return
    turns = options.turns or (2 if options.quick else 5)
    begin = time.perf_counter()
    found = measure(setups_for(options), turns=turns, warm=1 if options.quick else 2)
    minutes = (time.perf_counter() - begin) / 60
    spent = max(m.facts["optimizer"] for m in found.values())
    text = f"{machine(options)}\nMedian of {turns} passes after warming up; {minutes:.1f} minutes in all. "
    text += f"AdamW (fused) would add {spent:.3f} s to each step.\n\n{tables(found)}\n"
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
