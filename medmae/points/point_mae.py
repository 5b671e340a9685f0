"""Point-MAE: cut a cloud into groups around spread-out centers, hide most groups, and predict their points.

It differs from MAE in tokens that stand on no grid (groups of nearest points, relative to their centers, made into
features by a small PointNet), in positions that are learned from the centers and added before every block, and in a
loss that compares sets. Where a hidden group is tells much of what it looks like, so its center is given to the decoder
only: the encoder sees neither the content nor the place of anything hidden.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float, Shaped
from torch import Tensor

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.loss import chamfer
from medmae.core.points import PointGroups, ball
from medmae.core.sampling import MaskSampler, random, ratio
from medmae.core.target import Content
from medmae.nets.decoders import JointDecoder
from medmae.nets.points import MiniPointNet, PointPositions
from medmae.nets.vit import ViTEncoder, truncated_normal, xavier

CARD = Card(
    title="Masked Autoencoders for Point Cloud Self-supervised Learning",
    paper="arXiv:2203.06604",
    year=2022,
    reference="Pang-Yatian/Point-MAE @ 7445a68",
    license="MIT (reference code)",
    kind="points",
    parent="mae",
    changed=(
        "tokens are groups of nearest points around farthest-point centers",
        "a small PointNet embeds a group",
        "positions are learned from the centers and added before every block",
        "Chamfer distance of hidden groups",
    ),
    status="faithful",
    departures=(
        "Batch norms of the small PointNet take their statistics from visible groups only, so that in training too "
        "nothing hidden reaches the encoder; the reference embeds all groups. In evaluation both are the same.",
        "Linear maps in front of a batch norm have no bias, which would cancel.",
        "Clouds of different length may be padded (entry valid), and a cloud with fewer points than groups has fewer "
        "tokens; the reference needs clouds of one length.",
    ),
    citation="Pang, Wang, Tay, Liu, Tian, Yuan. Masked Autoencoders for Point Cloud Self-supervised Learning. "
    "ECCV 2022.",
)

SCALES = {
    "test": {"groups": 16, "group_size": 8, "width": 48, "depth": 2, "heads": 4, "decoder_depth": 1,
             "decoder_heads": 4, "hidden": (16, 32, 64)},
    "tiny": {"width": 192, "depth": 6, "heads": 3, "decoder_depth": 2, "decoder_heads": 3},
    "small": {},
}  # fmt: skip


def point_mae(
    *,
    groups: int = 64,
    group_size: int = 32,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    decoder_depth: int = 4,
    decoder_heads: int = 6,
    mlp_ratio: float = 4.0,
    hidden: tuple[int, int, int] = (128, 256, 512),
    drop_path: float = 0.1,
    eps: float = 1e-5,
    mask_ratio: float = 0.6,
    mask: Literal["random", "ball"] = "random",
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``points``, Float[b n 3], any number of points.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        groups: tokens per cloud.
        group_size: points per token.
        width: features per token, of encoder and decoder.
        hidden: widths of the first three layers of the small PointNet.
        drop_path: stochastic depth at the last block of the encoder, and at that of the decoder.
        mask_ratio: share of hidden groups, in [0, 1).
        mask: hide groups at random, or those nearest to a random center.
    """
    shared: dict[str, Any] = {
        "width": width, "every_block": True, "prefix": 0, "mlp_ratio": mlp_ratio, "qkv_bias": False,
        "drop_path": drop_path, "eps": eps,
    }  # fmt: skip
    method = Autoencoder(
        tokenizer=PointGroups(groups, group_size),
        sampler=MaskSampler(random() if mask == "random" else ball(), ratio(mask_ratio, cut_hidden=True)),
        encoder=ViTEncoder(
            embed=MiniPointNet(width, hidden=hidden), positions=PointPositions(width),
            depth=depth, heads=heads, **shared,
        ),
        decoder=JointDecoder(
            encoder_width=None, content=group_size * 3, positions=PointPositions(width), asked_only=True,
            depth=decoder_depth, heads=decoder_heads, **shared,
        ),
        target=Content(),
        distance=set_distance,
    )  # fmt: skip
    truncated_normal(method.encoder)
    xavier(method.decoder.blocks)  # type: ignore[arg-type]
    return method


def set_distance(guess: Shaped[Tensor, "b t *what"], truth: Float[Tensor, "b t s 3"]) -> Float[Tensor, "b t"]:
    """Squared Chamfer distance of every group; a guess is the coordinates of its points, in any order."""
    return chamfer(guess.reshape(truth.shape), truth)
