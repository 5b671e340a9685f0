"""What the methods of this folder share: the networks of VideoMAE, and targets that leave frames out."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.autoencoder import Autoencoder
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, ratio_of_tubes, tube
from medmae.core.target import Content, Normalized
from medmae.core.tokens import Tokens
from medmae.nets.decoders import JointDecoder
from medmae.nets.embed import SharedEmbed
from medmae.nets.positions import Counted
from medmae.nets.vit import ViTEncoder, xavier

TEST_SCALE: dict[str, Any] = {
    "width": 48, "depth": 2, "heads": 4, "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 4,
    "size": (8, 32, 32), "patch": (2, 8, 8), "mask_ratio": 0.75,
}  # fmt: skip
"""Small, with as many steps in time as running cells need to come round."""

VIDEOMAE_SCALES: dict[str, dict[str, Any]] = {
    "test": TEST_SCALE,
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 96, "decoder_heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 192, "decoder_heads": 3},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16, "decoder_width": 512, "decoder_heads": 8},
}  # fmt: skip

VIDEOMAE_DEPARTURES = (
    "Targets are computed from the values of the batch; the reference undoes the ImageNet normalization first. "
    "Normalized per channel both are the same but for the epsilon (1e-6 in other units); not normalized, the "
    "reference predicts pixels in [0, 1].",
    "Keys have a bias as queries and values do; it cancels in the softmax.",
    "The patch embedding starts from Xavier-uniform weights, like every other linear map.",
)
"""How :func:`videomae_step` differs from the references of both methods that are made of it."""


def videomae_step(
    size: tuple[int, ...],
    patch: tuple[int, ...],
    channels: int,
    *,
    width: int,
    depth: int,
    heads: int,
    decoder_width: int,
    decoder_depth: int,
    decoder_heads: int,
    mlp_ratio: float,
    eps: float,
    mask_ratio: float,
    normalize_target: bool,
    **asked: Any,
) -> Autoencoder:
    """VideoMAE; the arguments are those of :func:`videomae.videomae`, and ``asked`` tells its sampler whom to ask for.

    There is no [CLS], positions are counted in one row, and the decoder gets the visible tokens and one mask token for
    each query, never the full set.
    """
    grid = Grid(size, patch, channels)
    places = grid.length // grid.shape[0]
    method = Autoencoder(
        tokenizer=ModalityGrid(("video",), grid),
        sampler=MaskSampler(tube(places), ratio_of_tubes(mask_ratio, positions=places), **asked),
        encoder=ViTEncoder(
            embed=SharedEmbed(grid.content, width),
            positions=Counted(grid.shape, width),
            width=width,
            depth=depth,
            heads=heads,
            prefix=0,
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        decoder=JointDecoder(
            encoder_width=width,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            content=grid.content,
            positions=Counted(grid.shape, decoder_width),
            embed_bias=False,
            asked_only=True,
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        target=Normalized(channels=grid.channels, eps_outside=True) if normalize_target else Content(),
        distance=mse,
    )
    xavier(method)
    return method


class SomeFrames(nn.Module):
    """Another target, told of evenly spread frames only: the first of the clip, the last, and those between.

    Frame number j of T' is frame ``j * (T - 1) // (T' - 1)`` of T, which always lies in the token that predicts it.

    Args:
        grid: how the clip was cut; time is its first axis.
        stride: frames of the clip for each frame that is kept; must divide the frames of a token.
        then: the target.

    Raises:
        ValueError: the stride does not divide the frames of a token.
    """

    def __init__(self, grid: Grid, stride: int, then: nn.Module) -> None:
        super().__init__()
        if stride < 1 or grid.patch[0] % stride:
            raise ValueError(f"target_stride {stride} does not divide the {grid.patch[0]} frames of a token")
        self.grid, self.then = grid, then
        frames, kept = grid.size[0], grid.size[0] // stride
        self.frames = tuple(j * (frames - 1) // max(1, kept - 1) for j in range(kept))

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n what"]:
        """What ``then`` says of the frames that are kept."""
        steps, long = self.grid.shape[0], self.grid.patch[0]
        by_frame = tokens.content.unflatten(1, (steps, -1)).unflatten(-1, (long, -1)).transpose(2, 3)
        kept = by_frame.flatten(1, 2)[:, list(self.frames)]  # [b frames places values]
        content = kept.unflatten(1, (steps, -1)).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.then(Tokens(tokens.layout, content))  # type: ignore[no-any-return]
