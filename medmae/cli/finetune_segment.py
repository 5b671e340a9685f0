"""The built-in backend of ``medmae finetune segment``: one network for every subset of the sequences.

What is fitted to labels (which names there are, how frequent they are, what they weigh) is read from the label files of
the training part. Patients that lack sequences stay in, since lacking some is what the network is to get used to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .console import flags, main_process, say
from .finetune_run import Fitted, Goal, Wish, run

if TYPE_CHECKING:
    from medmae.data.cohort import Case, Cohort
    from medmae.transfer.label_map import LabelMap

LABEL_SHARE = 0.5
DEFAULTS = {"epochs": 200, "batch": 2, "lr": 3e-4, "patience": 30}
IMBALANCE = ("none", "balanced")
PRESETS = ("any-subset", "published")
PUBLISHED = {"lr": 5e-4, "weight_decay": 0.05, "batch": 2, "epochs": 70}

Counts = Mapping[int, int]
"""Class value -> voxels."""


def finetune_segment(
    wish: Wish,
    *,
    label: str = "classes",
    features: int = 16,
    deep_supervision: bool = True,
    dropout: float = 0.0,
    class_weights: str = "none",
    label_share: float = LABEL_SHARE,
    preset: str = "any-subset",
    sequences: str | None = None,
    subsets: str = "all",
    evaluate: bool = True,
) -> None:
    """Train, and measure the cases that were held out.

    Args:
        wish: what all tasks share.
        label: classes or regions of the spec.
        features: channels of the decoder at full resolution.
        deep_supervision: losses at coarser scales, too.
        dropout: of the decoder's last channels.
        class_weights: balanced or none.
        label_share: share of the crops that are centered on a labeled voxel.
        preset: any-subset, or published: the decoder of BM-MAE's publication, tied to ``sequences``.
        sequences: of the published preset, such as t1c,t2f; None is all that the model knows.
        subsets: of the measurement.
        evaluate: measure.

    Raises:
        UsageError: options that cannot be meant.
        DataError: labels that nothing can be learned from.
    """
    from medmae.data.cohort import open_cohort
    from medmae.transfer.label_map import LabelMap

    _check(class_weights, label_share, preset, sequences)
    if preset == "published" and (wish.modality_dropout or wish.distill):
        raise UsageError("--preset published ties the network to one subset: no --modality-dropout, no --distill")
    cohort = open_cohort(wish.data)
    if cohort.spec.label is None:
        raise UsageError(
            f"{cohort.spec.path or wish.data}: the spec has no 'label', so there is nothing to learn: "
            "add label: {file: ..., classes: {background: 0, ...}}"
        )
    meaning = LabelMap.of(cohort.spec.label, kind=label)  # type: ignore[arg-type]
    head: dict[str, Any] = {
        "kind": "decoder", "features": features, "deep_supervision": deep_supervision, "dropout": dropout,
    }  # fmt: skip
    tied: tuple[str, ...] | None = None
    if preset == "published":
        tied = _tied(sequences, cohort.sequences)
        head = {"kind": "published", "features": features, "sequences": list(tied)}

    def outcomes(cohort: Cohort, known: tuple[str, ...]) -> dict[str, Counts]:
        if tied is not None and (strange := [name for name in tied if name not in known]):
            raise UsageError(f"--sequences {', '.join(strange)}: the model knows {', '.join(known)}")
        assert cohort.spec.label is not None
        usable = [case for case in cohort.cases if _usable(case, known, tied)]
        found = label_counts_of(usable, cohort, workers=wish.workers)
        return dict(found)

    goal = Goal(
        kind="segment",
        target="labels",
        head=head,
        outcomes=outcomes,
        fit=lambda counts: fitted(counts, meaning, balanced=class_weights == "balanced"),
        volumes={"labels": True, "label_share": label_share},
        source=None if tied is None else lambda volumes, outcomes, fitted: Tied(volumes, tied),
        defaults={**DEFAULTS, **(PUBLISHED if tied is not None else {})},
        after=(lambda keys: _measure(wish, cohort, keys, subsets=subsets)) if evaluate else None,
    )
    run(wish, goal)


def label_counts_of(cases: Sequence[Case], cohort: Cohort, *, workers: int) -> dict[str, dict[int, int]]:
    """See :func:`medmae.data.label_counts.label_counts`."""
    from medmae.data.label_counts import label_counts

    assert cohort.spec.label is not None
    return label_counts(
        cases,
        cohort.spec.label,
        same_grid=cohort.spec.geometry.on_mismatch == "error",
        workers=workers,
        quiet=flags().quiet or not main_process(),
    )


def fitted(counts: Sequence[Counts], meaning: LabelMap, *, balanced: bool) -> Fitted:
    """What the training part decides: how frequent each name is, and what it weighs.

    Args:
        counts: of every training case.
        meaning: the names.
        balanced: weigh names by one over the square root of their voxels (mean 1 over those that occur). One over the
            voxels themselves would let the smallest drown all others.

    Raises:
        DataError: every label is empty.
    """
    total = sum(n for case in counts for value, n in case.items() if value != meaning.ignore)
    voxels = [sum(case.get(v, 0) for case in counts for v in held) for held in meaning.values]
    if not any(voxels):
        raise DataError(
            f"the labels of all {len(counts)} training case(s) are empty: there is nothing to learn. "
            "Check label.classes and label.remap in the spec"
        )
    having = [sum(any(case.get(v, 0) for v in held) for case in counts) for held in meaning.values]
    lines = ["  labels    " + ", ".join(f"{name} {n}" for name, n in zip(meaning.names, having, strict=True))
             + f" of {len(counts)} training cases"]  # fmt: skip
    if absent := [name for name, n in zip(meaning.names, voxels, strict=True) if not n]:
        lines.append(f"  {', '.join(absent)}: in no training case, so the model cannot learn it")
    weights = None
    if balanced:
        raw = [n**-0.5 if n else 0.0 for n in voxels]
        mean = sum(raw) / sum(w > 0 for w in raw)
        weights = [w / mean if w else 1.0 for w in raw]
    objective = {
        "kind": "segments",
        "names": list(meaning.names),
        "values": [list(held) for held in meaning.values],
        "exclusive": meaning.exclusive,
        "weights": weights,
        "ignore": meaning.ignore,
        "prevalence": [n / total for n in voxels],
    }
    return Fitted(objective, meaning.names, entries={"label": meaning.describe()}, lines=tuple(lines))


class Tied:
    """A source whose samples show some of their sequences only: what a network of one subset is trained on.

    Args:
        source: the volumes; every case has all of ``shown``.
        shown: sequences that are present.
    """

    def __init__(self, source: Any, shown: Sequence[str]) -> None:
        self._source, self.size, self.sequences, self._shown = source, source.size, source.sequences, tuple(shown)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def finish(self, batch: Mapping[str, Any], *, device: Any, training: bool) -> dict[str, Any]:
        """The method's input."""
        import torch

        done = dict(self._source.finish(batch, device=device, training=training))
        shown = torch.tensor([name in self._shown for name in self.sequences], device=device)
        if not bool(shown.all()):
            done["present"] = shown.expand(len(done["key"]), -1)
        return done

    def describe(self) -> dict[str, Any]:
        """What the source says, and what is shown of it."""
        return {**self._source.describe(), "shown": list(self._shown)}


