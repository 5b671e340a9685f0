"""Probes of the features while a run goes on: is there anything in them, and does it grow?

A loss says how well what was hidden is guessed, not what is known. So every now and then the validation samples are
shown whole, and it is told how many directions their features use, how alike they are, and, where the data say a
class, how well the nearest training samples tell it. The batches are those of training and validation, so nothing is
read in another way; the numbers are rows "probe" of the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, UsageError

from .console import say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from medmae.engine.settings import TrainSettings

MOST = 512
"""Samples of each part that are looked at, at most."""


def probe_of(
    source: Any, method: nn.Module, settings: TrainSettings, *, target: str | None = None, outcomes: Any = None
) -> Callable[[int, nn.Module], dict[str, float]] | None:
    """What the loop calls every ``train.probe_every`` steps, or None where that is never.

    Args:
        source: of the run.
        method: of the run.
        settings: of the run.
        target: column of a cohort's table that is to be told; samples have their class.
        outcomes: ``(cases, spec)`` of a cohort, for the target.

    Raises:
        UsageError: a method without an encoder to take features from, a target without probes, or one that is no class.
        DataError: no such column.
    """
    if settings.probe_every == 0:
        if target is not None:
            raise UsageError(
                "data.probe_target says what probes ask for, and there are none: set train.probe_every=100"
            )
        return None
    from medmae.transfer.backbone import Backbone

    try:
        Backbone(method)
    except CheckpointError as error:
        raise UsageError(f"train.probe_every: {error}. Leave it out for this method") from error
    if target is not None:
        source = _with_classes(source, target, *outcomes)

    def probe(step: int, current: nn.Module) -> dict[str, float]:
        found = measured(source, current, batch=settings.batch, seed=settings.seed)
        words = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        say(f"step {step}  probe: {words}")
        return found

    return probe


def measured(source: Any, method: nn.Module, *, batch: int, seed: int) -> dict[str, float]:
    """``rank``, ``similarity`` and ``dead`` of the features of validation samples (of training samples where there are
    fewer than two), and ``knn_accuracy`` and ``knn_auc`` where classes are known. Says so where they have collapsed."""
    import numpy as np

    from medmae.evaluate.rank import collapsed, spread

    device = next(method.parameters()).device
    held = _features(
        source, method, source.validation(batch=batch, rank=0, world=1, seed=seed), most=MOST, device=device
    )
    known: Looked = (held[0][:0], held[1][:0])
    if len(held[0]) < 2 or bool((held[1] >= 0).any()):
        stream = source.train(start=0, batch=batch, rank=0, world=1, seed=seed)
        known = _features(source, method, stream, most=min(MOST, int(source.size)), device=device)
    shown = held if len(held[0]) > 1 else known
    if len(shown[0]) < 2 or not np.isfinite(shown[0]).all():
        return {}
    found = spread(shown[0])
    if (warning := collapsed(found)) is not None:
        say(f"Warning: {warning}.", style="yellow")
    numbers = {"rank": found.rank, "similarity": found.similarity, "dead": found.dead}
    return numbers | _told(held, known)


Looked = tuple["np.ndarray", "np.ndarray"]
"""Features [n d], and the class of every sample, -1 where it is not known."""


def _features(
    source: Any, method: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, most: int, device: Any
) -> Looked:
    """Of the first samples of a stream, without augmentation."""
    import numpy as np
    import torch

    from medmae.transfer.backbone import Backbone

    backbone = Backbone(method)
    values, classes = [], []
    left = most
    iterator: Iterator[Any] = iter(batches)
    with torch.no_grad():
        for one in islice(iterator, most):  # a batch has one sample at least
            ready = source.finish(one, device=device, training=False)
            pooled = backbone(ready).pooled("mean").float().cpu().numpy()[:left]
            told = ready.get("target_class")
            values.append(pooled)
            classes.append(np.full(len(pooled), -1) if told is None else told.cpu().numpy()[:left])
            left -= len(pooled)
            if left <= 0:
                break
    close = getattr(iterator, "close", None)
    if close is not None:  # workers of an endless stream go now, not when the garbage is collected
        close()
    if not values:
        return np.zeros((0, backbone.width), np.float32), np.zeros(0, np.int64)
    return np.concatenate(values), np.concatenate(classes)


def _told(held: Looked, known: Looked) -> dict[str, float]:
    """How well the class of validation samples is told by their nearest training samples."""
    import numpy as np

    from medmae.transfer.probing import knn_probe

    values, classes = (np.concatenate(pair) for pair in zip(known, held, strict=True))
    there = classes >= 0
    parts = ["train"] * len(known[1]) + ["test"] * len(held[1])
    parts = [part for part, has in zip(parts, there.tolist(), strict=True) if has]
    labels = [str(c) for c in classes[there].tolist()]
    for part in ("train", "test"):
        if len({label for label, own in zip(labels, parts, strict=True) if own == part}) < 2:
            return {}
    scores = knn_probe(values[there], labels, [str(i) for i in range(len(labels))], parts=parts).resampled
    return {f"knn_{name}": float(scores[name][0]) for name in ("accuracy", "auc") if not np.isnan(scores[name][0])}


def _with_classes(source: Any, target: str, cases: Any, spec: Any) -> Any:
    """The source of a cohort whose batches also hold the class of a column."""
    from medmae.data.targets import TargetSource, read_outcomes

    if not hasattr(source, "present"):
        raise UsageError("data.probe_target: this method reads sequences as channels, of which no class is known here")
    outcomes = read_outcomes(cases, spec, columns={"class": target})
    names = sorted({str(outcome["class"]) for outcome in outcomes.values()})
    return TargetSource(source, outcomes, classes=names)
