"""Methods for images and clips on volumes, beside BM-MAE: the same cohort, window, patches, widths, steps and masks.

    python benchmarks/generic_volumes.py --work FOLDER [--methods ...] [--steps 1500] [--quick]

`medmae data synthesize --cases 66 --spacing 4 --seed 0` makes the patients: 40 train, 20 are held out, and 6 are left
for validation, which is not used. Every method is trained by `medmae pretrain` on the same 40, with raw
voxels of the normalized volume as targets, the same window, patch, mask ratio, encoder and decoder width and depth,
number of steps, batch, learning rate and seed:

- `bm_mae`: a token per sequence and place, one joint decoder; Dirichlet shares, no sequence hidden whole. Once with
  its detail path and once without, where it is nearest to the others;
- `multimae` in 3-D: the same masks, one decoder per sequence;
- `ca_mae` in 3-D: sequences are channels that share one embedding, tokens hidden at random;
- `mae_st`: slices along the first axis are its time, all sequences are stacked as values of one voxel. It has a
  quarter of the tokens, each of four times the values: the same share of voxels is visible, for less computation.

The error is that of hidden voxels inside the foreground of the held-out patients, averaged over patients, computed by
one function (``volume_errors.py``) from each method's own predictions and the same masks, in squared standard
deviations of a volume (predicting its mean costs about 1). Three masks: *same places* hidden in all sequences at the
ratio of training, which all methods can be asked; *anywhere* among all tokens, and a *whole sequence* hidden while the
others are shown, which a method that stacks sequences cannot be asked. The probes are a ridge regression of the
logarithm of the tumor's volume and a logistic regression of the class ``idh`` on frozen features (mean over the
foreground, everything visible) in five folds over all patients; pre-training has seen the images of 40 of them, never
an outcome. *Untrained* is the network of ``bm_mae`` before its first step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from toy_probes import machine
from turns import ROOT

SIZE, PATCH, RATIO = (40, 48, 40), (8, 8, 8), 0.75
CASES, SPACING = 66, 4
NETWORK = {
    "size": list(SIZE), "patch": list(PATCH), "mask_ratio": RATIO, "width": 192, "depth": 6, "heads": 6,
    "decoder_width": 192, "decoder_depth": 2, "decoder_heads": 6,
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "bm_mae": ("bm_mae", {"drop": 0.0, "complete": 0.0, "normalize_target": False}),
    "bm_mae without detail": ("bm_mae", {"drop": 0.0, "complete": 0.0, "normalize_target": False, "detail": False}),
    "multimae": ("multimae", {"foreground_loss": True, "normalized": [], "absolute": []}),
    "ca_mae": ("ca_mae", {"foreground_loss": True, "layer_scale": 0.1, "drop_path": 0.0}),
    "mae_st": ("mae_st", {"normalize_target": False, "target_stride": 1}),
}
UNTRAINED = "untrained"


def cohort_of(work: Path, cases: int) -> Path:
    """The spec of the synthetic patients, made where they are not there yet."""
    from medmae.data.synthetic.cohort import synthesize

    return synthesize(work / f"cohort-{cases}", cases=cases, spacing=SPACING, seed=0, quiet=True)


def parts_of(spec: Path) -> Any:
    """The cohort with the split that all methods share."""
    from medmae.data.cohort import open_cohort
    from medmae.data.spec import Split

    cohort = open_cohort(str(spec))
    return type(cohort)(**{
        **{name: getattr(cohort, name) for name in cohort.__dataclass_fields__},
        "spec": cohort.spec.model_copy(update={"split": Split(by="subject", seed=0, **SHARES)}),
    })  # fmt: skip


SHARES = {"val": 0.09, "test": 0.3}


def train(name: str, spec: Path, out: Path, *, steps: int, batch: int, network: dict[str, Any], seed: int) -> float:
    """`medmae pretrain` in this process; the seconds it took. A finished run with these settings is kept."""
    from medmae.cli import main as medmae

    method, own = METHODS[name]
    values = {**network, **own}
    words = ["pretrain", "--data", spec, "--method", method, "--out", out, "--steps", steps, "--batch", batch,
             "--device", "cpu", "--workers", 0, "--seed", seed, "--overwrite"]  # fmt: skip
    settings = {
        **{f"method.{key}": value for key, value in values.items()},
        **{f"data.split.{part}": share for part, share in SHARES.items()},
        "train.lr": 5e-4, "data.tier": "memory", "data.foreground_share": 0.0, "train.picture_every": 0,
        "train.validate_every": 0, "train.checkpoint_every": 0,
    }  # fmt: skip
    done, told = out / "benchmark.json", {"words": [str(w) for w in words], "settings": settings}
    if done.is_file() and (before := json.loads(done.read_text()))["told"] == json.loads(json.dumps(told)):
        return float(before["seconds"])
    if out.exists():
        shutil.rmtree(out)
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    begin = time.perf_counter()
    if code := medmae(["--quiet", *(str(word) for word in words)]):
        raise SystemExit(f"{name}: medmae pretrain ended with exit code {code}")
    seconds = time.perf_counter() - begin
    done.write_text(json.dumps({"seconds": seconds, "told": told}))
    return seconds


def read(cohort: Any) -> dict[str, Any]:
    """All cases in the window of the methods: images, foreground, keys, outcomes, parts."""
    import numpy as np
    import torch

    from medmae.data.inference import load_case
    from medmae.data.preprocess import label_remap

    names = cohort.sequences
    parts = {case.key: part for part, cases in cohort.split().items() for case in cases}
    images, masks, volumes, idh = [], [], [], []
    for case in cohort.cases:
        ready = load_case(case.images, cohort.spec, mask=case.mask, label=case.label, remap=label_remap(cohort.spec))
        images.append(torch.stack([window(torch.from_numpy(ready.images[name])) for name in names]))
        masks.append(window(torch.from_numpy(ready.foreground).float())[None])
        label: Any = ready.label
        volumes.append(math.log1p(float((label > 0).sum()) * SPACING**3 / 1000))
        idh.append(str(case.table["idh"]))
    return {
        "images": torch.stack(images),
        "foreground": torch.stack(masks),
        "key": torch.arange(len(images)),
        "test": torch.tensor([parts[case.key] == "test" for case in cohort.cases]),
        "subjects": [case.subject for case in cohort.cases],
        "volume": np.array(volumes),
        "idh": idh,
    }


def window(volume: Any) -> Any:
    """The central part of a volume, or the volume in the middle of zeros, as large as a window."""
    import torch

    made = torch.zeros(SIZE)
    into, out = [], []
    for n, s in zip(volume.shape, SIZE, strict=True):
        shared = min(n, s)
        out.append(slice((n - shared) // 2, (n - shared) // 2 + shared))
        into.append(slice((s - shared) // 2, (s - shared) // 2 + shared))
    made[tuple(into)] = volume[tuple(out)]
    return made


def reconstruction(method: Any, cases: dict[str, Any]) -> dict[str, list[float] | None]:
    """Mean error of the held-out cases per sequence, by law of masking."""
    from volume_errors import LAWS, errors

    test = cases["test"]
    held = [cases[name][test] for name in ("images", "foreground", "key")]
    found: dict[str, list[float] | None] = {}
    for law in LAWS:
        told = errors(method, *held, law=law, ratio=RATIO)
        found[law] = None if told is None else told.nanmean(0).tolist()
    return found


def probes(method: Any, cases: dict[str, Any], *, seed: int = 0) -> dict[str, list[float]]:
    """What frozen features know: R2 of the tumor's volume and AUC of idh, each with its interval."""
    import torch
    from volume_errors import given

    from medmae.transfer.backbone import features
    from medmae.transfer.probing import linear_probe, ridge_probe

    rows = []
    with torch.no_grad():
        for first in range(0, len(cases["images"]), 4):
            part = [cases[name][first : first + 4] for name in ("images", "foreground", "key")]
            rows.append(features(method, given(method, *part)))
    values, who = torch.cat(rows).numpy(), cases["subjects"]
    told = {
        "volume": ridge_probe(values, cases["volume"], who, seed=seed).scores["r2"],
        "idh": linear_probe(values, cases["idh"], who, seed=seed).scores["auc"],
    }
    return {name: [score.mean, score.low, score.high] for name, score in told.items()}


