"""Real patients, one left out at a time: synthesis of every sequence, and tumors from two sequences.

    python benchmarks/real_cases.py --work FOLDER --real FOLDER [--jobs 2] [--steps 600] [--quick] [--out FILE]

``--real`` holds a few real cases at 2 mm as folders of ``<sequence>.nii.gz`` with ``mask.nii.gz``; see
``data_specs/real_small.yaml``. For every patient, a network that starts from the encoder that was pre-trained on
synthetic patients is fine-tuned on the synthetic training patients and the other real ones (each five times), and
measured on the one left out: R2 in the foreground for every sequence from all others that the patient has. For the two
patients with gliomas and only t1c and t2f, tumor regions in the same way. Their labels are brought to the
numbers of the synthetic ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
from cohort_stages import cohort, machine, medmae, pretrained, several, summary

from medmae.data.cohort import open_cohort

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
CASES = ("BraTS-MET-00110-000_2mm", "OpenMS-26_2mm", "brats13_pat0005_2mm", "brats13_pat0006_2mm")
GLIOMAS = CASES[2:]
CLASSES = {0: 0, 1: 1, 2: 2, 3: 1, 4: 3}
"""Values of BraTS 2013 -> of the synthetic labels: non-enhancing tumor counts with the necrosis."""
REPEATS = 5
SPEC = """medmae: 1
name: real-and-synthetic
root: ..
layout: csv
file: {file}
sequences: [t1n, t1c, t2w, t2f]
require: 2
{label}preprocess: {{orientation: RAS, spacing: [2, 2, 2], crop: foreground, normalize: zscore_foreground}}
license: "internal checks only; every case has its own terms"
"""
LABEL = """label:
  classes: {background: 0, ncr: 1, ed: 2, et: 3}
  regions: {whole_tumor: [1, 2, 3], tumor_core: [1, 3], enhancing: [3]}
"""


def copied(work: Path, real: Path) -> None:
    """Copies of the real cases with the synthetic numbering of labels."""
    for case in CASES:
        out = work / "real" / "files" / case
        if out.exists():
            continue
        out.mkdir(parents=True)
        for path in (real / case).glob("*.nii.gz"):
            if path.name != "seg.nii.gz":
                shutil.copyfile(path, out / path.name)
            elif case in GLIOMAS:
                image = nibabel.load(path)
                values = np.vectorize(CLASSES.get)(np.asarray(image.dataobj).astype(int)).astype(np.uint8)
                nibabel.save(nibabel.Nifti1Image(values, image.affine), out / path.name)


def listed(work: Path, synthetic: Path, left_out: str, *, labels: bool) -> Path:
    """The spec of one round."""
    parts = open_cohort(str(synthetic)).split()
    name = f"{'labels' if labels else 'images'}-{left_out}"
    rows = [(c.key, c.subject, part, f"cohort/{c.key}") for part in ("train", "val") for c in parts[part]]
    for case in GLIOMAS if labels else CASES:
        where = f"real/files/{case}"
        if case == left_out:
            rows.append((case, case, "test", where))
        else:
            rows += [(f"{case}_{i}", case, "train", where) for i in range(REPEATS)]
    home = work / "real"
    with (work / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "subject", "split", *SEQUENCES, "mask", *(["label"] if labels else [])])
        for key, subject, part, where in rows:
            files = [f"{where}/{s}.nii.gz" for s in (*SEQUENCES, "mask", *(["seg"] if labels else []))]
            table.writerow([key, subject, part, *(file if (work / file).exists() else "" for file in files)])
    spec = home / f"{name}.yaml"
    spec.write_text(SPEC.format(file=f"{name}.csv", label=LABEL if labels else ""), encoding="utf-8")
    return spec


def main() -> None:
    """Fine-tune, measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work, steps = options.work, 3 if options.quick else options.steps
    synthetic = cohort(work, quick=options.quick)
    start = pretrained(work, synthetic, quick=options.quick)
    copied(work, options.real)
    seconds: dict[str, float] = {}

    def run(task: str, case: str) -> None:
        spec = listed(work, synthetic, case, labels=task == "segment")
        home = work / "real" / task / case
        rate = "1e-3" if task == "synthesize" else "5e-4"
        more: tuple[object, ...] = () if task == "synthesize" else (
            "--backend", "medmae", "--label", "regions", "--no-evaluate")  # fmt: skip
        if not (home / "run" / "DONE").exists():
            medmae(
                "finetune", task, *more, "--checkpoint", start, "--data", spec, "--steps", steps, "--batch", 2,
                "--lr", rate, "--layer-decay", 0.75, "--patience", 0, "--set", "train.validate_every=200",
                "--cache", work / "cache", "--workers", 0, "--seed", 0, "--precision", "bf16",
                "--out", home / "run", "--resume", log=home / "train.log", seconds=seconds, name=f"{task} {case}",
            )  # fmt: skip
        if not (home / "test" / "summary.json").exists():
            medmae(
                "evaluate", task, *(("--no-boosting",) if task == "synthesize" else ("--subsets", "all")),
                "--checkpoint", home / "run", "--data", spec, "--split", "test", "--precision", "bf16",
                "--overlap", 0.25, "--batch", 4,
                "--out", home / "test", "--overwrite", log=home / "test.log",
            )  # fmt: skip

    jobs = [("synthesize", case) for case in CASES] + [("segment", case) for case in GLIOMAS]
    several(options.jobs, [lambda job=job: run(*job) for job in jobs])
    lines = [f"`python benchmarks/real_cases.py --steps {steps}`, {machine()}.", "", *tables(work)]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "lines": lines, "seconds": seconds}, indent=1) + "\n")


def tables(work: Path) -> list[str]:
    """R2 per patient and target from all other sequences, beside linear regression; Dice per patient and subset."""
    lines = ["| patient | target | from | R2, model | R2, linear regression |", "|---|---|---|---:|---:|"]
    for case in CASES:
        found = summary(work / "real" / "synthesize" / case / "test")
        best: dict[str, str] = {}
        for _, target, given, _ in found:
            if given != "all" and given.count("+") >= best.get(target, "").count("+"):
                best[target] = given
        for target, given in best.items():
            values = [found.get((method, target, given, "r2")) for method in ("model", "linear")]
            lines.append(f"| {case} | {target} | {given} | " + " | ".join(
                "" if v is None else f"{v['mean']:.2f}" for v in values) + " |")  # fmt: skip
    lines += ["", "| patient | from | whole tumor | tumor core | enhancing |", "|---|---|---:|---:|---:|"]
    for case in GLIOMAS:
        found = summary(work / "real" / "segment" / case / "test")
        for given in sorted({g for _, _, g, _ in found if g != "all"}, key=lambda g: (g.count("+"), g)):
            cells = [found[m, t, g, k]["mean"] for region in ("whole_tumor", "tumor_core", "enhancing")
                     for m, t, g, k in found if (t, g, k) == (region, given, "dice")]  # fmt: skip
            lines.append(f"| {case} | {given} | " + " | ".join(f"{v:.3f}" for v in cells) + " |")
    return lines


if __name__ == "__main__":
    main()
