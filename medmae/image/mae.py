"""MAE: hide most patches of an image, encode the rest, and predict the hidden pixels with a small decoder.

It is the root of the family: one modality, uniform random masking, a joint decoder, a target normalized per patch.
"""

from __future__ import annotations

from medmae.core.autoencoder import Autoencoder
from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.loss import mse
from medmae.core.sampling import MaskSampler, random, ratio
from medmae.core.target import Content, Normalized
from medmae.nets.decoders import JointDecoder
from medmae.nets.embed import SharedEmbed
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder, xavier

CARD = Card(
    title="Masked Autoencoders Are Scalable Vision Learners",
    paper="arXiv:2111.06377",
    year=2021,
    reference="facebookresearch/mae @ efb2a80",
    license="CC BY-NC 4.0 (reference code and weights)",
    kind="image",
    status="faithful",
    citation="He, Chen, Xie, Li, Dollar, Girshick. Masked Autoencoders Are Scalable Vision Learners. CVPR 2022.",
)

SCALES = {
    "test": {"width": 32, "depth": 2, "heads": 4, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4,
             "size": (32, 32), "patch": (8, 8)},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "patch": (14, 14)},
}  # fmt: skip


def mae(
    *,
    size: tuple[int, ...] = (224, 224),
    patch: tuple[int, ...] = (16, 16),
    channels: int = 3,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    mlp_ratio: float = 4.0,
    eps: float = 1e-6,
    mask_ratio: float = 0.75,
    normalize_target: bool = True,
) -> Autoencoder:
    """Build the method; the batch entry it reads is ``image``, Float[b channels *size].
    Words without an entry below are in :mod:`medmae.core.glossary`.
    """
    grid = Grid(tuple(size), tuple(patch), channels)
    method = Autoencoder(
        tokenizer=ModalityGrid(("image",), grid),
        sampler=MaskSampler(random(), ratio(mask_ratio)),
        encoder=ViTEncoder(
            embed=SharedEmbed(grid.content, width),
            positions=SinCos(width),
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        decoder=JointDecoder(
            encoder_width=width,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            content=grid.content,
            positions=SinCos(decoder_width),
            mlp_ratio=mlp_ratio,
            eps=eps,
        ),
        target=Normalized() if normalize_target else Content(),
        distance=mse,
    )
    xavier(method)
    return method
