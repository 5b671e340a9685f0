"""Is pre-training worth it inside nnU-Net? Five starts, one plan, one split, one schedule.

    python benchmarks/nnunet_transfer.py --work FOLDER [--jobs 2] [--real FOLDER] [--quick] [--out FILE]

On synthetic patients: 40 without labels to pre-train on, 20 with labels to train on, 2 to validate, 16 to test. A
tiny residual encoder U-Net is trained inside nnU-Net from random weights and from the weights of three methods (SparK
also decoding a third of the hidden cubes only), at 5 and at 20 labeled patients, three seeds each. Plan, split,
schedule, number of steps and random draws are the same files and values for all of them; only the weights at step 0
differ. The table gives the mean Dice over classes, seeds and test patients, the mean of every seed, and the paired
difference from training without pre-training with a bootstrap interval over seeds and patients.

Everything is kept in the folder, one result per job: an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SPACING = 4.0
PATCH = (32, 32, 32)
NETWORK = {
    "features": (8, 16, 32, 64),
    "blocks": (1, 1, 2, 2),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "decoder_convs": (1, 1, 1),
}
METHODS: dict[str, tuple[str, ...]] = {  # settings beside those that all share
    "resenc_mae": (),
    "spark3d": (),
    "spark3d, decode=0.33": ("method.decode=0.33",),
    "simclr": (),
}
ARMS = ("scratch", *METHODS)
LABELED = (5, 20)
SEEDS = (0, 1, 2)
VALIDATION, TEST = 2, 16
DATASET, PLANS = "Dataset900_Shown", "shown"


def sizes(quick: bool) -> dict[str, int]:
    """How much of everything."""
    if quick:
        return {"unlabeled": 4, "steps": 4, "epochs": 1, "iterations": 2}
    return {"unlabeled": 40, "steps": 1500, "epochs": 12, "iterations": 25}


def prepare(work: Path, quick: bool) -> None:
    """Both cohorts, nnU-Net's raw data, its plan made tiny, and the splits."""
    from medmae.data.cohort import open_cohort
    from medmae.data.synthetic.cohort import synthesize
    from medmae.transfer.nnunet.folders import Folders
    from medmae.transfer.nnunet.planning import plan

    labeled = max(LABELED) + VALIDATION + TEST
    synthesize(work / "pool", cases=sizes(quick)["unlabeled"], spacing=SPACING, seed=1, quiet=True)
    spec = synthesize(work / "labeled", cases=labeled, spacing=SPACING, seed=2, quiet=True)
    folders = Folders.use(work / "nnunet")
    home = folders.preprocessed / DATASET
    if not (home / f"{PLANS}.json").is_file():
        cohort = open_cohort(str(spec))
        raw(cohort, folders.raw / DATASET)
        planned = plan(DATASET, folders=folders, planner="ResEncM")
        told = json.loads((home / f"{planned.name}.json").read_text())
        (home / f"{PLANS}.json").write_text(json.dumps(tiny(told), indent=1))
    names = [f"case_{i:03d}" for i in range(max(LABELED) + VALIDATION)]
    splits = []
    for count in LABELED:
        for seed in SEEDS:
            order = random.Random(seed).sample(names[: max(LABELED)], max(LABELED))
            splits.append({"train": sorted(order[:count]), "val": names[max(LABELED) :]})
    (home / "splits_final.json").write_text(json.dumps(splits))


