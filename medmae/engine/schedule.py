"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

One formula serves both ways of counting. ``unit="step"`` moves at every optimizer step; ``unit="epoch"``
moves once an epoch, which is how BM-MAE was published: ``min((e + 1) / 50, 0.5 * (cos(pi * e / 1500) + 1))``
over 1000 epochs, whose cosine is longer than the run, so that the last factor is 0.25.
"""

from __future__ import annotations

import math

from medmae.engine.settings import TrainSettings


def factor(
    moment: int, *, warmup: float | int, period: float | int, floor: float | int = 0.0, kind: str = "cosine"
) -> float:
    """Share of the base learning rate at ``moment`` (steps or epochs done so far, from 0).

    The smaller of a linear warm-up over ``warmup`` moments and a cosine from 1 to ``floor`` over ``period``
    moments (constant 1 with ``kind="constant"``). Past its period the cosine stays at the floor.
    """
    rise = min(1.0, (moment + 1) / warmup) if warmup > 0 else 1.0
    if kind == "constant":
        return rise
    fall = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(moment / period, 1.0)))
    return min(rise, fall)


def lr_factor(settings: TrainSettings, step: int, *, total: int, per_epoch: float | int) -> float:
    """Share of the base learning rate in optimizer step ``step`` (from 0) of ``total``.

    ``per_epoch`` is the number of optimizer steps in one epoch (need not be whole).
    """
    if settings.schedule_unit == "epoch":
        moment, length = int(step / per_epoch + 1e-9), math.ceil(total / per_epoch - 1e-9)
    else:
        moment, length = step, total
    return factor(
        moment,
        warmup=settings.warmup * length if settings.warmup < 1 else settings.warmup,
        period=float(settings.cosine_period or length),
        floor=settings.lr_floor,
        kind=settings.schedule,
    )


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after ``step``; 0 is never."""
    return every > 0 and (step % every == 0 or step == total)
