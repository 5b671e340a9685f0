"""Validation: the same samples with the same plans every time, so that "best" means something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.random import mix
from medmae.engine.distributed import Processes
from medmae.engine.precision import autocast
from medmae.engine.settings import TrainSettings
from medmae.engine.source import Batch, Source, samples_in

VALIDATION = 1  # stream of torch's generator, so that a validation never draws what a training step draws


def in_order(losses: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names and values (float32, one vector) of a method's losses, in the order of the names."""
    names = sorted(losses)
    return names, torch.stack([losses[n].float().reshape(()) for n in names])


@torch.no_grad()
def validation_losses(
    method: nn.Module,
    source: Source,
    settings: TrainSettings,
    *,
    team: Processes,
    stopped: Callable[[], bool],
) -> dict[str, float] | None:
    """Mean of every loss over the validation samples, each batch weighted by its number of samples.

    The method is put in evaluation mode (the next training step puts it back). Empty when there are no
    samples; None when ``stopped()`` turned true on the way.
    """
    names: list[str] = []
    sums: Tensor | None = None
    method.eval()
    for number, (batch, share) in enumerate(_batches(source, settings, team=team)):
        torch.manual_seed(mix(settings.seed, VALIDATION, number, team.rank))
        with autocast(settings.precision, device=team.device):
            names, values = in_order(method(batch))
        part = torch.cat([values, values.new_ones(1)]).cpu().double() * share
        sums = part if sums is None else sums + part
        if stopped():
            return None
    names = next((found for found in team.gather(names) if found), [])
    if not names:
        return {}
    if sums is None:
        sums = torch.zeros(len(names) + 1, dtype=torch.float64)
    *losses, count = team.total(sums).tolist()
    return {name: value / count for name, value in zip(names, losses, strict=True)}


def _batches(source: Source, settings: TrainSettings, *, team: Processes) -> Iterator[tuple[Batch, float]]:
    """Finished batches with their numbers of samples; sharded processes all get equally many (extra ones
    count 0).
    """
    given = iter(source.validation(batch=settings.batch, rank=team.rank, world=team.world, seed=settings.seed))
    batch: Batch | None = None
    while True:
        found = next(given, None)
        share = 0.0
        if found is not None:
            batch = source.finish(found, device=team.device, training=False)
            share = float(samples_in(batch))
        if team.sharded:  # the forward pass of a sharded method needs every process
            if not bool(team.total(torch.tensor([share])).item()):
                return
            if batch is None:
                raise UsageError("There are fewer validation batches than processes; use train.parallel=ddp.")
        elif found is None:
            return
        if batch is not None:
            yield batch, share
