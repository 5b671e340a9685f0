"""BYOL on nnU-Net's residual encoder, in 3-D: predict what a trailing copy of the network makes of another view.

Unlike SimCLR it needs no other samples, so it bears the small batches of 3-D training. Nothing but the predictor and
the trailing teacher keeps it from giving every window the same answer.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.method import Method
from medmae.core.tokens import Batch
from medmae.nets.build import resenc
from medmae.nets.contrast import Following, Head, lightly_losses, pooled
from medmae.nets.resenc import CnnEncoder, paint, unet
from medmae.nets.views import View, Views
from medmae.volume.parts import ENCODER_SCALES, KERNELS, STRIDES

_NO_GUESS = "Nothing is hidden and nothing is guessed: views are compared"

CARD = Card(
    title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
    paper="arXiv:2006.07733",
    year=2020,
    reference="deepmind/deepmind-research/byol (loss: lightly.loss.NegativeCosineSimilarity)",
    license="Apache-2.0 (reference code), MIT (lightly)",
    kind="volume",
    parent="simclr",
    changed=(
        "a predictor and a trailing teacher in place of negatives",
        "loss of a sample depends on that sample only",
    ),
    status="adapted",
    departures=(
        "3-D windows and nnU-Net's residual encoder in place of 2-D images and a ResNet.",
        "Views differ by box, mirroring, intensity, blur, noise and missing sequences, in both views alike; the "
        "reference varies color and treats the two views differently.",
        "Layer norms in the heads in place of batch norms, and the mean over places counts foreground.",
        "The teacher's momentum is constant unless `momentum_epochs` says over how many epochs it rises to one.",
        "AdamW with the toolkit's schedule; the reference uses LARS with batches of 4096.",
    ),
    exempt={
        "hidden_content_never_leaks": _NO_GUESS,
        "samples_do_not_see_each_other": _NO_GUESS + " (tests/volume/test_contrast.py checks the embedding)",
        "padding_is_inert": _NO_GUESS,
        "missing_modality_does_not_matter": _NO_GUESS + " (tests/volume/test_contrast.py checks the embedding)",
        "plan_is_sound": _NO_GUESS,
        "asked_is_hidden": _NO_GUESS,
        "perfect_prediction_costs_nothing": _NO_GUESS,
        "no_graph_breaks": _NO_GUESS + ", so there is no plan to give",
    },
    citation="Grill, Strub, Altche, et al. Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning. "
    "NeurIPS 2020.",
)

SCALES = {**ENCODER_SCALES, "test": {**ENCODER_SCALES["test"], "hidden": 24, "out": 12}}


class BYOL(Method):
    """Two views, a student with a predictor, and a teacher that follows the student.

    Args:
        tokenizer: what there is; one token is the window of one sequence.
        encoder: a convolutional encoder.
        projector: head on the pooled features of its deepest level.
        predictor: from a student's projection to the teacher's.
        views: makes the views.
        momentum: share of the teacher that stays at each step.
        momentum_epochs: epochs over which the momentum rises to one; None keeps it.
    """

    def __init__(
        self,
        *,
        tokenizer: ModalityGrid,
        encoder: CnnEncoder,
        projector: Head,
        predictor: Head,
        views: Views,
        momentum: float = 0.99,
        momentum_epochs: int | None = None,
    ) -> None:
        super().__init__()
        self.sequences = tokenizer.names
        self.tokenizer, self.encoder, self.views = tokenizer, encoder, views
        self.projector, self.predictor = projector, predictor
        self.target = Following(encoder, projector, momentum=momentum, epochs=momentum_epochs)

    def check_training(self, *, batch: int, world: int) -> None:
        """MissingDependency without lightly; any batch will do."""
        lightly_losses()

    def see(self, batch: Batch, *, view: int) -> View:
        """View number ``view`` of every sample."""
        image, shown = paint(self.tokenizer(batch), self.tokenizer.grid, len(self.sequences))
        made: View = self.views(image, shown[..., 0], batch.get("foreground"), self.keys(batch), view=view)
        return made

    @staticmethod
    def embed(view: View, encoder: nn.Module, projector: nn.Module) -> Float[Tensor, "b out"]:
        """The projection of a view by student or teacher."""
        levels = encoder.features(view.image, view.present[..., None])  # type: ignore[operator]
        out: Tensor = projector(pooled(levels[-1], view.foreground))
        return out

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The squared distance of normalized predictions and targets, both ways, in [0, 8]."""
        views = self.see(batch, view=0), self.see(batch, view=1)
        guesses = [self.predictor(self.embed(view, self.encoder, self.projector)) for view in views]
        with torch.no_grad():
            truths = [self.embed(view, self.target.teacher, self.target.projector) for view in views]
        apart = lightly_losses().NegativeCosineSimilarity()
        with torch.autocast(guesses[0].device.type, enabled=False):
            ways = [apart(guess.float(), truth.float()) for guess, truth in zip(guesses, reversed(truths), strict=True)]
        return {"distance": 2 * (2 + ways[0] + ways[1])}

    def after_step(self) -> None:
        """Let the teacher follow."""
        self.target.follow(self.encoder, self.projector)

    def after_epoch(self, epoch: int) -> None:
        """Let the momentum rise, where it is to."""
        self.target.after_epoch(epoch)


def byol(
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
    momentum: float = 0.99,
    momentum_epochs: int | None = None,
    zoom: tuple[float, float] = (0.6, 1.0),
    flip: float = 0.5,
    contrast: float = 0.2,
    brightness: float = 0.2,
    noise: float = 0.1,
    blur: float = 1.0,
    drop: float = 0.25,
) -> BYOL:
    """Build the method; it reads one batch entry per sequence, Float[b 1 *size], in units of the normalized volume.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        size: voxels per axis of a window and of its views; a multiple of the total stride.
        momentum: share of the teacher that stays at each step, in [0, 1].
        momentum_epochs: epochs over which the momentum rises to one, along half a cosine; None keeps it.
        drop: probability that a view loses every second of its sequences, at random.
    """
    grid, names = Grid(tuple(size), tuple(size)), tuple(sequences)
    convs = (1,) * (len(features) - 1)
    architecture = resenc(
        features=features, blocks=blocks, kernels=kernels, strides=strides, decoder_convs=convs, plain=plain
    )
    encoder, _ = unet(names=names, grid=grid, architecture=architecture, stem=stem)
    return BYOL(
        tokenizer=ModalityGrid(names, grid),
        encoder=encoder,
        projector=Head(features[-1], hidden=hidden, out=out),
        predictor=Head(out, hidden=hidden, out=out),
        views=Views(zoom=zoom, flip=flip, contrast=contrast, brightness=brightness, noise=noise, blur=blur, drop=drop),
        momentum=momentum,
        momentum_epochs=momentum_epochs,
    )
