"""Does pre-training teach anything? One method per kind of data, on data that is made up, within minutes.

    python benchmarks/toy_probes.py [--methods mae fcmae videomae point_mae audio_mae] [--seeds 0] [--quick]

Three arms share the network, the samples, the number of steps, the batch, the optimizer and its schedule:

- *random*: the network before its first step (batch norms, where it has some, have seen the data);
- *pre-trained*: ``medmae.engine`` on the training part, without labels;
- *supervised*, for the first seed only, as a ceiling: the same encoder and mean, a layer norm and a linear map,
  trained by cross-entropy on the labels of the same samples.

Of the first two a logistic regression on frozen features (the mean over places) is learned from the
training part with its labels, its penalty chosen on the validation part; of the third the trained head answers. All are
scored on the test part, which nothing was trained or chosen on. A seed draws the weights, the order of samples, the
crops and the masks; the data are the same for all seeds. Settings of every method are in ``SETUPS`` below; samples are
made once per process and kept, as files would be. The goal is that pre-training wins over random weights for each kind.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turns import ROOT

STREAM = 0x696E6974  # of the initial weights, as ``medmae pretrain`` has it
ARMS = ("random", "pre-trained", "supervised")


@dataclass(frozen=True)
class Setup:
    """One method on the toy of its kind.

    Attributes:
        kind: of data.
        recipe: of the method, beside its defaults.
        steps: of pre-training and of supervised training.
        batch: samples per step.
        lr: the highest learning rate of pre-training.
        supervised_lr: the same of supervised training.
        reading: how samples are varied; the same for both trainings.
        samples: that are made; six tenths train, one validates, three test.
    """

    kind: str
    recipe: Mapping[str, Any]
    steps: int
    batch: int
    lr: float = 1e-3
    supervised_lr: float = 1e-3
    reading: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 3000


# Grounds of toy images and videos are smooth: normalized per patch, their noise would be most of the target.
SMALL = {"width": 96, "depth": 6, "heads": 4, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4}
SETUPS = {
    "mae": Setup(
        "image",
        {**SMALL, "size": (64, 64), "patch": (8, 8), "normalize_target": False},
        steps=1500,
        batch=64,
        reading={"area": (0.5, 1.0)},
    ),
    "fcmae": Setup(
        "image",
        {"size": (64, 64), "stem": 2, "widths": (24, 48, 96), "depths": (1, 2, 2), "kernel": 5, "decoder_width": 96,
         "normalize_target": False},
        steps=1200,
        batch=32,
        reading={"area": (0.5, 1.0)},
    ),
    "videomae": Setup(
        "video",
        {**SMALL, "size": (8, 64, 64), "patch": (2, 16, 16), "mask_ratio": 0.75, "normalize_target": False},
        steps=1500,
        batch=32,
        reading={"stride": 2, "smallest": 0.8},
        samples=2500,
    ),
    "point_mae": Setup(
        "points",
        {"groups": 32, "group_size": 16, "width": 96, "depth": 4, "heads": 4, "decoder_depth": 2, "decoder_heads": 4,
         "hidden": (32, 64, 96), "drop_path": 0.0},
        steps=1200,
        batch=32,
        reading={"points": 256, "turn": "any"},
    ),
    "audio_mae": Setup(
        "audio",
        {**SMALL, "size": (192, 64), "patch": (16, 16), "mask_ratio": 0.75},
        steps=1000,
        batch=32,
    ),
}  # fmt: skip


# --- one run ------------------------------------------------------------------------------------------------------


def keep_toys() -> None:
    """Make every toy sample once in this process."""
    from medmae.data.kinds import toys

    if not hasattr(toys.generate, "cache_info"):
        toys.generate = functools.lru_cache(maxsize=None)(toys.generate)


def source_of(name: str, setup: Setup) -> Any:
    """The samples of a setup, read as its method wants them."""
    from medmae.data.kinds import kind_of
    from medmae.data.kinds.listing import list_samples
    from medmae.data.kinds.source import SampleSource
    from medmae.find import find

    recipe = find(name).recipe(**setup.recipe)
    listing = list_samples(
        f"toy-{setup.kind}:{setup.samples}", kind=setup.kind, split={"val": 0.1, "test": 0.3, "seed": 0}
    )
    return SampleSource(listing, kind_of(setup.kind, recipe, setup.reading), quiet=True, check=False)


def fresh(name: str, setup: Setup, seed: int) -> Any:
    """The method with the weights of a seed."""
    import torch

    from medmae.core.random import mix
    from medmae.find import find

    torch.manual_seed(mix(seed, STREAM))
    return find(name).build(**setup.recipe)


def train(module: Any, source: Any, setup: Setup, *, lr: float, seed: int) -> float:
    """Train as ``medmae pretrain`` does, without files to keep; the seconds it took."""
    from medmae.engine.settings import TrainSettings
    from medmae.engine.trainer import pretrain

    settings = TrainSettings(
        steps=setup.steps, batch=setup.batch, lr=lr, device="cpu", workers=0, seed=seed, validate_every=0,
        checkpoint_every=0, picture_every=0, log_every=100,
    )  # fmt: skip
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(
            module,
            source,
            settings,
            folder=Path(folder) / "run",
            recipe={"method": {"name": type(module).__name__}},
            save_model=lambda path, trained, about: path.mkdir(parents=True, exist_ok=True),
            say=lambda text: None,
            quiet=True,
        )
    return time.perf_counter() - begin


def supervised(method: Any, classes: int) -> Any:
    """A classifier on what is read off the method's encoder, as something that the engine trains."""
    import torch
    from torch import nn

    from medmae.core.method import Method
    from medmae.transfer.backbone import Backbone

    class Supervised(Method):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone(method)
            self.sequences = self.backbone.sequences
            width = self.backbone.width
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

        def answer(self, batch: Any) -> Any:
            return self.head(self.backbone(batch).pooled("mean"))

        def forward(self, batch: Any) -> dict[str, Any]:
            return {"cross_entropy": torch.nn.functional.cross_entropy(self.answer(batch), batch["target_class"])}

    return Supervised()