def blank(cases: dict[str, Any]) -> dict[str, list[float] | None]:
    """The error of predicting the mean of the volume, which is zero, everywhere."""
    import torch
    from volume_errors import LAWS, squared_errors

    images, foreground = (cases[name][cases["test"]] for name in ("images", "foreground"))
    everywhere = torch.ones_like(images, dtype=torch.bool)
    mean = squared_errors(torch.zeros_like(images), images, everywhere, foreground).nanmean(0).tolist()
    return dict.fromkeys(LAWS, mean)


# --- the report ---------------------------------------------------------------------------------------------------


def tables(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per method."""
    from volume_errors import LAWS

    lines = [
        f"| method | parameters, million | tokens | min | {' | '.join(f'error, {law}' for law in LAWS)} | "
        "tumor volume, R2 [95 %] | idh, AUC [95 %] |",
        "|---|---:|---:|---:|" + "---:|" * len(LAWS) + "---|---|",
    ]
    for name, row in found.items():
        told = [row["error"].get(law) for law in LAWS]
        error = " | ".join("cannot be asked" if e is None else f"{sum(e) / len(e):.3f}" for e in told)
        probed = row.get("probes") or {}
        scores = (f"{v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]" if (v := probed.get(key)) else "" for key in ("volume", "idh"))
        facts = (f"{row[key]:{form}}" if key in row else "" for key, form in (
            ("parameters", ".2f"), ("tokens", "d"), ("minutes", ".1f")
        ))  # fmt: skip
        lines.append(f"| {name} | {' | '.join(facts)} | {error} | {' | '.join(scores)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not trained yet, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="cohort and runs are kept here")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="20 cases, 4 steps, a small network: to try this out")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "generic_volumes.json")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from medmae.checkpoint import load_model

    torch.set_num_threads(options.threads)
    network = dict(NETWORK)
    if options.quick:
        options.cases, options.steps, options.batch = 20, 4, 2
        network |= {"width": 48, "depth": 1, "heads": 4, "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 4}
    spec = cohort_of(options.work, options.cases)
    cohort = parts_of(spec)
    cases = read(cohort)
    found: dict[str, dict[str, Any]] = {"mean of the volume": {"error": blank(cases)}}
    for name in options.methods:
        out = options.work / "runs" / name.replace(" ", "_")
        seconds = train(name, spec, out, steps=options.steps, batch=options.batch, network=network, seed=options.seed)
        loaded = load_model(out)
        method: Any = loaded.method.eval()
        if UNTRAINED not in found:
            from medmae.find import find

            torch.manual_seed(options.seed)
            fresh = find(loaded.config["method"]).build(**loaded.config["recipe"]).eval()
            found[UNTRAINED] = {"error": reconstruction(fresh, cases), "probes": probes(fresh, cases)}
        grid = method.tokenizer.grid
        found[name] = {
            "parameters": sum(p.numel() for p in method.parameters()) / 1e6,
            "tokens": grid.length * (len(method.tokenizer.names)),
            "minutes": seconds / 60,
            "error": reconstruction(method, cases),
            "probes": probes(method, cases),
        }
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    count = int(cases["test"].sum())
    where = (
        f"{machine(options.threads)} {len(cohort.cases)} patients, {count} held out, {options.steps} steps of "
        f"{options.batch}, window {SIZE}, patch {PATCH}, ratio {RATIO}, seed {options.seed}."
    )
    print(f"{where}\n\n{tables(found)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    told = {"where": where, "network": network, "methods": {n: METHODS[n] for n in options.methods}, "results": found}
    options.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
