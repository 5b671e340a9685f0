"""One training step of BM-MAE at 4 x 128^3, batch 1: medmae against a straightforward implementation and MONAI's MAE.

    python benchmarks/bm_mae_step.py [--quick] [--threads N] [--out FILE]

Every configuration runs in a process of its own, because the allocator is chosen when a process starts. The processes
are driven in turns through pipes, one step each, so that whatever else the machine does falls on all of them
alike; medians over the turns are reported. A step is: gradients to None, forward, backward, AdamW. Peak memory is the
high-water mark of the process, Python and libraries included. Times are wall-clock; ``--clock cpu`` takes the
processor time of the process, which is of use with ``--threads 1`` on a machine that is doing other work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bm_mae_setups import ATTRIBUTION, GOALS, GROUPS, MEMORY, TUNED, Setup
from turns import ROOT, Worker


def worker_of(setup: Setup, threads: int) -> Worker:
    """A process that runs one configuration, one step at a time."""
    script = str(Path(__file__).resolve().with_name("bm_mae_worker.py"))
    variables = TUNED if setup.allocator == "tuned" else {}
    return Worker(setup, [script, json.dumps(asdict(setup)), str(threads)], threads=threads, variables=variables)


def product_rate(dtype: str, threads: int, clock: str) -> float:
    """Floating-point operations per second of ``torch.mm`` on 2048^3 in this process, best of five."""
    import torch

    torch.set_num_threads(threads)
    left, right = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in range(2))
    now = time.process_time if clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(5):
        start = now()
        torch.mm(left, right)
        best = min(best, now() - start)
    return 2 * 2048**3 / best


def library_rate(threads: int, clock: str) -> float:
    """The same for our float32 linear map, which may go to another library."""
    import torch

    from medmae.nets.kernels import linear

    torch.set_num_threads(threads)
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    now = time.process_time if clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(5):
        start = now()
        linear(left, right)
        best = min(best, now() - start)
    return 2 * 2048**3 / best


def operations() -> float:
    """Floating-point operations of the matrix products in one step of the published preset: what is needed, no more.

    The last decoder block counts for hidden tokens only, as they alone are asked for.
    """

    def block(s: int, d: int, hidden: int) -> float:
        return 2.0 * s * d * (4 * d + 2 * hidden) + 4.0 * s * s * d

    embed, head = 2.0 * 512 * 4096 * 768, 2.0 * 1536 * 384 * 4096
    last = 2.0 * 384 * (2049 * 3 * 384 + 1536 * (384 + 2 * 1536)) + 4.0 * 1536 * 2049 * 384
    rest = 12 * block(513, 768, 1536) + 2.0 * 513 * 768 * 384 + 2 * block(2049, 384, 1536) + last + head
    return 3 * rest + 2 * embed  # the backward pass is two products per product; images need no gradient


def measure(
    groups: tuple[tuple[Setup, ...], ...], *, turns: int, warm: int, threads: int, clock: str
) -> dict[str, Any]:
    """Run every group; medians per setup, and rates of matrix products measured in the same turns."""
    times: dict[str, list[float]] = {}
    faults: dict[str, list[float]] = {}
    peak: dict[str, float] = {}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": [], "library": []}
    for number, group in enumerate(groups, 1):
        workers = [worker_of(setup, threads) for setup in group]
        for turn in range(warm + turns):
            for worker in workers:
                result = worker.ask()
                place = f"group {number}/{len(groups)} turn {turn + 1}/{warm + turns}"
                say(f"{place} {worker.setup.key}: {result[clock]:.2f} s")
                if turn >= warm:
                    times.setdefault(worker.setup.key, []).append(result[clock])
                    faults.setdefault(worker.setup.key, []).append(result["faults"])
                peak[worker.setup.key] = max(peak.get(worker.setup.key, 0.0), result["peak"])
            if turn >= warm:
                for dtype in ("float32", "bfloat16"):
                    rates[dtype].append(product_rate(dtype, threads, clock))
                rates["library"].append(library_rate(threads, clock))
        for worker in workers:
            worker.close()
    middle = statistics.median
    return {
        "seconds": {key: middle(values) for key, values in times.items()},
        "spread": {key: (min(values), max(values)) for key, values in times.items()},
        "faults": {key: middle(values) for key, values in faults.items()},
        "peak": peak,
        "rates": {key: middle(values) for key, values in rates.items()},
    }


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


# --- the report ---------------------------------------------------------------------------------------------------


def tables(found: dict[str, Any], groups: tuple[tuple[Setup, ...], ...]) -> str:
    """Markdown: all configurations, the attribution, the goals."""
    seconds, peak = found["seconds"], found["peak"]
    setups = [setup for group in groups for setup in group]
    first = seconds["published"]
    columns = ("implementation", "allocator", "precision", "dropout", "s per step (min to max)")
    columns += ("times faster than as published", "page faults", "peak memory, GB")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---:|---:|---:|---:|---:|"]
    for setup in setups:
        low, high = found["spread"][setup.key]
        mine = seconds[setup.key]
        lines.append(
            f"| {setup.title} | {setup.allocator} | {setup.precision} | {setup.dropout} | {mine:.2f} ({low:.2f} to "
            f"{high:.2f}) | {first / mine:.2f} | {found['faults'][setup.key]:,.0f} | {peak[setup.key] / 1e9:.2f} |"
        )
    lines += [
        "",
        "Where the gain comes from (each line against the one before it):",
        "",
        "| step | factor |",
        "|---|---:|",
    ]
    for what, before, after in ATTRIBUTION:
        lines.append(f"| {what} | {seconds[before] / seconds[after]:.2f} |")
    lines.append(f"| **all of them** | **{first / seconds[ATTRIBUTION[-1][2]]:.2f}** |")
    lines += ["", "| goal | wanted | measured |  |", "|---|---:|---:|---|"]
    for what, before, after, wanted in GOALS:
        lines.append(goal(what, wanted, seconds[before] / seconds[after]))
    for what, before, after in MEMORY:
        lines.append(goal(f"peak memory, {what}", 0.55, peak[after] / peak[before], most=True))
    rates, work_done = found["rates"], operations()
    share = work_done / seconds["ours_tuned_torch"] / rates["float32"]
    lines.append(goal("share of the rate of `torch.mm` reached, fp32 with torch's own kernels", 0.75, share))
    lines.append(goal("the same with medmae's kernels", 0.75, work_done / seconds["ours_tuned"] / rates["float32"]))
    lines += [
        "",
        f"Matrix products in one step: {work_done / 1e9:,.0f} GFLOP. Measured in the same turns on 2048^3: `torch.mm` "
        f"fp32 {rates['float32'] / 1e9:,.0f} GFLOP/s, medmae's fp32 linear map {rates['library'] / 1e9:,.0f} GFLOP/s "
        f"(of which the step reaches {work_done / seconds['ours_tuned'] / rates['library']:.0%}), "
        f"`torch.mm` bf16 {rates['bfloat16'] / 1e9:,.0f} GFLOP/s "
        f"({work_done / seconds['ours_tuned_bf16'] / rates['bfloat16']:.0%}).",
    ]
    return "\n".join(lines)


def goal(what: str, wanted: float, measured: float, *, most: bool = False) -> str:
    """One row of the table of goals."""
    met = measured <= wanted if most else measured >= wanted
    bound, verdict = "at most" if most else "at least", "met" if met else "**not met**"
    return f"| {what} | {bound} {wanted:g} | {measured:.2f} | {verdict} |"


def machine(threads: int, clock: str) -> str:
    """One line on where and when this was measured."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text("utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    load = f", load average at the end {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}, "
        f"{' '.join(platform.libc_ver())}, Python {platform.python_version()}, {clock} time{load}."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns in place of six")
    parser.add_argument("--turns", type=int, help="measured steps per configuration")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    turns = options.turns or (2 if options.quick else 6)
    begin = time.perf_counter()
    found = measure(GROUPS, turns=turns, warm=1 if options.quick else 2, threads=options.threads, clock=options.clock)
    minutes = (time.perf_counter() - begin) / 60
    text = f"{machine(options.threads, options.clock)}\n"
    text += f"Median of {turns} steps after warming up; {minutes:.1f} minutes in all.\n\n"
    text += tables(found, GROUPS) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