def seen(source: Any, at: Any, *, batch: int = 64) -> tuple[Any, list[str], list[str]]:
    """``at(batch)`` for every sample, read as for validation: rows, labels, parts of the split."""
    import numpy as np
    import torch

    parts = {s.key: part for part, samples in source.listing.split().items() for s in samples}
    samples = source.listing.samples
    rows = []
    with torch.no_grad():
        for given in source.in_order(samples, batch=batch):
            rows.append(at(source.finish(given, device="cpu", training=False)).float().numpy())
    return np.concatenate(rows), [s.label for s in samples], [parts[s.key] for s in samples]


def probe(method: Any, source: Any, *, seed: int) -> Any:
    """A logistic regression on the frozen features of a method."""
    from medmae.transfer.backbone import Backbone
    from medmae.transfer.probing import linear_probe

    backbone = Backbone(method).eval()
    values, labels, parts = seen(source, lambda batch: backbone(batch).pooled("mean"))
    names = [sample.subject for sample in source.listing.samples]
    return linear_probe(values, labels, names, parts=parts, seed=seed, metric="accuracy")


def settle_norms(method: Any, source: Any, *, batches: int = 50, batch: int = 32) -> None:
    """Let batch norms of an untrained network take their statistics from the data; nothing else changes."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    if not any(isinstance(part, _BatchNorm) for part in method.modules()):
        return
    method.train()
    stream = source.train(start=0, batch=batch, rank=0, world=1, seed=0)
    with torch.no_grad():
        for _ in range(batches):
            method(source.finish(next(stream), device="cpu", training=True))


def taught(name: str, setup: Setup, *, seed: int, source: Any) -> tuple[float, float]:
    """Accuracy of supervised training on the test part, and the seconds it took."""
    import numpy as np

    classes = source.listing.classes
    told: Any = supervised(fresh(name, setup, seed), len(classes))
    seconds = train(told, source, setup, lr=setup.supervised_lr, seed=seed)
    told.eval()
    logits, labels, parts = seen(source, told.answer)
    right = logits.argmax(1) == np.array([classes.index(label) for label in labels])
    return float(right[np.array([part == "test" for part in parts])].mean()), seconds


def run(name: str, setup: Setup, *, seed: int, source: Any, ceiling: bool) -> dict[str, Any]:
    """The arms of one method and seed: test accuracy, the paired difference and its interval, seconds.

    The supervised arm is left out without ``ceiling``.
    """
    blank = fresh(name, setup, seed)
    settle_norms(blank, source)
    before = probe(blank, source, seed=seed)

    trained = fresh(name, setup, seed)
    seconds = {"pre-trained": train(trained, source, setup, lr=setup.lr, seed=seed)}
    after = probe(trained, source, seed=seed)

    accuracy = {arm: each.scores["accuracy"].mean for arm, each in (("random", before), ("pre-trained", after))}
    if ceiling:
        accuracy["supervised"], seconds["supervised"] = taught(name, setup, seed=seed, source=source)
    gain = after.compare(before)["accuracy"]
    return {
        "method": name,
        "kind": setup.kind,
        "seed": seed,
        "accuracy": accuracy,
        "auc": {"random": before.scores["auc"].mean, "pre-trained": after.scores["auc"].mean},
        "gain": [gain.mean, gain.low, gain.high],
        "chance": 1 / len(source.listing.classes),
        "tested": len(after.subjects),
        "seconds": seconds,
    }


# --- the report ---------------------------------------------------------------------------------------------------


def tables(found: list[dict[str, Any]]) -> str:
    """Markdown: means over seeds, each seed's gain, and whether the goal is met."""
    lines = [
        "| method (kind) | chance | random | **pre-trained** | supervised | gain over random, each seed [95 %] | won | "
        "s pre-training / supervised |",
        "|---|---:|---:|---:|---:|---|---|---:|",
    ]

    def mean(results: list[dict[str, Any]], what: str, arm: str, form: str) -> str:
        known = [result[what][arm] for result in results if arm in result[what]]
        return format(statistics.mean(known), form) if known else "-"

    for name in dict.fromkeys(result["method"] for result in found):
        mine = [result for result in found if result["method"] == name]
        gains = "; ".join(f"{r['gain'][0]:+.3f} [{r['gain'][1]:+.3f}, {r['gain'][2]:+.3f}]" for r in mine)
        certain = sum(r["gain"][1] > 0 for r in mine)
        won = "yes" if certain == len(mine) else f"**{certain} of {len(mine)} seeds**"
        random, pretrained, told = (mean(mine, "accuracy", arm, ".3f") for arm in ARMS)
        took = " / ".join(mean(mine, "seconds", arm, ".0f") for arm in ARMS[1:])
        lines.append(
            f"| `{name}` ({mine[0]['kind']}) | {mine[0]['chance']:.3f} | {random} | **{pretrained}** | {told} | "
            f"{gains} | {won} | {took} |"
        )
    lines += ["", "Accuracy on the test part. *Won*: the interval of the paired difference lies above zero."]
    return "\n".join(lines)


