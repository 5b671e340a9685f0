"""Tokens: what there is, where it is, and who may see it.

Three states are told apart everywhere. A token is *visible* (the encoder gets it), *masked* (it has content, and may be
asked for), or *missing* (``id == -1``: padding, or a sequence that was never acquired), in which case it has no target
and enters neither the loss, nor its denominator, nor any statistic. Ids are used in place of boolean masks: there is no
polarity to remember, ragged rows are padded with -1, and the two sets of a plan may overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Batch = Mapping[str, Tensor]
"""Named tensors of one batch, see :class:`medmae.core.grid.ModalityGrid` for the entries the core reads."""


def take(values: Shaped[Tensor, "b n *what"], ids: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k *what"]:
    """The rows named by ``ids``; a row asked for by -1 repeats row 0 and is to be ignored by the caller."""
    index = ids.clamp_min(0).reshape(*ids.shape, *(1,) * (values.ndim - 2))
    return values.gather(1, index.expand(*ids.shape, *values.shape[2:]))


@dataclass(frozen=True)
class TokenLayout:
    """Everything about tokens except their content.

    Attributes:
        id: column in the full set, in [0, total); -1 where the token is missing (padded or not acquired).
        coords: where the token is: grid index, millimeters, seconds, point center.
        modality: which sequence, view or kind, as an index.
        weight: share of the token that counts, in [0, 1] (foreground; not padding, not defaced); None counts fully.
        total: size of the full set.
        edges: graphs only: pairs of columns.
        ragged: whether some id may be -1. Known without looking at the data, so that a complete batch needs no
            attention mask and no synchronization with the device.
    """

    id: Int[Tensor, "b n"]
    coords: Float[Tensor, "b n p"]
    modality: Int[Tensor, "b n"]
    weight: Float[Tensor, "b n"] | None
    total: int
    edges: Int[Tensor, "2 e"] | None = None
    ragged: bool = False

    @property
    def exists(self) -> Bool[Tensor, "b n"]:
        """True where there is a token."""
        return self.id >= 0

    def at(self, ids: Int[Tensor, "b k"], *, ragged: bool | None = None) -> TokenLayout:
        """The layout of the tokens in columns ``ids`` of this full layout; -1 stays a missing token."""
        if self.id.shape[1] != self.total:
            raise ValueError(
                f"only a full layout can be indexed by id: it has {self.id.shape[1]} of {self.total} tokens"
            )
        return replace(
            self,
            id=torch.where(ids < 0, -1, take(self.id, ids)),
            coords=take(self.coords, ids),
            modality=take(self.modality, ids),
            weight=None if self.weight is None else take(self.weight, ids),
            ragged=self.ragged if ragged is None else ragged,
        )

    def repeat(self, k: int) -> TokenLayout:
        """Each sample ``k`` times in a row: sample i becomes rows i*k to i*k+k-1."""
        return replace(
            self,
            id=self.id.repeat_interleave(k, 0),
            coords=self.coords.repeat_interleave(k, 0),
            modality=self.modality.repeat_interleave(k, 0),
            weight=None if self.weight is None else self.weight.repeat_interleave(k, 0),
        )


@dataclass(frozen=True)
class Tokens:
    """A layout and what its tokens hold."""

    layout: TokenLayout
    content: Shaped[Tensor, "b n *what"]

    def at(self, ids: Int[Tensor, "b k"], *, ragged: bool | None = None) -> Tokens:
        """The tokens in columns ``ids`` of this full set."""
        return Tokens(self.layout.at(ids, ragged=ragged), take(self.content, ids))

    def onto(self, layout: TokenLayout, blank: Shaped[Tensor, "*what"]) -> Tokens:
        """These tokens painted on the full canvas ``layout``, with ``blank`` wherever there is none.

        Scattering by id needs no inverse permutation, so it holds for missing, padded and overlapping sets alike.
        """
        b, _, *what = self.content.shape
        canvas = blank.to(self.content.dtype).expand(b, layout.total + 1, *what).clone()  # the last row takes the pads
        column = torch.where(self.layout.id < 0, layout.total, self.layout.id)
        column = column.reshape(*column.shape, *(1,) * len(what)).expand_as(self.content)
        return Tokens(layout, canvas.scatter(1, column, self.content)[:, : layout.total])

    def repeat(self, k: int) -> Tokens:
        """Each sample ``k`` times in a row, for several plans of one sample."""
        return Tokens(self.layout.repeat(k), self.content.repeat_interleave(k, 0))


@dataclass(frozen=True)
class MaskPlan:
    """Who is visible and who is asked for, as ids of the full set; -1 pads rows of unequal length.

    Attributes:
        visible: ids the encoder sees.
        target: ids the decoder is asked for.
        weight: weight of each target in the loss; None weighs all alike.
        ragged: whether -1 may occur.
    """

    visible: Int[Tensor, "b v"]
    target: Int[Tensor, "b t"]
    weight: Float[Tensor, "b t"] | None = None
    ragged: bool = False

    def weights(self) -> Float[Tensor, "b t"]:
        """Weight of each target, exactly zero where there is none."""
        exists = (self.target >= 0).float()
        return exists if self.weight is None else exists * self.weight


def without_trivial_masks(batch: Batch) -> dict[str, Tensor]:
    """The batch without ``present`` when every sequence is present.

    Call it while ``present`` is still on the CPU: the method then knows without a device synchronization that the
    batch is complete, and attends without a mask.
    """
    return {name: value for name, value in batch.items() if not (name == "present" and bool(value.all()))}
