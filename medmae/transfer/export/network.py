"""An encoder behind tensors only: what runtimes and bundles can call that know neither batches nor tokens.

One tensor holds all sequences as channels and a second says which of them a patient has, so that one exported file
serves every subset of the sequences. Everything that is there is visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medmae.core.errors import CheckpointError
from medmae.find import find
from medmae.nets.encoded import Pyramid
from medmae.transfer.backbone import Backbone


class FeatureNetwork(nn.Module):
    """Features of a window of volumes.

    Args:
        backbone: a tokenizer and an encoder.

    Raises:
        CheckpointError: the method reads something else than images of one channel on one grid.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        grid = getattr(backbone.tokenizer, "grid", None)
        entries = getattr(backbone.tokenizer, "entries", {})
        if grid is None or any(shape != (1, *grid.size) for shape in entries.values()):
            raise CheckpointError(
                "only encoders of images of one channel per sequence, on one grid, can be exported as a network; "
                "`medmae export hf` takes every model"
            )
        if getattr(backbone.tokenizer, "coords", "grid") != "grid":
            raise CheckpointError(
                "this model takes positions in millimeters (coords: mm), which an exported network is not told; "
                "pre-train with coords: grid to export it"
            )
        self.sequences: tuple[str, ...] = backbone.sequences
        self.size: tuple[int, ...] = grid.size

    @property
    def names(self) -> tuple[str, ...]:
        """What :meth:`forward` returns, in its order."""
        with torch.no_grad():
            return tuple(self.outputs(*self.example(1)))

    def example(self, samples: int) -> tuple[Float[Tensor, "b m *size"], Bool[Tensor, "b m"]]:
        """Random inputs: of every second sample the first sequence is missing, where there are several."""
        draw = torch.Generator().manual_seed(0)
        image = torch.randn(samples, len(self.sequences), *self.size, generator=draw)
        present = torch.ones(samples, len(self.sequences), dtype=torch.bool)
        if len(self.sequences) > 1:
            present[1::2, 0] = False
        return image, present

    def outputs(self, image: Float[Tensor, "b m *size"], present: Bool[Tensor, "b m"]) -> dict[str, Tensor]:
        """Features by name.

        Transformers give ``features`` [b n d], one row per token, sequence by sequence, zero where missing, and
        ``prefix`` [b k d] where there is a [CLS] token; convolutional networks give ``level_0`` (fine) and so on,
        [b d *cells]. Both give ``pooled`` [b d], the mean over the places that exist.

        Args:
            image: normalized volumes, one channel per sequence; what a missing one holds does not matter.
            present: which sequences are there.
        """
        batch = {name: image[:, i : i + 1] for i, name in enumerate(self.sequences)}
        found = self.backbone({**batch, "present": present})
        pooled = found.pooled("mean")
        if isinstance(found.encoded, Pyramid):
            levels = {f"level_{i}": level for i, level in enumerate(found.encoded.dense())}
            return {**levels, "pooled": pooled}
        prefix = {"prefix": found.prefix} if found.prefix.shape[1] else {}
        return {"features": found.values, **prefix, "pooled": pooled}

    def forward(self, image: Float[Tensor, "b m *size"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """The values of :meth:`outputs`, in the order of :attr:`names`."""
        return tuple(self.outputs(image, present).values())


class PooledFeatures(nn.Module):
    """One vector per window, of a model that is told by its method and recipe.

    Made of JSON values alone, so that the configuration of a bundle can name it and build it.

    Args:
        method: name of the pre-training method.
        recipe: its resolved arguments.
    """

    def __init__(self, method: str, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = FeatureNetwork(Backbone(find(method).build(**recipe)))

    @property
    def sequences(self) -> Sequence[str]:
        """The channels of the input, in this order."""
        return self.network.sequences

    def forward(
        self, image: Float[Tensor, "b m *size"], present: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b d"]:
        """The mean over the places of the sequences that are ``present``; without it all of them are."""
        if present is None:
            present = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        return self.network.outputs(image, present)["pooled"]
