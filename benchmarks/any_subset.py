"""One network for all subsets of the sequences: is it as good as one network per subset, and did pre-training help?

    python benchmarks/any_subset.py --work FOLDER [--jobs 2] [--steps 600] [--quick] [--out FILE]

Synthetic patients at 2 mm (40 to train, 6 to validate, 20 to test). Networks of the same shape and schedule are
fine-tuned to three tumor regions, and each is measured on the whole volumes of the test patients from every subset that
it knows: trained with all sequences only; with sequences dropped at random; the same, pre-trained; the same with a
teacher that sees all sequences; and networks that were trained on one subset alone. At 10 labeled patients, with and
without pre-training. The table gives the mean Dice over regions.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from cohort_stages import cohort, machine, medmae, pretrained, several, summary

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
SUBSETS = ["+".join(s) for k in (1, 2, 3, 4) for s in itertools.combinations(SEQUENCES, k)]
ALONE = ("t2f", "t1c+t2f", "t1n+t2w")
DROPPED, NEVER = ("--modality-dropout", "0.5"), ("--modality-dropout", "0")
ARMS: dict[str, tuple[str, ...]] = {
    "scratch, all sequences only": ("--from-scratch", *NEVER),
    "scratch": ("--from-scratch", *DROPPED),
    "pre-trained": DROPPED,
    "pre-trained, teacher": (*DROPPED, "--distill", "1"),
    "scratch, 10 patients": ("--from-scratch", *DROPPED, "--fraction", "0.25"),
    "pre-trained, 10 patients": (*DROPPED, "--fraction", "0.25"),
    **{f"scratch, {subset} only": ("--from-scratch", *NEVER) for subset in ALONE},
}


def main() -> None:
    """Fine-tune, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work, steps = options.work, 3 if options.quick else options.steps
    spec = cohort(work, quick=options.quick)
    start = pretrained(work, spec, quick=options.quick)
    seconds: dict[str, float] = {}

    def arm(name: str) -> None:
        subset = next((s for s in ALONE if name == f"scratch, {s} only"), None)
        run = work / "segment" / name.replace(", ", "-").replace(" ", "_")
        own = spec
        if subset is not None:
            own = spec.with_name(f"{subset}.yaml")
            text = spec.read_text(encoding="utf-8")
            own.write_text(
                text.replace(f"sequences: [{', '.join(SEQUENCES)}]", f"sequences: [{', '.join(subset.split('+'))}]")
            )
        if not (run / "run" / "DONE").exists():
            medmae(
                "finetune", "segment", "--backend", "medmae", "--label", "regions", "--checkpoint", start, *ARMS[name],
                "--data", own, "--steps", steps, "--batch", 2, "--lr", "5e-4", "--layer-decay", "0.75",
                "--patience", 0, "--set", "train.validate_every=100", "--cache", work / "cache", "--workers", 0,
                "--seed", 0, "--precision", "bf16", "--no-evaluate", "--out", run / "run", "--resume",
                log=run / "train.log", seconds=seconds, name=f"train {name}",
            )  # fmt: skip
        if not (run / "test" / "summary.json").exists():
            medmae(
                "evaluate", "segment", "--checkpoint", run / "run", "--data", own, "--split", "test",
                "--subsets", subset or "all", "--targets", "regions", "--overlap", 0.25, "--precision", "bf16",
                "--batch", 4, "--out", run / "test", "--overwrite",
                log=run / "test.log", seconds=seconds, name=f"test {name}",
            )  # fmt: skip

    several(options.jobs, [lambda name=name: arm(name) for name in ARMS])
    scores: dict[str, dict[str, float]] = {}
    for name in ARMS:
        found = summary(work / "segment" / name.replace(", ", "-").replace(" ", "_") / "test")
        for subset in SUBSETS:
            parts = [e["mean"] for (_, _, given, metric), e in found.items() if given == subset and metric == "dice"]
            if parts:
                scores.setdefault(name, {})[subset] = 100 * sum(parts) / len(parts)
    text = table(scores)
    lines = [f"`python benchmarks/any_subset.py --steps {steps}`, {machine()}.", "", text]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "dice": scores, "seconds": seconds}, indent=1) + "\n")


def table(scores: dict[str, dict[str, float]]) -> str:
    """Subsets down, networks across; the networks of one subset share a column."""
    names = [name for name in scores if not name.endswith(" only") or name == "scratch, all sequences only"]
    alone = {
        subset: scores[f"scratch, {subset} only"][subset] for subset in ALONE if f"scratch, {subset} only" in scores
    }
    lines = ["| given | " + " | ".join(names) + " | one network per subset |", "|---|" + "---:|" * (len(names) + 1)]
    for subset in SUBSETS:
        cells = [f"{scores[name][subset]:.1f}" if subset in scores[name] else "" for name in names]
        lines.append(f"| {subset} | " + " | ".join(cells) + f" | {alone[subset]:.1f} |" if subset in alone else
                     f"| {subset} | " + " | ".join(cells) + " | |")  # fmt: skip
    means = [sum(scores[name].values()) / max(len(scores[name]), 1) for name in names]
    lines.append("| **mean** | " + " | ".join(f"{m:.1f}" for m in means) + " | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
