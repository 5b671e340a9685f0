"""The first layer of an encoder: content to features.

Only visible tokens come here, so what is hidden is never embedded. A strided convolution over patches is a linear map
of their content, so there is no convolution either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.tokens import Tokens

from .kernels import Linear


class SharedEmbed(nn.Module):
    """One linear map for all tokens.

    Args:
        content: values per token.
        width: features per token.
    """

    def __init__(self, content: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(content, width)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """Features of every token."""
        return self.linear(tokens.content)


class ModalityEmbed(nn.Module):
    """One linear map per modality, keyed by its name.

    Each token goes through the map of its own modality only: rows are gathered by modality, mapped, and put back.

    Args:
        names: modalities in the order of the modality index.
        content: values per token.
        width: features per token.
        tag: add a learned vector per modality.
    """

    def __init__(self, names: Sequence[str], content: int, width: int, *, tag: bool = False) -> None:
        super().__init__()
        self.names = tuple(names)
        self.linear = nn.ModuleDict({name: Linear(content, width) for name in self.names})
        for linear in self.linear.values():
            nn.init.xavier_uniform_(linear.weight)  # type: ignore[arg-type]
        self.tag = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in self.names}) if tag else None
        if self.tag is not None:
            for vector in self.tag.values():
                nn.init.trunc_normal_(vector, std=0.02)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """Features of every token."""
        if tokens.content.device.type != "cpu" or torch.compiler.is_compiling():
            out = self._select(tokens)
        else:
            out = self._gather(tokens)
        if self.tag is not None:
            out = out + torch.stack([self.tag[name] for name in self.names])[tokens.layout.modality]
        return out

    def _gather(self, tokens: Tokens) -> Tensor:
        """Exactly the work needed, with shapes that depend on the data: for the CPU."""
        b, n, _ = tokens.content.shape
        content, modality = tokens.content.flatten(0, 1), tokens.layout.modality.flatten()
        order = modality.argsort(stable=True)
        sizes = torch.bincount(modality, minlength=len(self.names)).tolist()
        parts = torch.split(content[order], sizes)
        mapped = torch.cat([self.linear[name](part) for name, part in zip(self.names, parts, strict=True)])
        return mapped[order.argsort()].view(b, n, mapped.shape[-1])  # n may be 0: nothing is visible

    def _select(self, tokens: Tokens) -> Tensor:
        """All maps for all tokens, then a choice: static shapes and no synchronization, for the GPU and compilation."""
        weight = torch.stack([self.linear[name].weight for name in self.names])  # type: ignore[misc]
        bias = torch.stack([self.linear[name].bias for name in self.names])  # type: ignore[misc]
        own = nn.functional.one_hot(tokens.layout.modality, len(self.names)).to(tokens.content.dtype)
        features = nn.functional.linear(tokens.content, weight.flatten(0, 1))
        features = features.reshape(*features.shape[:-1], len(self.names), weight.shape[1])
        return (features * own[..., None]).sum(-2) + own @ bias.to(own.dtype)
