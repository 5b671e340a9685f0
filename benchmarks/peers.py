"""One training step of our methods against pip-installable implementations of the same paper, side by side.

    python benchmarks/peers.py [--quick] [--methods mae videomae fcmae] [--precisions fp32 bf16] [--threads 2]

``mae`` against transformers' ``ViTMAEForPreTraining``, ``videomae`` against its ``VideoMAEForPreTraining``, ``fcmae``
against timm's ``convnextv2`` with hidden places multiplied by zero and a plain dense decoder (timm has the encoder
only; see ``peer_models.MaskedDense``). Both have the sizes of our scale, the same batch of noise, mask ratio, target,
precision, fused AdamW, attention by ``scaled_dot_product_attention`` and the allocator that ``medmae pretrain`` sets.
Before anything is timed the work is compared: trained parameters within 1 %, and the same number of places in the
encoder, in the decoder and in the loss. What differs is said under the table.

A step is: gradients to None, forward with its mask, backward, AdamW. VideoMAE of transformers is told its masks, which
are not timed; ours draws them inside. Every contestant runs in a process of its own; those of one method and precision
are driven in turns, one step each, and the ratio is the median of the ratios of neighbors in time. *medmae, torch's
kernels* leaves out our choice of library for products and attention on a CPU. Memory is the high-water mark
of the steps above what the process held before the first one: gradients, optimizer, activations.

Our decoders compute their last block and their head for hidden places only: a quarter less of that block in ``mae``, a
tenth in ``videomae``, where nine of ten places are hidden. Where a decoder may leave out more, as with the second mask
of ``videomae_v2``, the same peer is what it is measured against; that is less work by design, and said so in the table.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import ROOT, Worker

WARM = 2
CONTESTANTS = {"peer": "peer", "torch": "medmae, torch's kernels", "ours": "**medmae**"}
SKIPPING = "medmae `videomae_v2`, half decoded"
GOALS = {"mae": 0.9, "videomae": 0.9, "fcmae": 0.9}
FASTER = (("mae", "torch"), ("mae", "ours"), ("videomae", "half"))  # where the decoder leaves something out
BATCH = {"mae": 16, "videomae": 2, "fcmae": 4}


# --- the worker ---------------------------------------------------------------------------------------------------


def work(setup: dict[str, Any]) -> None:
    """Serve: ``step`` and ``facts`` on standard input, one line of JSON each."""
    import torch

    from medmae.engine.allocator import keep_freed_memory

    torch.set_num_threads(setup["threads"])
    on_cpu = setup["device"] == "cpu"
    if on_cpu:
        keep_freed_memory()
    contestant, step = prepare(setup)
    from peer_models import facts

    answer = sys.stdout
    print(json.dumps({"ready": True}), file=answer, flush=True)
    rest = None
    for line in sys.stdin:
        if line.strip() == "facts":
            print(json.dumps(facts(contestant)), file=answer, flush=True)
            continue
        if rest is None:
            rest = memory_at_rest() if on_cpu else torch.cuda.memory_allocated()
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        peak = high_water() if on_cpu else torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "memory": peak - rest, "loss": loss}), file=answer, flush=True)


def prepare(setup: dict[str, Any]) -> tuple[Any, Callable[[], float]]:
    """The contestant of a setup, and a whole training step of it as a function that returns the loss."""
    import torch
    from peer_models import ours, peer, recipe_of

    from medmae.nets import kernels

    torch.manual_seed(0)
    if setup["kind"] == "torch":
        kernels.onednn_is_faster = lambda: False  # type: ignore[assignment]
        kernels._wants_heads = lambda q, k, v: False
    name = "videomae_v2" if setup["kind"] == "half" else setup["method"]
    recipe = recipe_of(name, scale=setup["scale"])
    given: dict[str, Any] = {"batch": setup["batch"], "device": setup["device"]}
    if setup["kind"] == "peer":
        contestant = peer(setup["method"], recipe, steps=setup["steps"], **given)
    else:
        contestant = ours(name, recipe, **given)
    weights = [p for p in contestant.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True)
    count = 0

    def step() -> float:
        nonlocal count
        optimizer.zero_grad(set_to_none=True)
        device = torch.device(setup["device"]).type
        with torch.autocast(device, torch.bfloat16, enabled=setup["precision"] == "bf16"):
            value = contestant.loss(count)
        count += 1
        value.backward()
        optimizer.step()
        return float(value.detach())  # waits for the device

    return contestant, step


def memory_at_rest() -> int:
    """Bytes the process holds now; its high-water mark starts again from here, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"the mark of memory cannot be set back ({error}): figures include loading", file=sys.stderr)
    return _status("VmRSS")


def high_water() -> int:
    """The most bytes the process has held since then."""
    return _status("VmHWM")


