"""``medmae probe``: what the frozen features of a checkpoint know, next to an untrained network or another checkpoint.

Two lines of the table differ in the weights that gave the features, never in the patients, folds or classifiers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .console import emit, emit_json, flags, say
from .feature_encoder import RANDOM, VOLUME, Encoder, Items, codes_of, open_data, open_encoder, readable, untrained
from .probe_target import Goal, goal_of

if TYPE_CHECKING:
    from medmae.evaluate.statistics import Interval
    from medmae.transfer.probing import ProbeResult

    from .feature_sets import FeatureSet

GIVEN, HELD_OUT = "given", "heldout"
KINDS = ("linear", "knn", "both")
SPLITS = (HELD_OUT, "train", "val", "test", "all")
METRICS = ("auc", "ap", "balanced_accuracy", "accuracy", "r2", "mae", "spearman", "c_index")


@dataclass(frozen=True)
class Probed:
    """One line of the result: a model, a subset of sequences, a probe."""

    model: str
    subset: str
    features: FeatureSet
    result: ProbeResult
    gain: Mapping[str, Interval] | None


def run(
    checkpoint: Annotated[Path, typer.Option(help="Pre-trained model or run folder.")],
    data: Annotated[str, typer.Option(help="What it is asked about: cohort with a table, folders of classes, a toy.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    target: Annotated[
        str | None, typer.Option(help="Column that is to be told: a class or a number [samples: their class].")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Survival: column with the time.")] = None,
    event: Annotated[str | None, typer.Option(help="Survival: column with the event (1) or censoring (0).")] = None,
    kind: Annotated[str, typer.Option(help="linear, knn or both.")] = "both",
    against: Annotated[
        list[str] | None,
        typer.Option(help="'random' (the same network, untrained) or another model folder; repeatable."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=0, help="Parts the subjects are cut into; 0: learn from train, test on test. [5; samples: 0]"),
    ] = None,
    split: Annotated[
        str, typer.Option(help="With folds: heldout (what no model was trained or chosen on), train, val, test, all.")
    ] = HELD_OUT,
    subsets: Annotated[str, typer.Option(help="given (what a case has), all, or a list such as t1n,t1n+t2w.")] = GIVEN,
    region: Annotated[str | None, typer.Option(help="Region of the label that counts, or foreground.")] = None,
    pool: Annotated[str, typer.Option(help="mean, cls, modality or mean_max.")] = "mean",
    layer: Annotated[int | None, typer.Option(help="Layer of the encoder that is read [default: the last].")] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbors that vote.")] = 20,
    cases: Annotated[int | None, typer.Option(min=1, help="At most so many cases.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows or samples per forward pass.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read samples.")] = 0,
    seed: Annotated[int, typer.Option(help="Of folds, intervals and untrained weights.")] = 0,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Test on the models' training cases, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    identify: Annotated[bool, typer.Option("--identify", help="Write names in place of short content hashes.")] = False,
) -> None:
    """Ask simple classifiers what the frozen features of a checkpoint know.

    Classes: logistic regression (AUC, average precision, balanced accuracy, accuracy) and a weighted vote of the
    nearest neighbors. Numbers: ridge regression (R2, MAE, Spearman). Survival: a Cox model (concordance). Penalties are
    chosen inside the training folds. Intervals are 95 % bootstrap intervals over subjects; with --against, so is the
    difference between the two models.
    """
    from medmae.data.writing import writing

    if kind not in KINDS:
        raise UsageError(f"--kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if split not in SPLITS:
        raise UsageError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
    if folds == 1:
        raise UsageError("--folds 1: at least 2, or 0 to learn from the train part and test on the test part")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")
    if (out / "summary.json").exists() and not overwrite:
        raise UsageError(f"{out} holds results already; add --overwrite to replace them, or choose another --out")
    models = _models(checkpoint, against or [], device=device, layer=layer, seed=seed)
    items = readable(open_data(data, models[0]), models)
    goal = goal_of(items, target=target, time=time, event=event)
    probes = goal.probes(kind)
    if kind == "both" and len(probes) == 1:
        say("Survival is told by the linear probe alone: neighbors cannot vote on censored times.")
    items = _usable(items, goal, models)
    parted = (items.kind != VOLUME and "test" in items.parts.values()) if folds is None else folds == 0
    items, codes, seen = _held_out(items, models, split=split, parted=parted, allow=allow_leakage)
    items, codes = _some(items, codes, cases)
    wanted = _subsets(subsets, models, items)
    found: list[Probed] = []
    for subset in wanted:
        found += _probe_all(
            models, items, goal, probes, subset,
            folds=5 if folds is None else folds, parted=parted, seed=seed, k=k,
            reading={"pool": pool, "region": region, "batch": batch, "precision": precision, "workers": workers},
        )  # fmt: skip
    about = {
        "target": goal.name,
        "kind": goal.kind,
        "cases": len(items.cases),
        "subjects": len({case.subject for case in items.cases}),
        "folds": 0 if parted else int(max(int(p.result.fold.max()) for p in found)) + 1,
        "split": "learned from train, tested on test" if parted else split,
        "models": [{"name": model.name, **_told(found, model.name)} for model in models],
        "pool": pool,
        "layer": layer,
        "region": region or "foreground",
        **seen,
        "interval": "95 % percentile bootstrap over subjects, within classes or events; classifiers stay as they are",
        "seed": seed,
        "precision": precision,
    }
    names = {case.key: case.key if identify else code for case, code in zip(items.cases, codes, strict=True)}
    with writing(out):
        from .probe_report import write

        files = write(out, found, goal, names, about)
    if flags().json:
        from .probe_report import entries

        emit_json({"about": about, "summary": entries(found), "files": {n: os.fspath(p) for n, p in files.items()}})
        return
    from .probe_report import text

    tested = found[0].result
    emit(
        f"{goal.name}: {int(tested.tested.sum())} case(s) tested"
        + ("" if parted else f" in {about['folds']} folds")
        + " [95 % interval over subjects]"
    )
    emit(text(found))
    emit(os.fspath(out))


def _models(checkpoint: Path, against: Sequence[str], *, device: str, layer: int | None, seed: int) -> list[Encoder]:
    """The checkpoint, then what it is compared with; of one kind, each once."""
    models = [open_encoder(checkpoint, device=device, layer=layer)]
    for word in against:
        if word == RANDOM:
            models.append(untrained(models[0], seed=seed, device=device))
        else:
            models.append(open_encoder(word, device=device, layer=layer))
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models would both be called {twice[0]}: give each once, or rename a folder")
    if strange := [model.name for model in models if model.kind != models[0].kind]:
        raise UsageError(f"{models[0].name} reads {models[0].kind} data, and {strange[0]} does not")
    return models


def _usable(items: Items, goal: Goal, models: Sequence[Encoder]) -> Items:
    """The cases with an outcome that every model can see; what is left aside is said."""
    known = [case for case in items.cases if case.key in goal.truth]
    if lacking := len(items.cases) - len(known):
        say(f"{lacking} case(s) left aside: no {goal.name}", style="yellow")
    if items.kind == VOLUME:
        seen = [case for case in known if all(model.can_read(case) for model in models)]
        if lacking := len(known) - len(seen):
            say(
                f"{lacking} case(s) left aside: they lack what one of the models reads",
                style="yellow",
            )
        known = seen
    if not known:
        raise DataError(f"no case with {goal.name} can be seen by every model")
    return replace(items, cases=tuple(known))


def _held_out(
    items: Items, models: Sequence[Encoder], *, split: str, parted: bool, allow: bool
) -> tuple[Items, list[str], dict[str, int]]:
    """The cases to probe, their codes, and how many of the tested ones the models have seen."""
    if not parted and split != HELD_OUT:
        items = items.of(split)
    told = [codes_of(items, model) for model in models if model.weights != "untrained"]
    trained = [any(one[i][1] for one in told) for i in range(len(items.cases))]
    chosen = [any(one[i][2] for one in told) for i in range(len(items.cases))]
    kept = list(range(len(items.cases)))
    if not parted and split == HELD_OUT:
        kept = [i for i in kept if not trained[i] and not chosen[i]]
        if not kept:
            raise DataError(
                f"the models were trained or chosen on all {len(items.cases)} case(s), without labels: give other "
                "cases, --folds 0 (learn from the train part, test on the test part), or --split all --allow-leakage"
            )
    tested = [i for i in kept if not parted or items.parts[items.cases[i].key] == "test"]
    leaked = sum(trained[i] for i in tested)
    if leaked and not allow:
        raise DataError(
            f"{leaked} of {len(tested)} case(s) to be tested were in pre-training, without labels: features of what "
            "was seen may flatter. Choose other cases (--split heldout), or add --allow-leakage to test all the same"
        )
    if leaked:
        say(f"{leaked} of {len(tested)} tested case(s) were in pre-training, without labels", style="yellow")
    seen = {"training_cases": leaked, "validation_cases": sum(chosen[i] for i in tested)}
    return replace(items, cases=tuple(items.cases[i] for i in kept)), [told[0][i][0] for i in kept], seen


def _some(items: Items, codes: list[str], limit: int | None) -> tuple[Items, list[str]]:
    """At most so many cases, drawn by their names: the first ones would be of one class where classes are folders."""
    if limit is None or limit >= len(items.cases):
        return items, codes
    rank = sorted(
        range(len(codes)), key=lambda i: hashlib.sha256(items.cases[i].key.encode(errors="surrogatepass")).hexdigest()
    )
    kept = sorted(rank[:limit])
    return replace(items, cases=tuple(items.cases[i] for i in kept)), [codes[i] for i in kept]


def _subsets(words: str, models: Sequence[Encoder], items: Items) -> list[tuple[str, ...] | None]:
    """What ``--subsets`` means for the sequences that all models know; None is what a case has."""
    if items.kind != VOLUME:
        if words != GIVEN:
            raise UsageError(f"--subsets {words}: {items.kind} data have no sequences to leave out")
        return [None]
    from .segmentation_cases import chosen_subsets

    shared = [name for name in models[0].sequences if all(name in model.sequences for model in models)]
    wanted = chosen_subsets(words, shared, items.cases)
    for model in models:
        for subset in wanted:
            model.check_subset(subset)
    return wanted


def _probe_all(
    models: Sequence[Encoder],
    items: Items,
    goal: Goal,
    probes: Sequence[str],
    subset: tuple[str, ...] | None,
    *,
    folds: int,
    parted: bool,
    seed: int,
    k: int,
    reading: Mapping[str, Any],
) -> list[Probed]:
    """Every model and probe on one subset of sequences, compared with the first model."""
    from medmae.evaluate.rank import collapsed, spread

    from .feature_sets import feature_set

    found: list[Probed] = []
    for model in models:
        features = feature_set(model, items, subset=subset, **reading)
        if found and features.keys != found[0].features.keys:
            raise DataError(
                f"{model.name} and {models[0].name} give features of different cases ({len(features.keys)} and "
                f"{len(found[0].features.keys)} of {len(items.cases)}), so they cannot be compared: probe each alone, "
                "or give cases that both can read"
            )
        if len(features.keys) > 1 and (warning := collapsed(spread(features.values))) is not None:
            say(f"{model.name}: {warning}", style="yellow")
        for probe in probes:
            result = goal.run(
                probe, features.values, features.keys, features.subjects,
                folds=folds, seed=seed, parts=features.splits if parted else None, k=k,
            )  # fmt: skip
            if not result.scores:
                raise DataError(f"nothing can be measured on {len(features.keys)} case(s): none can be compared")
            first = next((p.result for p in found if p.result.kind == probe), None)
            gain = None if first is None else first.compare(result)
            word = GIVEN if subset is None else "+".join(subset)
            found.append(Probed(model.name, word, features, result, gain))
    return found


def _told(found: Sequence[Probed], name: str) -> dict[str, Any]:
    """What is said of a model: where its features come from, and how spread out they are."""
    from dataclasses import asdict

    from medmae.evaluate.rank import spread

    mine = next(p for p in found if p.model == name).features
    about = {word: mine.about[word] for word in ("method", "weights", "features")}
    return {**about, **({} if len(mine.keys) < 2 else {"spread": asdict(spread(mine.values))})}
