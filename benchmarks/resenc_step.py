"""One training step of dense ``resenc_mae`` against the same network in a plain nnU-Net-style loop.

    python benchmarks/resenc_step.py [--quick] [--size 96] [--scale l] [--threads N] [--device cpu] [--out FILE]

The plain loop is what one would write around nnU-Net's network: voxels of hidden cubes multiplied by zero, the stock
network called, the mean squared error of the hidden voxels, SGD with momentum. ``resenc_mae`` computes the same numbers
(the benchmark checks it) from tokens, mask plans and a foreground. The same weights, masks, loss and optimizer; in
float32 and bfloat16, with weights as they come and channels-last.

Every configuration runs in a process of its own, with the allocator settings that ``medmae pretrain`` makes. The
processes of one precision are driven in turns through pipes, one step each, so that whatever else the machine does
falls on all of them alike; medians over the turns are reported.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import ROOT, Worker

KINDS = ("plain", "ours")
LAYOUTS = ("contiguous", "channels-last")
PRECISIONS = ("fp32", "bf16")
GOAL = 0.95
WARM = 2


# --- the worker ---------------------------------------------------------------------------------------------------


def work(setup: dict[str, Any]) -> None:
    """Serve steps: every line on standard input is one step, every answer one line of JSON."""
    import torch

    from medmae.engine.allocator import keep_freed_memory

    torch.set_num_threads(setup["threads"])
    if setup["device"] == "cpu":
        keep_freed_memory()
    step = stepper(setup)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if setup["device"] != "cpu":
            peak = torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "peak": peak, "loss": loss}), flush=True)


def stepper(setup: dict[str, Any]) -> Callable[[], float]:
    """A whole training step as a function that returns the loss."""
    import torch

    from medmae.find import find

    torch.manual_seed(0)
    device = torch.device(setup["device"])
    names, size = [f"s{i}" for i in range(setup["sequences"])], (setup["size"],) * 3
    found = find("resenc_mae")
    recipe = found.recipe(scale=setup["scale"], sequences=names, size=list(size), foreground_loss=False)
    method: Any = found.build(**recipe)
    method.to(device)
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(setup["batch"], 1, *size, generator=draw).to(device) for _ in names]
    keys = [torch.arange(setup["batch"]) + i * setup["batch"] for i in range(setup["steps"])]
    if setup["kind"] == "ours":
        module: Any = method
        batch = dict(zip(names, images, strict=True))

        def loss(count: int) -> Any:
            return method(batch | {"key": keys[count]})["reconstruction"]
    else:
        module = stock(method, recipe)
        module.to(device)
        masks = [visible(method, key, device) for key in keys]  # not timed: a plain loop draws masks in its loader
        del method

        def loss(count: int) -> Any:
            image, shown = torch.cat(images, 1), masks[count]
            hidden = 1 - shown
            return ((module(image * shown) - image).square() * hidden).sum() / (hidden.sum() * len(names))

    if setup["layout"] == "channels-last":
        module.to(memory_format=torch.channels_last_3d)
    module.train()
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)
    count = 0

    def step() -> float:
        nonlocal count
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=setup["precision"] == "bf16"):
            value = loss(count)
        count += 1
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 12)
        optimizer.step()
        return float(value.detach())  # waits for the device

    return step


def stock(method: Any, recipe: dict[str, Any]) -> Any:
    """The network of a ``resenc_mae`` method as nnU-Net has it, with the same weights: image in, image out."""
    from medmae.nets.build import resenc

    parts = ("features", "blocks", "kernels", "strides", "decoder_convs", "plain")
    channels = len(method.sequences)
    network = resenc(**{key: recipe[key] for key in parts}).build(input_channels=channels, num_classes=channels)
    network.load_state_dict(method.state_dict())
    network.decoder.seg_layers[:-1].requires_grad_(False)
    return network


def visible(method: Any, key: Any, device: Any) -> Any:
    """1 where voxels are visible [b 1 *size], drawn as the method draws: the cubes of the highest priority."""
    import torch

    grid = method.tokenizer.grid
    blank = torch.zeros(len(key), 1, *grid.size)
    plan = method.plan(dict.fromkeys(method.sequences, blank) | {"key": key})
    cubes = plan.visible % grid.length
    marks = torch.zeros(len(key), grid.length).scatter(1, cubes, 1.0).reshape(len(key), 1, *grid.shape)
    return torch.nn.functional.interpolate(marks, size=grid.size, mode="nearest").to(device)


# --- the parent ---------------------------------------------------------------------------------------------------


def worker_of(setup: dict[str, Any]) -> Worker:
    """A process that runs one configuration, one step at a time."""
    key = (setup["precision"], setup["layout"], setup["kind"])
    return Worker(key, [str(Path(__file__).resolve()), "--worker", json.dumps(setup)], threads=setup["threads"])


def measure(common: dict[str, Any], *, turns: int) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Steps of all configurations in turns, one precision after the other."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for precision in PRECISIONS:
        workers = [
            worker_of({**common, "precision": precision, "layout": layout, "kind": kind})
            for layout in LAYOUTS
            for kind in KINDS
        ]
        for worker in workers:
            found[worker.setup] = {"seconds": [], "losses": [], "peak": 0.0}
        for turn in range(WARM + turns):
            for worker in workers:
                result, mine = worker.ask(), found[worker.setup]
                print(
                    f"turn {turn + 1}/{WARM + turns} {' '.join(worker.setup)}: {result['seconds']:.2f} s",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                mine["losses"].append(result["loss"])
                mine["peak"] = max(mine["peak"], result["peak"])
                if turn >= WARM:
                    mine["seconds"].append(result["seconds"])
        for worker in workers:
            worker.close()
        for layout in LAYOUTS:
            one, other = (found[(precision, layout, kind)]["losses"][0] for kind in KINDS)
            if abs(one - other) > (1e-4 if precision == "fp32" else 2e-2) * abs(one):
                raise RuntimeError(f"{precision} {layout}: the losses {one} and {other} of the first step differ")
    return found


def tables(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """Markdown: all configurations, then the goals."""
    middle = {key: statistics.median(value["seconds"]) for key, value in found.items()}
    # The ratio is taken turn by turn: neighbors in time share whatever else the machine does.
    lines = ["| precision | weights | loop | s per step (min to max) | times faster than the plain loop | peak, GB |",
             "|---|---|---|---:|---:|---:|"]  # fmt: skip
    ratios = {}
    for (precision, layout, kind), value in found.items():
        plain = found[(precision, layout, "plain")]["seconds"]
        seconds = value["seconds"]
        ratio = statistics.median(p / s for p, s in zip(plain, seconds, strict=True))
        ratios[precision, layout, kind] = ratio
        lines.append(
            f"| {precision} | {layout} | {'resenc_mae' if kind == 'ours' else 'plain'} | "
            f"{middle[precision, layout, kind]:.3f} ({min(seconds):.3f} to {max(seconds):.3f}) | {ratio:.2f} | "
            f"{value['peak'] / 1e9:.2f} |"
        )
    lines += ["", "| goal | wanted | measured |  |", "|---|---:|---:|---|"]
    for precision in PRECISIONS:
        best = min(LAYOUTS, key=lambda layout: middle[precision, layout, "plain"])
        mine = min(middle[precision, layout, "ours"] for layout in LAYOUTS)
        pairs = {
            f"{precision}, {LAYOUTS[0]}": ratios[precision, LAYOUTS[0], "ours"],
            f"{precision}, each at its best layout": middle[precision, best, "plain"] / mine,
        }
        for what, value in pairs.items():
            lines.append(f"| {what} | at least {GOAL} | {value:.2f} | {'met' if value >= GOAL else '**not met**'} |")
    lines.append("")
    for precision in PRECISIONS:
        gain = middle[precision, LAYOUTS[0], "ours"] / middle[precision, LAYOUTS[1], "ours"]
        lines.append(f"Channels-last weights make {precision} {gain:.2f} times as fast.")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> str:
    """One line on where and when this was measured."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if options.device != "cpu":
        name = torch.cuda.get_device_name()
    elif info.is_file():
        found = [line for line in info.read_text("utf-8").splitlines() if line.startswith("model name")]
        name = found[0].split(":", 1)[1].strip() if found else name
    load = f", load average at the end {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, {name}, {options.threads} threads, torch {torch.__version__}, allocator as `medmae "
        f"pretrain` sets it; scale {options.scale}, {options.sequences} sequence(s) of {options.size}^3, batch "
        f"{options.batch}{load}."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="three turns in place of eight")
    parser.add_argument("--turns", type=int, help="measured steps per configuration")
    parser.add_argument("--size", type=int, default=96, help="voxels per axis")
    parser.add_argument("--scale", default="l", help="l, m (one network), small or tiny")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.worker:
        work(json.loads(options.worker))
        return
    names = ("size", "scale", "sequences", "batch", "threads", "device")
    turns = options.turns or (3 if options.quick else 8)
    common = {name: getattr(options, name) for name in names} | {"steps": turns + WARM}
    begin = time.perf_counter()
    found = measure(common, turns=turns)
    text = f"{machine(options)}\nMedian of {turns} steps after warming up; "
    text += f"{(time.perf_counter() - begin) / 60:.1f} minutes in all.\n\n{tables(found)}\n"
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
