"""``medmae finetune synthesize``: from a pre-trained model to one network that completes any subset of sequences.

Before the network is built, a few training cases are read whole: for the linear formulas that the network begins with,
and for the data ranges of the structural similarity. Both are part of the model's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.core.errors import DataError, UsageError

from .console import flags, say
from .finetune_run import Fitted, Goal, Wish, run
from .finetune_table import (
    Cache,
    Checkpoint,
    Device,
    Fold,
    Folds,
    Fraction,
    Layer,
    LayerDecay,
    MethodName,
    Out,
    Overwrite,
    Precision,
    Resume,
    Scale,
    Schedule,
    Scratch,
    Seed,
    Set,
    Steps,
    Workers,
)

if TYPE_CHECKING:
    from medmae.data.cohort import Cohort

FITTED = 20
"""Training cases, at most, that the linear formulas are fitted on: a few numbers from millions of voxels each."""
KIND = "synthesize"
DEFAULTS = {"epochs": 200, "batch": 2, "lr": 1e-3, "patience": 30}


def synthesize(
    data: Annotated[str, typer.Option(help="Cohort: spec, folder, data list or CSV.")],
    out: Out,
    checkpoint: Checkpoint = None,
    from_scratch: Scratch = False,
    method: MethodName = None,
    scale: Scale = None,
    folds: Folds = 1,
    fold: Fold = 0,
    fraction: Fraction = 1.0,
    features: Annotated[int, typer.Option(min=1, help="Channels of the decoder at full resolution.")] = 16,
    dropout: Annotated[
        float, typer.Option(help="Of the decoder's channels; predict --uncertainty needs some, such as 0.1.")
    ] = 0.0,
    l1_weight: Annotated[float, typer.Option(help="Weight of the mean absolute error.")] = 1.0,
    l2_weight: Annotated[float, typer.Option(help="Weight of half the mean squared error.")] = 1.0,
    ssim_weight: Annotated[float, typer.Option(help="Weight of 1 - SSIM.")] = 0.5,
    prior: Annotated[
        bool, typer.Option("--prior/--no-prior", help="Begin with the linear regression of every subset.")
    ] = True,
    layer: Layer = None,
    schedule: Schedule = "full",
    layer_decay: LayerDecay = 1.0,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training cases [default: 200].")] = None,
    steps: Steps = None,
    batch: Annotated[int | None, typer.Option(help="Samples per step [default: 2].")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate [default: 1e-3].")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Validations without progress before it stops; 0: never [30].")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = 2,
    cache: Cache = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune to the synthesis of missing sequences, one network for every subset of the sequences.

    In training every sample hides a random part of what the patient has, and what is hidden has to be told from the
    rest; patients that lack sequences stay in, as long as they have two. What is told is a linear regression, fitted on
    training cases, plus what the network adds. Validation cases are always seen with the same subsets.
    """
    weights = {"l1": l1_weight, "l2": l2_weight, "ssim": ssim_weight}
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise UsageError("--l1-weight, --l2-weight and --ssim-weight must be at least 0, and not all 0")
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout}: a probability of at least 0 and below 1")
    known: list[str] = []

    def outcomes(cohort: Cohort, sequences: tuple[str, ...]) -> Mapping[str, Any]:
        from medmae.data.preprocess import PreprocessSettings

        if len(sequences) < 2:
            raise UsageError(
                f"the model knows one sequence only ({', '.join(sequences)}): there is nothing to tell it from. "
                "Start from a model of several sequences"
            )
        known[:] = sequences
        settings = PreprocessSettings.of(cohort.spec).describe()
        found = {case.key: (case, settings) for case in cohort.cases if len(set(case.images) & set(sequences)) > 1}
        if not found:
            raise DataError(f"no case of {data} has two of the sequences {', '.join(sequences)}: nothing can be hidden")
        return found

    def fit(training: Sequence[Any]) -> Fitted:
        return _fitted(training, tuple(known), {**weights}, prior=prior)

    from medmae.data.augment import Augmentation

    goal = Goal(
        kind=KIND,
        target="two sequences or more",
        head={"kind": "synthesis", "features": features, "dropout": dropout},
        outcomes=outcomes,
        fit=fit,
        # What one sequence says of another is in their intensities, so they stay as they are.
        volumes={"augmentation": Augmentation(scale=0.0, shift=0.0)},
        defaults=DEFAULTS,
        next="medmae evaluate {kind} --checkpoint {folder} --data {data} --out {out}/test",
    )
    modality_dropout, distill = 1.0, 0.0
    run(Wish.of(locals()), goal)


def _fitted(
    training: Sequence[Any], sequences: tuple[str, ...], weights: Mapping[str, float], *, prior: bool
) -> Fitted:
    """Linear formulas and data ranges of a few training cases, evenly spread over all of them."""
    from medmae.data.inference import load_case
    from medmae.data.workers import progress
    from medmae.evaluate.baselines import Sums
    from medmae.evaluate.metrics import data_range
    from medmae.transfer.synthesis import RANGE, prior_of

    count = min(len(training), FITTED)
    chosen = [training[i * len(training) // count] for i in range(count)]
    sums, widths = Sums(sequences), {name: [] for name in sequences}  # type: ignore[var-annotated]
    with progress("fitting linear formulas", count, quiet=flags().quiet) as advance:
        for case, settings in chosen:
            try:
                loaded = load_case(
                    {name: path for name, path in case.images.items() if name in sequences}, settings, mask=case.mask
                )
            except DataError as error:
                say(f"left out of the linear formulas: {error}", style="yellow")
            else:
                sums.add(loaded.images, loaded.foreground)
                for name, image in loaded.images.items():
                    if loaded.foreground.any():
                        widths[name].append(data_range(image, loaded.foreground))
            advance()
    ranges = [float(f"{sum(w) / len(w):.6g}") if (w := widths[name]) else RANGE for name in sequences]
    lines = (f"  start     linear regressions from {sums.cases} training case(s)",) if prior and sums.cases else ()
    recipe = {
        "kind": "synthesis",
        "names": list(sequences),
        **weights,
        "ranges": ranges,
        "prior": prior_of(sums) if prior and sums.cases else None,
    }
    return Fitted(recipe, lines=lines)
