"""``medmae finetune classify``, ``survive`` and ``regress``: from a clinical table to one model for every subset.

This file says what the options are; ``finetune_run`` does what they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from medmae.core.errors import UsageError

from .finetune_run import Fitted, Goal, Wish, run

Data = Annotated[str, typer.Option(help="Cohort: spec with a table.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; the model is in OUT/model.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Pre-trained model or run folder to start from.")]
Scratch = Annotated[
    bool, typer.Option("--from-scratch", help="Random weights: of the network of --checkpoint, or of --method.")
]
MethodName = Annotated[str | None, typer.Option(help="With --from-scratch: name of a method (bm_mae).")]
Scale = Annotated[str | None, typer.Option(help="With --from-scratch: named size of the method, such as tiny.")]
Folds = Annotated[int, typer.Option(min=1, help="Folds by subject, balanced; 1 is the split of the spec.")]
Fold = Annotated[int, typer.Option(min=0, help="Which of them is held out, from 0.")]
Fraction = Annotated[float, typer.Option(help="Share of the training subjects that is used, in (0, 1].")]
Head = Annotated[str, typer.Option(help="linear, mlp or attentive.")]
Pool = Annotated[str, typer.Option(help="mean, cls, modality or mean_max (not with the attentive head).")]
Layer = Annotated[int | None, typer.Option(help="Layer of the encoder that is read [default: the last].")]
Schedule = Annotated[str, typer.Option(help="full, frozen (head only), warmup (encoder waits), sawtooth.")]
LayerDecay = Annotated[float, typer.Option(help="Factor of the learning rate per layer, from the head down.")]
Dropout = Annotated[float, typer.Option(help="How often a sample loses sequences in training.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training cases [default: 50].")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps, in place of epochs.")]
Batch = Annotated[int | None, typer.Option(help="Samples per step [default: 4].")]
Rate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate [default: 1e-4; 1e-3 if frozen].")]
Patience = Annotated[int | None, typer.Option(help="Validations without progress before it stops; 0: never [10].")]
Seed = Annotated[int, typer.Option(help="Of folds, head, order, crops and dropout.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read data.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of prepared cases [default: the user's cache].")]
Set = Annotated[list[str] | None, typer.Option("--set", help="train.key=value, repeatable: train.ema=0.999.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; start it if there is none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]


def _goal(
    kind: str, *, columns: Mapping[str, str], head: str, pool: str, stratum: str | None, fit: Callable[[Any], Fitted]
) -> Goal:
    """A task of the clinical table.

    Raises:
        UsageError: a head or pooling that does not exist.
    """
    from medmae.data.targets import TargetSource, read_outcomes
    from medmae.transfer.heads import KINDS
    from medmae.transfer.pooling import POOLS

    for option, value, legal in (("head", head, KINDS), ("pool", pool, POOLS)):
        if value not in legal:
            raise UsageError(f"--{option} must be one of {', '.join(legal)}, not {value!r}")
    return Goal(
        kind=kind,
        target=", ".join(columns.values()),
        head={"kind": head, "pool": pool},
        outcomes=lambda cohort, sequences: read_outcomes(cohort.cases, cohort.spec, columns=columns),
        fit=fit,
        stratum=lambda outcome: "" if stratum is None else str(outcome[stratum]),
        columns=columns,
        source=lambda volumes, outcomes, fitted: TargetSource(volumes, outcomes, classes=fitted.classes),
    )


def classify(
    data: Data,
    target: Annotated[str, typer.Option(help="Column of the table that is to be told: a class or an event.")],
    out: Out,
    checkpoint: Checkpoint = None,
    from_scratch: Scratch = False,
    method: MethodName = None,
    scale: Scale = None,
    folds: Folds = 1,
    fold: Fold = 0,
    fraction: Fraction = 1.0,
    head: Head = "linear",
    pool: Pool = "mean",
    layer: Layer = None,
    class_weights: Annotated[str, typer.Option(help="balanced or none.")] = "balanced",
    schedule: Schedule = "full",
    layer_decay: LayerDecay = 1.0,
    modality_dropout: Dropout = 0.5,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    patience: Patience = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = 2,
    cache: Cache = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune to a class of the clinical table, for every subset of the sequences.

    Patients that lack sequences stay in; those without a class are left aside. The model with the lowest validation
    loss is kept; the validation cases are always seen with the same subsets.
    """
    if class_weights not in ("balanced", "none"):
        raise UsageError(f"--class-weights must be balanced or none, not {class_weights!r}")

    def fit(outcomes: Sequence[Any]) -> Fitted:
        from medmae.data import targets

        names = targets.class_names(outcomes)
        weights = targets.class_weights(outcomes, names) if class_weights == "balanced" else None
        counts = Counter(str(outcome["class"]) for outcome in outcomes)
        line = "  classes   " + ", ".join(f"{name} {counts[name]}" for name in names)
        return Fitted({"kind": "classes", "count": len(names), "weights": weights}, names, lines=(line,))

    wish = Wish.of(locals())
    run(wish, _goal("classify", columns={"class": target}, head=head, pool=pool, stratum="class", fit=fit))


