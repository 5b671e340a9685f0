"""Which parameters are decayed, and the optimizer that does it.

Decay belongs on the weights of linear and convolutional layers. It does not belong on norms, biases,
embeddings, tokens, tables and scales: pulling those to zero says nothing about the function being smooth. The
published BM-MAE decays everything; ``decay_all`` reproduces it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from medmae.core.pace import STEADY, Pace

NORMS = ("norm",)
TABLES = (nn.Embedding, nn.EmbeddingBag)


def decays(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to the parameter ``name`` held directly by ``owner``.

    True for a matrix or kernel called ``weight`` (or ``..._weight``) that is not in a norm layer or an
    embedding table.
    """
    if parameter.ndim < 2 or isinstance(owner, TABLES):
        return False
    if any(word in type(owner).__name__.lower() for word in NORMS):
        return False
    return name == "weight" or name.endswith("_weight")


def parameter_groups(
    method: nn.Module, *, weight_decay: float | int, decay_all: bool = False
) -> list[dict[str, object]]:
    """Groups of trainable parameters of one pace: decayed and not, in the order of the method; a shared parameter comes
    once.

    Methods whose parameters all learn alike have two groups. An empty group is left out. Parameters that do not require
    a gradient (teachers) are never in. Every group has its ``pace``, a :class:`medmae.core.pace.Pace`.
    """
    pace: Callable[[str], Pace] = getattr(method, "pace", lambda name: STEADY)
    found: dict[tuple[Pace, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for path, owner in method.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            spared = not (decay_all or decays(owner, name, parameter))
            found.setdefault((pace(f"{path}.{name}" if path else name), spared), []).append(parameter)
    order = list(dict.fromkeys(pace for pace, _ in found))
    return [
        {"params": found[pace, spared], "weight_decay": 0.0 if spared else weight_decay, "pace": pace}
        for pace in order
        for spared in (False, True)
        if (pace, spared) in found
    ]


def adamw(
    method: nn.Module,
    *,
    lr: float | int,
    weight_decay: float | int,
    betas: tuple[float | int, float | int],
    eps: float | int = 1e-8,
    decay_all: bool = False,
) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`; fused (one pass over the parameters) on CUDA and on the CPU."""
    groups = parameter_groups(method, weight_decay=weight_decay, decay_all=decay_all)
    fused = {p.device.type for p in method.parameters() if p.requires_grad} in ({"cuda"}, {"cpu"})
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True if fused else None)
