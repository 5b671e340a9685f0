"""The number format of a step, and what to say when memory runs out.

Weights, gradients and the optimizer's state are always float32; ``bf16`` runs the forward pass under
autocast. That is done here and not by the launcher, so that one process, DDP and FSDP2 compute the same
thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from medmae.core.errors import MissingDependency, OutOfMemory


def autocast(precision: str, *, device: torch.device) -> AbstractContextManager[object]:
    """Context of a forward pass in ``precision`` ("fp32" does nothing, "bf16" autocasts on ``device``)."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type=device.type, dtype=torch.bfloat16)


def check_precision(precision: str, *, device: torch.device) -> None:
    """Refuse bf16 on a GPU that has none, instead of a slow emulation (:class:`MissingDependency`)."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise MissingDependency(f"{name} has no bfloat16 arithmetic; train with --precision fp32.")


@contextmanager
def explain_memory(*, batch: int, accumulate: int) -> Iterator[None]:
    """Turn torch's out-of-memory errors (GPU and CPU) into :class:`OutOfMemory`, which names the knobs to
    turn.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(_advice(str(error), batch=batch, accumulate=accumulate)) from error
    except MemoryError as error:
        raise OutOfMemory(_advice("The system is out of memory.", batch=batch, accumulate=accumulate)) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        raise OutOfMemory(_advice(str(error), batch=batch, accumulate=accumulate)) from error


def _advice(reason: str, *, batch: int, accumulate: int) -> str:
    first = reason.strip().splitlines()[0] if reason.strip() else "Out of memory."
    smaller = max(1, batch // 2)
    lines = [f"Not enough memory for a step of batch {batch}: {first}", "Knobs to turn, the cheapest first:"]
    if batch > 1:
        more = accumulate * -(-batch // smaller)
        lines.append(f"  --batch {smaller} --set train.accumulate={more}   the same update in smaller parts")
    lines += [
        "  --precision bf16                              about half the activations",
        "  --set train.gradient_checkpointing=true       recompute activations, about a third slower",
        "  --set train.parallel=fsdp (several GPUs)      share weights and optimizer state",
        "  a smaller --scale or crop",
    ]
    return "\n".join(lines)
