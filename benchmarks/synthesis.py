"""Missing sequences from those there are: one network against what anybody gets without one, for every subset.

    python benchmarks/synthesis.py --work FOLDER [--jobs 2] [--steps 2000] [--quick] [--out FILE]

Synthetic patients at 2 mm (40 to train, 6 to validate, 20 to test). One network is fine-tuned to synthesis from a
pre-trained encoder, one from random weights; both are measured on the test patients for every subset and target,
beside the mean intensity, the best single sequence after a linear fit, a voxelwise linear regression and voxelwise
gradient boosting, all fitted on training patients. Means over test patients, inside the foreground.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cohort_stages import cohort, machine, medmae, pretrained, several, summary

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
ARMS: dict[str, tuple[str, ...]] = {"pre-trained": (), "scratch": ("--from-scratch",)}
METRICS = {"psnr": 1, "ssim": 1, "mae": -1}
"""Metric -> whether more of it is better."""


def main() -> None:
    """Fine-tune, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work, steps = options.work, 3 if options.quick else options.steps
    spec = cohort(work, quick=options.quick)
    start = pretrained(work, spec, quick=options.quick)
    seconds: dict[str, float] = {}

    def arm(name: str) -> None:
        run = work / "synthesize" / name
        if not (run / "run" / "DONE").exists():
            medmae(
                "finetune", "synthesize", "--checkpoint", start, *ARMS[name], "--data", spec, "--steps", steps,
                "--batch", 2, "--lr", "1e-3", "--layer-decay", "0.75", "--patience", 0, "--cache", work / "cache",
                "--set", "train.validate_every=200", "--workers", 0, "--seed", 0, "--precision", "bf16",
                "--out", run / "run", "--resume",
                log=run / "train.log", seconds=seconds, name=f"train {name}",
            )  # fmt: skip
        if not (run / "test" / "summary.json").exists():
            medmae(
                "evaluate", "synthesize", "--checkpoint", run / "run", "--data", spec, "--split", "test", "--boosting",
                "--overlap", 0.25, "--batch", 4, "--precision", "bf16",
                "--out", run / "test", "--overwrite", log=run / "test.log", seconds=seconds, name=f"test {name}",
            )  # fmt: skip

    several(options.jobs, [lambda name=name: arm(name) for name in ARMS])
    found = {name: summary(work / "synthesize" / name / "test") for name in ARMS}
    lines = [f"`python benchmarks/synthesis.py --steps {steps}`, {machine()}.", ""]
    for metric in METRICS:
        lines += [table(found, metric), ""]
    lines += verdict(found)
    print("\n".join(lines))
    if options.out is not None:
        values = {name: [{"key": key, "mean": e["mean"]} for key, e in cells.items()] for name, cells in found.items()}
        options.out.write_text(json.dumps({"machine": machine(), "cells": values, "seconds": seconds}, indent=1) + "\n")


Cells = dict[tuple[str, str, str, str], dict[str, float]]


def columns(found: dict[str, Cells], metric: str, target: str, given: str) -> dict[str, float]:
    """Name -> mean value: of our networks, then of what they are compared with."""
    line = {name: cells["model", target, given, metric]["mean"] for name, cells in found.items()}
    first = next(iter(found.values()))
    others = dict.fromkeys(method for method, *_ in first if method != "model")
    return line | {m: first[m, target, given, metric]["mean"] for m in others if (m, target, given, metric) in first}


def table(found: dict[str, Cells], metric: str) -> str:
    """Subsets and targets down, methods across; the best of a line is bold."""
    places = sorted({(g, t) for cells in found.values() for (_, t, g, m) in cells if m == metric and g != "all"},
                    key=lambda p: (p[0].count("+"), p))  # fmt: skip
    names: list[str] = []
    rows = []
    for given, target in places:
        line = columns(found, metric, target, given)
        names = names or list(line)
        best = max(line, key=lambda n: METRICS[metric] * line[n])
        cells = [f"{line[n]:.3f}" if n in line else "" for n in names]
        cells = [f"**{c}**" if n == best else c for n, c in zip(names, cells, strict=True)]
        rows.append(f"| {given} | {target} | " + " | ".join(cells) + " |")
    return "\n".join(
        [f"| {metric}: given | target | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(names), *rows]
    )


def verdict(found: dict[str, Cells]) -> list[str]:
    """Whether the goals were met, by PSNR."""
    lines = []
    for name in found:
        won: dict[str, list[bool]] = {}
        for (method, target, given, metric), entry in found[name].items():
            if method == "model" and metric == "psnr" and given != "all":
                line = columns({name: found[name]}, metric, target, given)
                won.setdefault(given, []).append(all(entry["mean"] > v for n, v in line.items() if n != name))
        three = [w for given, wins in won.items() if given.count("+") == 2 for w in wins]
        whole = sum(all(wins) for wins in won.values())
        lines.append(
            f"{name}: above all others in {sum(three)} of {len(three)} targets from three sequences, and for every "
            f"target in {whole} of {len(won)} subsets (PSNR)."
        )
    return lines


if __name__ == "__main__":
    main()