def raw(cohort: Any, folder: Path) -> None:
    """The labeled cohort as a raw nnU-Net dataset with cases in a fixed order; the last ones are for testing."""
    for i, case in enumerate(sorted(cohort.cases, key=lambda c: c.key)):
        part = "Tr" if i < max(LABELED) + VALIDATION else "Ts"
        for m, name in enumerate(cohort.sequences):
            link(case.images[name], folder / f"images{part}" / f"case_{i:03d}_{m:04d}.nii.gz")
        link(case.label, folder / f"labels{part}" / f"case_{i:03d}.nii.gz")
    about = {
        "channel_names": {str(m): name for m, name in enumerate(cohort.sequences)},
        "labels": {"background": 0, "core": 1, "edema": 2, "enhancing": 3},
        "numTraining": max(LABELED) + VALIDATION,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(Path(source).resolve())


def tiny(plans: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's own plan with a network and a patch that a CPU can train in a minute."""
    stages = len(NETWORK["features"])
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=list(PATCH), batch_size=2)
    kwargs = configuration["architecture"]["arch_kwargs"]
    kwargs.update(
        n_stages=stages,
        features_per_stage=list(NETWORK["features"]),
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[list(s) for s in NETWORK["strides"]],
        n_blocks_per_stage=list(NETWORK["blocks"]),
        n_conv_per_stage_decoder=list(NETWORK["decoder_convs"]),
    )
    return {**plans, "plans_name": PLANS}


def pretrain(work: Path, arm: str, quick: bool) -> None:
    """One method on the patients without labels, through the command line."""
    method = arm.partition(",")[0]
    done = work / "runs" / arm / "DONE"
    if done.exists():
        return
    network = {**NETWORK, "kernels": ((3, 3, 3),) * len(NETWORK["features"]), "size": PATCH}
    if method == "simclr":
        network.pop("decoder_convs")
    else:
        network["block"] = (8, 8, 8)
    settings = [f"method.{key}={json.dumps(value)}" for key, value in network.items()]
    settings += ["train.lr=1e-3", "train.validate_every=0", f"train.checkpoint_every={sizes(quick)['steps']}"]
    settings += METHODS[arm]
    command = [sys.executable, "-m", "medmae", "pretrain", "--method", method,
               "--data", str(work / "pool" / "spec.yaml"), "--out", str(done.parent),
               "--steps", str(sizes(quick)["steps"]), "--batch", "4", "--workers", "0",
               "--device", "cpu", "--overwrite", "--quiet",
               *(part for entry in settings for part in ("--set", entry))]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def fold_of(count: int, seed: int) -> int:
    """Which of the splits."""
    return LABELED.index(count) * len(SEEDS) + seed


def run_job(work: Path, arm: str, count: int, seed: int, quick: bool) -> None:
    """Train one network inside nnU-Net, predict the test patients, and write their Dice."""
    import numpy as np
    import torch

    from medmae.data.labels import read_label
    from medmae.evaluate.segmentation import Target, overlap
    from medmae.transfer.nnunet.folders import Folders
    from medmae.transfer.nnunet.prediction import predict
    from medmae.transfer.nnunet.run import train
    from medmae.transfer.nnunet.settings import Settings

    torch.set_num_threads(1)
    place = work / "jobs" / f"{arm}-{count}-{seed}"
    folders = Folders.use(work / "nnunet", results=place / "results")
    lengths = {"epochs": sizes(quick)["epochs"], "iterations": sizes(quick)["iterations"], "validation_iterations": 1}
    weights = {"from_scratch": True} if arm == "scratch" else {"checkpoint": str(work / "runs" / arm / "model")}
    start = time.perf_counter()
    trained = train(
        DATASET,
        folders=folders,
        plans=PLANS,
        fold=fold_of(count, seed),
        settings=Settings(schedule="scratch", min_loaded=0.8, **lengths, **weights),
        device="cpu",
        overwrite=True,
        validate=False,
        seed=seed,
    )
    found = predict(
        trained.folder,
        folders=folders,
        images=folders.raw / DATASET / "imagesTs",
        out=place / "predictions",
        device="cpu",
        mirror=False,
        overwrite=True,
    )
    scores = {}
    for file in found.files:
        same = {value: value for value in range(4)}
        truth, guess = (read_label(path, same)[1] for path in (folders.raw / DATASET / "labelsTs" / file.name, file))
        each = [
            overlap(np.isin(guess, t.prediction), np.isin(truth, t.reference), spacing=(SPACING,) * 3)["dice"]
            for t in (Target("core", (1, 3), (1, 3)), Target("whole", (1, 2, 3), (1, 2, 3)), Target("enh", (3,), (3,)))
        ]
        scores[file.name] = float(np.mean(each))
    result = {"arm": arm, "labeled": count, "seed": seed, "dice": scores, "seconds": time.perf_counter() - start}
    (place / "result.json").write_text(json.dumps(result))


def on_real(work: Path, real: Path) -> str:
    """The networks of the larger training sets on real patients with two of the four sequences, and their table.

    Placeholders stand for the other two. Labels as in BraTS 2013: 1 necrosis, 2 edema, 3 non-enhancing, 4 enhancing.
    """
    import numpy as np

    from medmae.data.labels import read_label
    from medmae.evaluate.segmentation import Target, overlap
    from medmae.transfer.nnunet.folders import Folders
    from medmae.transfer.nnunet.prediction import predict

    folders = Folders.use(work / "nnunet")
    channels = {"t1n": 0, "t1c": 1, "t2w": 2, "t2f": 3}
    cases = sorted(path for path in real.glob("brats13_*") if (path / "seg.nii.gz").is_file())
    for case in cases:
        for name, number in channels.items():
            if (case / f"{name}.nii.gz").is_file():
                link(case / f"{name}.nii.gz", work / "real" / f"{case.name}_{number:04d}.nii.gz")
    targets = (
        Target("whole", (1, 2, 3, 4), (1, 2, 3)),
        Target("core", (1, 3, 4), (1, 3)),
        Target("enhancing", (4,), (3,)),
    )
    count = max(LABELED)
    lines = [f"| start, {count} labeled synthetic patients | whole tumor | core | enhancing |", "|---|---:|---:|---:|"]
    for arm in ARMS:
        scores: dict[str, list[float]] = {target.name: [] for target in targets}
        for seed in SEEDS:
            place = work / "jobs" / f"{arm}-{count}-{seed}"
            model = next(place.glob("results/*/*/plans.json")).parent
            found = predict(model, folders=folders, images=work / "real", out=place / "real", device="cpu",
                            mirror=False, overwrite=True)  # fmt: skip
            for case, file in zip(cases, sorted(found.files), strict=True):
                truth = read_label(case / "seg.nii.gz", {v: v for v in range(5)})
                guess = read_label(file, {v: v for v in range(4)})[1]
                spacing = tuple(float(np.linalg.norm(truth[0].affine[:3, k])) for k in range(3))
                for target in targets:
                    masks = np.isin(guess, target.prediction), np.isin(truth[1], target.reference)
                    scores[target.name].append(overlap(*masks, spacing=spacing)["dice"])
        shown = " | ".join(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in scores.values())
        lines.append(f"| {arm} | {shown} |")
    return (
        f"On {len(cases)} real patients (BraTS 2013, 2 mm, t1c and t2f only, placeholders for t1n and t2w); mean Dice "
        f"over seeds and patients, and the range:\n\n" + "\n".join(lines)
    )


def jobs() -> Iterable[tuple[str, int, int]]:
    return [(arm, count, seed) for count in LABELED for seed in SEEDS for arm in ARMS]


def table(work: Path) -> str:
    """Markdown: mean Dice and its range over seeds, and the paired difference from scratch.

    The interval is a bootstrap over seeds and test patients at once: with three seeds a network that has not left the
    background yet weighs more than any patient.
    """
    import numpy as np

    lines = [
        "| start | labeled patients | Dice | by seed | difference from scratch, paired (95 % interval) |",
        "|---|---:|---:|---:|---:|",
    ]
    for count in LABELED:
        per: dict[str, Any] = {}
        for arm in ARMS:
            files = [work / "jobs" / f"{arm}-{count}-{seed}" / "result.json" for seed in SEEDS]
            results = [json.loads(file.read_text())["dice"] for file in files]
            per[arm] = np.array([[result[case] for case in sorted(result)] for result in results])
        for arm in ARMS:
            by_seed = ", ".join(f"{value:.3f}" for value in per[arm].mean(1))
            versus = "" if arm == "scratch" else _gap(per[arm] - per["scratch"])
            lines.append(f"| {arm} | {count} | {per[arm].mean():.3f} | {by_seed} | {versus} |")
    return "\n".join(lines)


def _gap(apart: Any) -> str:
    """Mean of a table of seeds by patients, with a bootstrap interval over both."""
    import numpy as np

    draw = np.random.default_rng(0)
    seeds, patients = apart.shape
    means = [
        apart[np.ix_(draw.integers(0, seeds, seeds), draw.integers(0, patients, patients))].mean() for _ in range(4000)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{apart.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--real", type=Path, help="folder of BraTS-2013 cases (brats13_*/) to test on as well")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.job:
        arm, count, seed = given.job
        run_job(given.work, arm, int(count), int(seed), given.quick)
        return
    began = time.perf_counter()
    prepare(given.work, given.quick)

    def one(job: tuple[str, int, int]) -> None:
        place = given.work / "jobs" / "-".join(map(str, job))
        if (place / "result.json").exists():
            return
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--work", str(given.work), "--job", *map(str, job)]
        with open(place / "log.txt", "w") as log:
            subprocess.run(
                command + ["--quick"] * given.quick, check=True, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_compile": "f"},
            )  # fmt: skip
        print("done", *job, flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda arm: pretrain(given.work, arm, given.quick), METHODS))
        list(pool.map(one, jobs()))
    how = sizes(given.quick)
    text = (
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"{(time.perf_counter() - began) / 60:.0f} minutes. {how['unlabeled']} unlabeled patients at {SPACING:g} mm, "
        f"{how['steps']} steps of pre-training, {how['epochs'] * how['iterations']} steps of fine-tuning "
        f"(nnU-Net's own schedule), patch {' x '.join(map(str, PATCH))}, features {NETWORK['features']}, "
        f"seeds {SEEDS}, {TEST} test patients; Dice is the mean of whole tumor, core and enhancing.\n\n"
        f"{table(given.work)}\n"
    )
    if given.real:
        text += f"\n{on_real(given.work, given.real)}\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