def _status(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024


# --- the parent ---------------------------------------------------------------------------------------------------


def worker_of(setup: dict[str, Any]) -> Worker:
    """A process that runs one contestant, one step at a time."""
    script = str(Path(__file__).resolve())
    return Worker(setup["kind"], [script, "--worker", json.dumps(setup)], threads=setup["threads"])


def measure(common: dict[str, Any], *, methods: list[str], precisions: list[str], turns: int) -> list[dict[str, Any]]:
    """Steps of all contestants in turns, one method and precision after the other."""
    from peer_models import unequal

    found = []
    for method in methods:
        batch = common["batches"].get(method, BATCH[method])
        for precision in precisions:
            setup = {k: v for k, v in common.items() if k != "batches"}
            setup |= {"method": method, "precision": precision, "batch": batch}
            kinds = (*CONTESTANTS, "half") if method == "videomae" else tuple(CONTESTANTS)
            workers = {kind: worker_of({**setup, "kind": kind}) for kind in kinds}
            told: dict[str, Any] = {kind: worker.ask("facts") for kind, worker in workers.items()}
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            memory: dict[str, float] = dict.fromkeys(kinds, 0.0)
            losses: dict[str, float] = {}
            for turn in range(WARM + turns):
                for kind, worker in workers.items():
                    result = worker.ask("step")
                    say(f"turn {turn + 1}/{WARM + turns} {method} {precision} {kind}: {result['seconds']:.3f} s")
                    losses.setdefault(kind, result["loss"])
                    memory[kind] = max(memory[kind], result["memory"])
                    if turn >= WARM:
                        seconds[kind].append(result["seconds"])
            for worker in workers.values():
                worker.close()
            found.append({
                "method": method, "precision": precision, "batch": batch, "facts": told, "seconds": seconds,
                "memory": memory, "first_loss": losses, "unequal": unequal(told["ours"], told["peer"]),
            })  # fmt: skip
    return found


def ratio(result: dict[str, Any], kind: str) -> float:
    """How many times faster than the peer: the median over turns of neighbors in time."""
    peer, mine = result["seconds"]["peer"], result["seconds"][kind]
    return statistics.median(p / m for p, m in zip(peer, mine, strict=True))


def tables(found: list[dict[str, Any]]) -> str:
    """Markdown: all contestants, the goals, the work."""
    from peer_models import PEERS

    lines = [
        "| method, batch | implementation | precision | s per step (min to max) | speed, peer = 1 | memory, GB |",
        "|---|---|---|---:|---:|---:|",
    ]
    for result in found:
        for kind, s in result["seconds"].items():
            title = PEERS[result["method"]] if kind == "peer" else CONTESTANTS.get(kind, SKIPPING)
            lines.append(
                f"| `{result['method']}`, {result['batch']} | {title} | {result['precision']} | "
                f"{statistics.median(s):.3f} ({min(s):.3f} to {max(s):.3f}) | {ratio(result, kind):.2f} | "
                f"{result['memory'][kind] / 1e9:.2f} |"
            )
    lines += ["", "| goal: speed against the peer | wanted | measured |  |", "|---|---:|---:|---|"]
    for result in found:
        method, wanted = result["method"], GOALS[result["method"]]
        for kind in result["seconds"]:
            if kind == "peer":
                continue
            value, title = ratio(result, kind), CONTESTANTS.get(kind, SKIPPING).strip("*")
            what = f"`{method}` {result['precision']}, {title}"
            if kind != "half":
                lines.append(row(what, f"at least {wanted}", value, value >= wanted))
            if (method, kind) in FASTER:
                lines.append(row(what, "more than 1", value, value > 1))
    lines += ["", "| work | parameters, ours | peer | encoder places | decoder places | predicted |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    notes = []
    for result in found:
        if result["precision"] != found[0]["precision"]:
            continue
        mine, other = result["facts"]["ours"], result["facts"]["peer"]
        lines.append(
            f"| `{result['method']}` | {mine['parameters']:,} | {other['parameters']:,} | {mine['encoder']} | "
            f"{mine['decoder']} | {mine['scored']} |"
        )
        if result["unequal"]:
            notes.append(f"`{result['method']}`, ours and peer differ in: {'; '.join(result['unequal'])}.")
    lines += ["", *(notes or ["Parameters agree within 1 %; places in encoder, decoder and loss are the same."])]
    return "\n".join(lines)


def row(what: str, wanted: str, value: float, met: bool) -> str:
    """One line of the table of goals."""
    return f"| {what} | {wanted} | {value:.2f} | {'met' if met else '**not met**'} |"


def machine(options: argparse.Namespace) -> str:
    """One line on where and when this was measured."""
    from importlib.metadata import version

    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if options.device != "cpu":
        name = torch.cuda.get_device_name()
    elif info.is_file():
        cpu = [line for line in info.read_text("utf-8").splitlines() if line.startswith("model name")]
        name = cpu[0].split(":", 1)[1].strip() if cpu else name
    load = f", load average at the end {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, {name}, {options.threads} threads, torch {torch.__version__}, transformers "
        f"{version('transformers')}, timm {version('timm')}, scale {options.scale}{load}."
    )


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="three turns in place of ten")
    parser.add_argument("--turns", type=int, help="measured steps per contestant")
    parser.add_argument("--methods", nargs="+", choices=tuple(GOALS), default=list(GOALS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--scale", default="tiny", help="of our method; test to try this script out")
    parser.add_argument("--batch", type=int, help=f"samples per step ({BATCH})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.worker:
        work(json.loads(options.worker))
        return
    turns = options.turns or (3 if options.quick else 10)
    common = {name: getattr(options, name) for name in ("scale", "threads", "device")}
    common["steps"] = turns + WARM
    common["batches"] = dict.fromkeys(GOALS, options.batch) if options.batch else {}
    begin = time.perf_counter()
    found = measure(common, methods=options.methods, precisions=options.precisions, turns=turns)
    where = machine(options)
    print(
        f"{where}\nMedian of {turns} steps after warming up; {(time.perf_counter() - begin) / 60:.1f} minutes in all.\n"
    )
    print(tables(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"where": where, "turns": turns, "results": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
