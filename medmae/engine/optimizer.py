"""Which parameters are decayed, and the optimizer that does it.

Decay belongs on the weights of linear and convolutional layers. It does not belong on norms, biases,
embeddings, tokens, tables and scales: pulling those to zero says nothing about the function being smooth. The
published BM-MAE decays everything; ``decay_all`` reproduces it.
"""

from __future__ import annotations

import torch
from torch import nn

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
    """Two groups of trainable parameters, decayed and not, in the order of the method; a shared parameter comes once.

    An empty group is left out. Parameters that do not require a gradient (teachers) are never in.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    seen: set[int] = set()
    for owner in method.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            (decayed if decay_all or decays(owner, name, parameter) else spared).append(parameter)
    groups: list[dict[str, object]] = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": weight_decay})
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    return groups


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
