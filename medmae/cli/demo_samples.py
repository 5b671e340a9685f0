"""The demo of images, clips, clouds and sound: pre-train on toys without labels, then probe what was learned.

The probe learns the classes from frozen features of training samples and is tested on samples that neither it nor the
method has seen; the same network with its first, random weights goes through the same probe. Every stage is what the
command of that name does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae import __version__
from medmae.atomic import write_bytes, write_text
from medmae.cli.demo_stages import stage
from medmae.demo import Stages, ToyDemo, key_of

if TYPE_CHECKING:
    from medmae.report.values import Report

PRETRAINED, RANDOM = "pre-trained", "random weights"
METRICS = {"accuracy": "accuracy", "auc": "AUC"}
_EXAMPLES = 6  # of each class that are shown


@dataclass(frozen=True)
class ToyResult:
    """Where things are, the table that is printed at the end, and what is in ``probe.json``."""

    report: Path
    table: str
    found: Mapping[str, Any]
    seconds: Mapping[str, float]


def toy_demo(
    folder: Path, settings: ToyDemo, *, overwrite: bool = False, say: Callable[[str], None] = print
) -> ToyResult:
    """Run the stages that are not complete; ``say`` is told what is going on."""
    stages = Stages.open(folder, overwrite=overwrite)
    key = key_of(asdict(settings))
    what = f"pre-training {settings.method} for {settings.steps} steps on {settings.samples} toys"
    with stage(stages, "pretrain", key, ("run/DONE", "run/model"), say, what) as state:
        if state != "done":
            _pretrain(folder, settings, fresh=state == "new")
    what = "a linear probe of its features, and of those of random weights"
    with stage(stages, "probe", key, ("probe.json",), say, what) as state:
        if state != "done":
            write_text(folder / "probe.json", json.dumps(_probe(folder, settings), indent=2) + "\n")
    found = json.loads((folder / "probe.json").read_text("utf-8"))
    with stage(stages, "report", key, ("report.html",), say, "writing the report") as state:
        if state != "done":
            from medmae.report.html import write_report

            write_bytes(folder / "picture.png", examples(settings.kind))
            write_report(folder / "report.html", toy_report(folder, settings, found, seconds=stages.seconds()))
    return ToyResult(folder / "report.html", _table(found), found, stages.seconds())


def _data(settings: ToyDemo) -> str:
    return f"toy-{settings.kind}:{settings.samples}"


def _pretrain(folder: Path, settings: ToyDemo, *, fresh: bool) -> None:
    """What ``medmae pretrain`` does, with settings for a small model and little time."""
    from medmae.cli.pretrain_samples import make_plan, start

    layer = {
        "method": {"name": settings.method, **settings.recipe},
        "data": {
            "path": _data(settings),
            "split": {"val": settings.val, "test": settings.test},
            "reading": dict(settings.reading),
            "check": False,  # toys are not broken
        },
        "train": {
            "steps": settings.steps,
            "batch": settings.batch,
            "lr": settings.lr,
            "seed": settings.seed,
            "device": "cpu",
            "workers": 0,  # a toy is made once and then remembered, by each process for itself
            "validate_every": max(1, settings.steps // 8),
            "checkpoint_every": max(1, settings.steps // 4),
            "picture_every": max(1, settings.steps // 4),
        },
    }
    start(make_plan([("demo", layer)]), out=folder / "run", resume=not fresh, overwrite=fresh)


def _probe(folder: Path, settings: ToyDemo) -> dict[str, Any]:
    """Accuracy and area under the curve of both networks on held-out samples, with 95 % intervals."""
    from medmae.cli.feature_encoder import Items, open_encoder, untrained
    from medmae.cli.feature_sets import feature_set
    from medmae.data.kinds.listing import list_samples
    from medmae.transfer.probing import linear_probe

    split = {"val": settings.val, "test": settings.test}
    listing = list_samples(_data(settings), kind=settings.kind, split=split)
    parts = {sample.key: part for part, samples in listing.split().items() for sample in samples}
    items = Items(listing.samples, parts, listing, settings.kind)
    trained = open_encoder(folder / "run", device="cpu")
    results = {}
    for name, encoder in (
        (PRETRAINED, trained),
        (RANDOM, untrained(trained, seed=settings.seed, device="cpu")),
    ):
        features = feature_set(encoder, items, batch=settings.batch)
        labels = [str(label) for label in features.labels]
        results[name] = linear_probe(
            features.values, labels, features.subjects, seed=settings.seed, parts=features.splits, metric="accuracy"
        )

    def told(scores: Mapping[str, Any]) -> dict[str, list[float]]:
        return {name: [scores[name].mean, scores[name].low, scores[name].high] for name in METRICS if name in scores}

    return {
        "kind": settings.kind,
        "method": settings.method,
        "classes": list(listing.classes),
        "samples": {part: sum(p == part for p in parts.values()) for part in ("train", "val", "test")},
        "scores": {name: told(result.scores) for name, result in results.items()},
        "gain": told(results[PRETRAINED].compare(results[RANDOM])),
    }


def _table(found: Mapping[str, Any]) -> str:
    """Networks down, metrics across."""
    from medmae.evaluate.cells import aligned

    metrics = [name for name in METRICS if name in found["scores"][PRETRAINED]]
    lines = [["features", *(METRICS[name] for name in metrics)]]
    for name, scores in found["scores"].items():
        lines.append([name, *(_interval(scores[metric]) for metric in metrics)])
    lines.append(["chance", *(f"{_chance(found, metric):.2f}" for metric in metrics)])
    lines.append(["gain", *(_interval(found["gain"][metric], signed=True) for metric in metrics)])
    return aligned(lines)


def _interval(values: list[float], *, signed: bool = False) -> str:
    mean, low, high = (f"{value:+.2f}" if signed else f"{value:.2f}" for value in values)
    return f"{mean} [{low}, {high}]"


def _chance(found: Mapping[str, Any], metric: str) -> float:
    return 1 / len(found["classes"]) if metric == "accuracy" else 0.5


def toy_report(folder: Path, settings: ToyDemo, found: Mapping[str, Any], *, seconds: Mapping[str, float]) -> Report:
    """Everything this demo has to show."""
    from medmae.cli.report import CAPTIONS, environment_facts, qc_pictures, read_lines
    from medmae.report import run as parts
    from medmae.report.values import Cell, FactList, Picture, Report, Table, Tile

    run, scores, gain = folder / "run", found["scores"], found["gain"]["accuracy"]
    metrics = [name for name in METRICS if name in scores[PRETRAINED]]
    better = gain[1] > 0
    rows: list[tuple[Cell | str, ...]] = [
        (name, *(Cell(f"{each[m][0]:.2f}", f"{each[m][1]:.2f} to {each[m][2]:.2f}", best=name == PRETRAINED and better)
                 for m in metrics))
        for name, each in scores.items()
    ]  # fmt: skip
    rows.append(("chance", *(Cell(f"{_chance(found, m):.2f}", tone="quiet") for m in metrics)))
    count = found["samples"]
    spent = {name: f"{s:.0f} s" for name, s in seconds.items()} | {"all stages": f"{sum(seconds.values()):.0f} s"}
    caption = f"Toys that are validated on. {CAPTIONS[settings.kind]}"
    return Report(
        title=f"medmae demo: {settings.kind}",
        subtitle=f"Pre-training {settings.method} on toys without labels, and a linear probe of what it learned",
        headline=(
            Tile("Accuracy, pre-trained", f"{scores[PRETRAINED]['accuracy'][0]:.0%}", "linear probe, held-out samples"),
            Tile("Accuracy, random weights", f"{scores[RANDOM]['accuracy'][0]:.0%}", "same network, same probe"),
            Tile("Gain", f"{gain[0]:+.0%}", f"95 % interval {gain[1]:+.0%} to {gain[2]:+.0%}",
                 "good" if better else "bad"),
        ),
        summary=(
            f"{settings.method} learned for {settings.steps} steps to fill in what was hidden of {count['train']} "
            f"samples, and was told no class. A linear classifier then learned the {len(found['classes'])} classes "
            f"({', '.join(found['classes'])}) from its frozen features of the same samples, and was tested on "
            f"{count['test']} that nothing had seen.",
            "The gain over random weights is beyond its 95 % interval."
            if better
            else "The gain over random weights is not beyond its 95 % interval: train for more steps.",
        ),
        tables=(Table("Linear probe", ("features", *(METRICS[m] for m in metrics)), tuple(rows),
                      note="Small figures: 95 % bootstrap interval over the held-out samples."),),
        curves=parts.training_charts(read_lines(run / "metrics.jsonl")),
        pictures=(
            Picture("The toys", (folder / "picture.png").read_bytes(), "One class per row."),
            *qc_pictures(run / "qc", most=2, caption=caption),
        ),
        facts=(
            FactList("Time of each stage", spent),
            *parts.fact_lists({"name": settings.method, **settings.recipe}, title="Model"),
            *environment_facts(run),
        ),
        notes=(
            "Toys are made by formulas; a class differs from the others in one thing only. The numbers show that the "
            "machinery works, not what to expect of real data.",
        ),
        footer=f"medmae {__version__}.",
    )  # fmt: skip


def examples(kind: str) -> bytes:
    """Some toys of every class as a PNG; of a clip its frames from left to right."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from medmae.data.kinds import toys

    name = f"toy-{kind}"
    known = toys.classes(name)
    figure = Figure(figsize=(1.5 * _EXAMPLES, 1.4 * len(known)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    for row, label in enumerate(known):
        for column in range(_EXAMPLES):
            array = toys.generate(name, row + len(known) * (0 if kind == "video" else column))[0]
            place = (len(known), _EXAMPLES, row * _EXAMPLES + column + 1)
            if kind == "points":
                axis: Any = figure.add_subplot(*place, projection="3d")
                axis.scatter(*array[::4].T, s=1, c=array[::4, 2], cmap="viridis", linewidths=0)
                axis.set_box_aspect(np.ptp(array, 0))
            else:
                axis = figure.add_subplot(*place)
                if kind == "audio":
                    axis.specgram(array, NFFT=512, Fs=16000, noverlap=256)
                elif kind == "video":
                    axis.imshow(array[column * (len(array) - 1) // (_EXAMPLES - 1)])
                else:
                    axis.imshow(array.transpose(1, 2, 0))
            axis.set_axis_off()
            if column == 0:
                axis.set_title(label, fontsize=9, loc="left")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
