"""The step of a masked autoencoder with a second loss, on whole images: how strong each spatial frequency is.

A mean squared error is content with a smooth guess, which lacks the high frequencies that make up texture. Frequencies
belong to images and not to tokens, so tokens are put back into images before they are compared.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .grid import ModalityGrid
from .loss import masked_mean, mse, spectrum_l1
from .method import Method
from .sampling import MaskSampler
from .target import Content
from .tokens import Batch, MaskPlan, Tokens, take


class SpectrumAutoencoder(Method):
    """The step of a masked autoencoder, and the spectrum of the images that its guesses complete.

    Args:
        tokenizer: what there is.
        sampler: who is visible and who is asked for.
        encoder: of visible tokens.
        decoder: ``decoder(encoded, queries) -> [b t content]``.
        fourier: weight of the loss on magnitudes.
    """

    def __init__(
        self, *, tokenizer: ModalityGrid, sampler: MaskSampler, encoder: nn.Module, decoder: nn.Module, fourier: float
    ) -> None:
        super().__init__()
        self.sequences, self.fourier, self.target = tokenizer.names, fourier, Content()
        self.tokenizer, self.sampler, self.encoder, self.decoder = tokenizer, sampler, encoder, decoder

    def plan(self, batch: Batch) -> MaskPlan:
        """The plan that :meth:`forward` draws for this batch."""
        return self.sampler(self.tokenizer(batch), self.keys(batch))

    def guess(self, tokens: Tokens, plan: MaskPlan) -> Shaped[Tensor, "b t what"]:
        """What the decoder answers where the plan asks."""
        ragged = tokens.layout.ragged or plan.ragged
        visible = tokens.at(plan.visible, ragged=ragged)
        return self.decoder(self.encoder(visible, tokens.layout), tokens.layout.at(plan.target, ragged=ragged))

    def forward(self, batch: Batch, plan: MaskPlan | None = None) -> dict[str, Tensor]:
        """The mean squared error of hidden patches, and the weighted error of magnitudes of the images they are in.

        Args:
            batch: named tensors.
            plan: what to hide, in place of a draw.
        """
        tokens = self.tokenizer(batch)
        plan = self.sampler(tokens, self.keys(batch)) if plan is None else plan
        guess, weight = self.guess(tokens, plan), plan.weights()
        losses = {"reconstruction": masked_mean(mse(guess, take(self.target(tokens), plan.target)), weight)}
        if self.fourier:
            truth, made = self.images(tokens.content), self.images(self.painted(tokens, plan, guess))
            image = take(tokens.layout.modality, plan.target)
            asked = torch.stack([(weight * (image == i)).sum(1) > 0 for i in range(len(self.sequences))], 1)
            error = spectrum_l1(made, truth).reshape(len(guess), len(self.sequences), -1).mean(-1)
            losses["fourier"] = self.fourier * masked_mean(error, asked.float())
        return losses

    def painted(self, tokens: Tokens, plan: MaskPlan, guess: Float[Tensor, "b t what"]) -> Float[Tensor, "b n what"]:
        """The content of all tokens, with guesses where something was asked."""
        canvas = torch.cat([tokens.content, tokens.content[:, :1]], 1)  # the last row takes the pads
        column = torch.where(plan.target < 0, tokens.layout.total, plan.target)[..., None].expand_as(guess)
        return canvas.scatter(1, column, guess.to(canvas.dtype))[:, : tokens.layout.total]

    def images(self, content: Float[Tensor, "b n what"]) -> Float[Tensor, "b c *size"]:
        """All tokens put back where they were cut from."""
        grid, m = self.tokenizer.grid, len(self.sequences)
        image = grid.unpatchify(content.reshape(-1, grid.length, grid.content))
        return image.reshape(-1, m, *image.shape[1:]).flatten(1, 2)
