"""Seconds to reconstruct a missing sequence of a whole 240 x 240 x 155 volume, three sequences given.

The time depends on the size of the network and on the overlap of the windows, not on the weights or the image, so
random ones are used. The head is an ellipsoid of BraTS proportions; windows of pure background are skipped as in use.

Usage: python benchmarks/reconstruct.py [--scales tiny base] [--overlaps 0 0.25 0.5] [--precision fp32] [--device cpu]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date
from typing import Any

import torch

from medmae.engine.allocator import keep_freed_memory
from medmae.find import find
from medmae.volume.complete import complete

SIZE = (240, 240, 155)
SEMI_AXES = (70.0, 87.0, 68.0)  # millimeters, of a head


def volume() -> dict[str, torch.Tensor]:
    axes = [torch.arange(n) - (n - 1) / 2 for n in SIZE]
    inside = sum((a / r).square() for a, r in zip(torch.meshgrid(*axes, indexing="ij"), SEMI_AXES, strict=True)) < 1
    head = inside.float()[None, None]
    images = {name: torch.randn(1, 1, *SIZE) * head for name in ("t1n", "t2w", "t2f")}
    return {**images, "foreground": head, "spacing": torch.ones(1, 3)}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--scales", nargs="+", default=["tiny", "base"])
    ask.add_argument("--overlaps", nargs="+", type=float, default=[0.0, 0.25, 0.5])
    ask.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--turns", type=int, default=1)
    given = ask.parse_args()
    keep_freed_memory()
    batch = volume()
    crop = {key: value[..., 40:200, 30:210, 8:148] if value.ndim == 5 else value for key, value in batch.items()}
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads,")
    print(f"torch {torch.__version__}, {given.device}; median of {given.turns} run(s) after one window of warming up\n")
    print("| scale | precision | overlap | windows | seconds |\n|---|---|---:|---:|---:|")
    for scale in given.scales:
        method = find("bm_mae").build(scale=scale).to(given.device).eval()
        for precision in given.precision:
            with torch.autocast(given.device, torch.bfloat16, enabled=precision == "bf16"):
                corner = {k: v[..., :128, :128, :128] if v.ndim == 5 else v for k, v in crop.items()}
                complete(method, corner, ["t1c"], overlap=0.0)
                for overlap in given.overlaps:
                    windows, seconds = measure(method, crop, overlap=overlap, turns=given.turns)
                    print(f"| {scale} | {precision} | {overlap} | {windows} | {seconds:.1f} |", flush=True)


def measure(method: Any, batch: dict[str, torch.Tensor], *, overlap: float, turns: int) -> tuple[int, float]:
    """Windows, and the median of the seconds of some turns."""
    windows: list[int] = []
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        complete(method, batch, ["t1c"], overlap=overlap, on_windows=lambda _, n: windows.append(n))
        seconds.append(time.perf_counter() - start)
    return windows[-1], statistics.median(seconds)


if __name__ == "__main__":
    main()
