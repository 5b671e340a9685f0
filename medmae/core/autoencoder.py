"""The generic step of a masked autoencoder.

Most published methods are this step with other parts. A method that strains it writes its own step in its own file; the
core is not widened for it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor, nn

from .loss import Distance, masked_mean
from .method import Method
from .sampling import MaskSampler
from .tokens import Batch, MaskPlan, Tokens, take


@runtime_checkable
class Tokenizer(Protocol):
    """What cuts a batch into tokens: :class:`medmae.core.grid.ModalityGrid`, :class:`medmae.core.points.PointGroups`.

    Attributes:
        names: entries of the batch, in the order of the modality index.
    """

    names: tuple[str, ...]

    def __call__(self, batch: Batch) -> Tokens:
        """All tokens of a batch."""

    def counts(self, batch: Batch) -> Tensor | None:
        """Which values of every token count, or None where all do."""


class Autoencoder(Method):
    """Tokenize, hide, encode what is visible, decode where it is asked, compare.

    Args:
        tokenizer: what there is.
        sampler: who is visible and who is asked for.
        encoder: ``encoder(visible, full_layout) -> Encoded``.
        decoder: ``decoder(encoded, queries) -> [b t *what]``.
        target: what the answers are.
        distance: how far off a guess is, per token.
        reduce: what becomes of the means per modality: ``sum``, ``mean``, or None for one mean over all tokens.
        foreground_values: only values in the foreground of the batch are compared. Finer than weighing tokens by their
            share of foreground; for targets that are values of the image, where a token is a large cube.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        sampler: MaskSampler,
        encoder: nn.Module,
        decoder: nn.Module,
        target: nn.Module,
        distance: Distance,
        reduce: str | None = None,
        foreground_values: bool = False,
    ) -> None:
        super().__init__()
        if reduce not in ("sum", "mean", None):
            raise ValueError(f"reduce must be 'sum', 'mean' or None, not {reduce!r}")
        self.sequences = tokenizer.names
        self.tokenizer, self.sampler, self.target = tokenizer, sampler, target
        self.encoder, self.decoder = encoder, decoder
        self.distance, self.reduce = distance, reduce
        self.foreground_values = foreground_values

    def plan(self, batch: Batch) -> MaskPlan:
        """The plan that :meth:`forward` draws for this batch."""
        return self.sampler(self.tokenizer(batch), self.keys(batch))

    def guess(self, tokens: Tokens, plan: MaskPlan) -> Shaped[Tensor, "b t *what"]:
        """What the decoder answers where the plan asks."""
        ragged = tokens.layout.ragged or plan.ragged
        visible = tokens.at(plan.visible, ragged=ragged)
        queries = tokens.layout.at(plan.target, ragged=ragged)
        return self.decoder(self.encoder(visible, tokens.layout), queries)

    def forward(self, batch: Batch, plan: MaskPlan | None = None) -> dict[str, Tensor]:
        """The reconstruction loss.

        Args:
            batch: named tensors.
            plan: what to hide, in place of a draw.
        """
        tokens = self.tokenizer(batch)
        truth = self.target(tokens)
        plan = self.sampler(tokens, self.keys(batch)) if plan is None else plan
        guess, answer, weight = self.guess(tokens, plan), take(truth, plan.target), plan.weights()
        counts = self.tokenizer.counts(batch) if self.foreground_values else None
        if counts is None:
            error = self.distance(guess, answer)
        else:
            inside = take(counts, plan.target)
            share = inside.mean(-1)
            error = self.distance(guess * inside, answer * inside) / share.clamp_min(1e-6)
            weight = weight * share
        by = take(tokens.layout.modality, plan.target) if self.reduce else None
        loss = masked_mean(error, weight, by=by, groups=len(self.sequences), reduce=self.reduce or "sum")
        return {"reconstruction": loss}

    def after_step(self) -> None:
        """Let a teacher that follows the encoder follow it."""
        follow = getattr(self.target, "follow", None)
        if follow is not None:
            follow(self.encoder)