def _check(class_weights: str, label_share: float, preset: str, sequences: str | None) -> None:
    if class_weights not in IMBALANCE:
        raise UsageError(f"--class-weights must be one of {', '.join(IMBALANCE)}, not {class_weights!r}")
    if not 0 <= label_share <= 1:
        raise UsageError(f"--label-share {label_share}: a probability between 0 and 1")
    if preset not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    if sequences is not None and preset != "published":
        raise UsageError("--sequences ties a network to one subset: it needs --preset published")


def _tied(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """The sequences that ``--sequences`` names, in the order of the cohort."""
    from medmae.core.sequences import canonical

    if text is None:
        return tuple(known)
    try:
        named = {canonical(word) for word in text.split(",")}
    except ValueError as error:
        raise UsageError(f"--sequences {text!r}: {error}") from error
    if strange := sorted(named - set(known)):
        raise UsageError(f"--sequences {', '.join(strange)}: the cohort has {', '.join(known)}")
    return tuple(name for name in known if name in named)


def _usable(case: Case, known: Sequence[str], tied: Sequence[str] | None) -> bool:
    return bool(set(case.images) & set(known)) if tied is None else set(tied) <= set(case.images)


def _measure(wish: Wish, cohort: Cohort, keys: frozenset[str], *, subsets: str) -> bool:
    """Measure the test part, which is the same for every --fraction; whether there was anything to measure."""
    from dataclasses import replace

    from .evaluate_dense import evaluate_segmenter

    cohort = replace(cohort, cases=tuple(case for case in cohort.cases if case.key in keys))
    if not cohort.cases:
        say("nothing was measured: the test part is empty", style="yellow")
        return False
    try:
        return evaluate_segmenter(
            wish.out / "model", cohort, out=wish.out / "test", subsets=subsets, device=wish.device, seed=wish.seed,
            precision=wish.precision, workers=wish.workers, after_training=True,
        )  # fmt: skip
    except UsageError as error:  # the training is done and must not look as if it had failed
        say(f"nothing was measured: {error}", style="yellow")
        return False