def machine(threads: int) -> str:
    """One line on where and when this was measured."""
    import torch

    info = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if info.is_file():
        cpu = [line for line in info.read_text("utf-8").splitlines() if line.startswith("model name")]
        name = cpu[0].split(":", 1)[1].strip() if cpu else name
    load = f", load average at the end {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{datetime.date.today()}, {name}, {threads} threads, torch {torch.__version__}{load}."


def main() -> None:
    """Run and print; results are written after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=tuple(SETUPS), default=list(SETUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help="ten steps of 120 samples, to try this script out")
    parser.add_argument("--steps", type=int, help="in place of each method's own")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "toy_probes.json")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import dataclasses

    import torch

    from medmae.engine.allocator import keep_freed_memory

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    keep_toys()
    found: list[dict[str, Any]] = []
    told: dict[str, Any] = {"where": "", "setups": {}, "results": found}
    for name in options.methods:
        setup = SETUPS[name]
        if options.quick:
            setup = dataclasses.replace(setup, steps=10, samples=120)
        if options.steps:
            setup = dataclasses.replace(setup, steps=options.steps)
        told["setups"][name] = dataclasses.asdict(setup)
        source = source_of(name, setup)
        for seed in options.seeds:
            ceiling = seed == options.seeds[0]
            found.append(run(name, setup, seed=seed, source=source, ceiling=ceiling))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            told["where"] = machine(options.threads)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(f"{told['where']} Seeds {', '.join(map(str, options.seeds))}.\n\n{tables(found)}")


if __name__ == "__main__":
    main()
