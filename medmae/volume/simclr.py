"""SimCLR on nnU-Net's residual encoder, in 3-D: two views of one window are to be found among those of all others.

It is here to be compared with. Unlike a masked autoencoder it needs other samples to learn from, so its batches must be
large, and it trains no decoder: what goes to nnU-Net is the encoder.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medmae.core.card import Card
from medmae.core.errors import UsageError
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.method import Method
from medmae.core.tokens import Batch
from medmae.nets.build import resenc
from medmae.nets.contrast import Head, lightly_losses, pooled
from medmae.nets.resenc import CnnEncoder, paint, unet
from medmae.nets.views import Views
from medmae.volume.parts import ENCODER_SCALES, KERNELS, STRIDES

_NO_GUESS = "Nothing is hidden and nothing is guessed: views are compared"

CARD = Card(
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    paper="arXiv:2002.05709",
    year=2020,
    reference="google-research/simclr (loss: lightly.loss.NTXentLoss)",
    license="Apache-2.0 (reference code), MIT (lightly)",
    kind="volume",
    status="adapted",
    departures=(
        "3-D windows and nnU-Net's residual encoder in place of 2-D images and a ResNet.",
        "Views differ by box, mirroring, intensity, blur, noise and missing sequences; the reference varies color.",
        "The box keeps its shape and 60 to 100 % of its edge; the reference keeps 8 to 100 % of the area.",
        "Layer norms in the head in place of batch norms over all devices, and the mean over places counts foreground.",
        "AdamW with the toolkit's schedule; the reference uses LARS with batches of 256 to 8192.",
    ),
    exempt={
        "hidden_content_never_leaks": _NO_GUESS,
        "samples_do_not_see_each_other": "Samples are one another's negatives, which is the method",
        "padding_is_inert": _NO_GUESS,
        "missing_modality_does_not_matter": _NO_GUESS + " (tests/volume/test_contrast.py checks the embedding)",
        "plan_is_sound": _NO_GUESS,
        "asked_is_hidden": _NO_GUESS,
        "perfect_prediction_costs_nothing": _NO_GUESS,
        "no_graph_breaks": _NO_GUESS + ", so there is no plan to give",
    },
    citation="Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual "
    "Representations. ICML 2020.",
)

SCALES = {**ENCODER_SCALES, "test": {**ENCODER_SCALES["test"], "hidden": 24, "out": 12}}


class SimCLR(Method):
    """Two views, one encoder, one projection head, and the loss over all pairs.

    Args:
        tokenizer: what there is; one token is the window of one sequence.
        encoder: a convolutional encoder.
        projector: head on the pooled features of its deepest level.
        views: makes the views.
        temperature: similarities are divided by it.
        gather: compare with the samples of all processes while training.
    """

    def __init__(
        self,
        *,
        tokenizer: ModalityGrid,
        encoder: CnnEncoder,
        projector: Head,
        views: Views,
        temperature: float = 0.1,
        gather: bool = True,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.sequences = tokenizer.names
        self.tokenizer, self.encoder, self.projector, self.views = tokenizer, encoder, projector, views
        self.temperature, self.gather = temperature, gather

    def check_training(self, *, batch: int, world: int) -> None:
        """Refuse a batch of one, from which nothing can be learned; MissingDependency without lightly."""
        lightly_losses()
        if batch * (world if self.gather else 1) < 2:
            raise UsageError(
                "simclr tells the samples of a batch apart, and a batch of 1 has none to tell from: "
                "use --set train.batch=32 or what fits (at least 2); accumulated parts do not see one another"
            )

    def embed(self, batch: Batch, *, view: int) -> Float[Tensor, "b out"]:
        """The projection of view number ``view`` of every sample."""
        grid = self.tokenizer.grid
        image, shown = paint(self.tokenizer(batch), grid, len(self.sequences))
        made = self.views(image, shown[..., 0], batch.get("foreground"), self.keys(batch), view=view)
        levels = self.encoder.features(made.image.to(image.dtype), made.present[..., None])
        out: Tensor = self.projector(pooled(levels[-1], made.foreground))
        return out

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, in [0, log(2 b - 1) + 2 / temperature]; zero for a single sample."""
        first, second = self.embed(batch, view=0), self.embed(batch, view=1)
        # Processes may hold different numbers of validation samples, so these are compared inside a process only.
        loss = lightly_losses().NTXentLoss(self.temperature, gather_distributed=self.gather and self.training)
        with torch.autocast(first.device.type, enabled=False):  # a difference of similarities counts 1/temperature fold
            return {"contrast": loss(first.float(), second.float())}


def simclr(
    *,
    sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f"),
    size: tuple[int, ...] = (128, 128, 128),
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320),
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6),
    kernels: tuple[tuple[int, ...], ...] = KERNELS,
    strides: tuple[tuple[int, ...], ...] = STRIDES,
    plain: bool = False,
    stem: Literal["stacked", "per_modality"] = "stacked",
    hidden: int = 512,
    out: int = 128,
    temperature: float = 0.1,
    gather: bool = True,
    zoom: tuple[float, float] = (0.6, 1.0),
    flip: float = 0.5,
    contrast: float = 0.2,
    brightness: float = 0.2,
    noise: float = 0.1,
    blur: float = 1.0,
    drop: float = 0.25,
) -> SimCLR:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        size: voxels per axis of a window and of its views; a multiple of the total stride.
        temperature: similarities are divided by it.
        gather: compare with the samples of all processes while training.
        drop: probability that a view loses every second of its sequences, at random.
    """
    grid, names = Grid(tuple(size), tuple(size)), tuple(sequences)
    convs = (1,) * (len(features) - 1)
    architecture = resenc(
        features=features, blocks=blocks, kernels=kernels, strides=strides, decoder_convs=convs, plain=plain
    )
    encoder, _ = unet(names=names, grid=grid, architecture=architecture, stem=stem)
    return SimCLR(
        tokenizer=ModalityGrid(names, grid),
        encoder=encoder,
        projector=Head(features[-1], hidden=hidden, out=out),
        views=Views(zoom=zoom, flip=flip, contrast=contrast, brightness=brightness, noise=noise, blur=blur, drop=drop),
        temperature=temperature,
        gather=gather,
    )