def survive(
    data: Data,
    time: Annotated[str, typer.Option(help="Column with the time to the event or to the last visit.")],
    event: Annotated[str, typer.Option(help="Column that says whether the event happened (1) or not (0).")],
    out: Out,
    checkpoint: Checkpoint = None,
    from_scratch: Scratch = False,
    method: MethodName = None,
    scale: Scale = None,
    folds: Folds = 1,
    fold: Fold = 0,
    fraction: Fraction = 1.0,
    head: Head = "linear",
    pool: Pool = "mean",
    layer: Layer = None,
    loss: Annotated[str, typer.Option(help="hazards (discrete time, any batch) or cox (large batches).")] = "hazards",
    bins: Annotated[int, typer.Option(min=2, help="Intervals of discrete time, at most.")] = 10,
    schedule: Schedule = "full",
    layer_decay: LayerDecay = 1.0,
    modality_dropout: Dropout = 0.5,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    patience: Patience = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = 2,
    cache: Cache = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune to survival (a time and whether the event happened), for every subset of the sequences.

    Patients that lack sequences stay in; those without a time or event are left aside. Time bins hold equally many
    events of the training part.
    """
    if loss not in ("hazards", "cox"):
        raise UsageError(f"--loss must be hazards or cox, not {loss!r}")

    def fit(outcomes: Sequence[Any]) -> Fitted:
        from medmae.data import targets

        targets.check_events(outcomes)
        happened = sum(bool(outcome["event"]) for outcome in outcomes)
        lines = (f"  events    {happened} of {len(outcomes)} in training",)
        if loss == "cox":
            return Fitted({"kind": "cox"}, lines=lines)
        return Fitted({"kind": "hazards", "edges": targets.time_bins(outcomes, count=bins)}, lines=lines)

    wish, columns = Wish.of(locals()), {"time": time, "event": event}
    run(wish, _goal("survive", columns=columns, head=head, pool=pool, stratum="event", fit=fit))


def regress(
    data: Data,
    target: Annotated[str, typer.Option(help="Column of the table that is to be told: a number or a time.")],
    out: Out,
    checkpoint: Checkpoint = None,
    from_scratch: Scratch = False,
    method: MethodName = None,
    scale: Scale = None,
    folds: Folds = 1,
    fold: Fold = 0,
    fraction: Fraction = 1.0,
    head: Head = "linear",
    pool: Pool = "mean",
    layer: Layer = None,
    schedule: Schedule = "full",
    layer_decay: LayerDecay = 1.0,
    modality_dropout: Dropout = 0.5,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    patience: Patience = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = 2,
    cache: Cache = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune to a number of the clinical table, for every subset of the sequences.

    Patients that lack sequences stay in; those without a value are left aside. The number is standardized by its mean
    and deviation over the training part.
    """

    def fit(outcomes: Sequence[Any]) -> Fitted:
        from medmae.data import targets

        mean, std = targets.scale(outcomes)
        line = f"  values    mean {mean:g}, deviation {std:g} in training"
        return Fitted({"kind": "regression", "mean": mean, "std": std}, lines=(line,))

    wish = Wish.of(locals())
    run(wish, _goal("regress", columns={"value": target}, head=head, pool=pool, stratum=None, fit=fit))
