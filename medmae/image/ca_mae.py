"""CA-MAE: channels are interchangeable to the encoder, so any subset of them, in any order, is a valid input.

It differs from MAE in one embedding of a single channel that all channels share, in tokens of every channel at every
place without a code that tells channels apart, in a decoder that knows the channels (one cross-attention for all, then
blocks of each one's own), and in a small loss on the spectrum of whole images. Channels may be MRI sequences.
"""

from __future__ import annotations

from medmae.core.card import Card
from medmae.core.grid import Grid, ModalityGrid
from medmae.core.sampling import MaskSampler, random, ratio
from medmae.core.spectrum import SpectrumAutoencoder
from medmae.image.parts import TEST_SCALE
from medmae.nets.cross import ChannelDecoder
from medmae.nets.embed import SharedEmbed
from medmae.nets.parallel import ParallelBlock
from medmae.nets.positions import SinCos
from medmae.nets.vit import ViTEncoder, xavier

CARD = Card(
    title="Masked Autoencoders for Microscopy are Scalable Learners of Cellular Biology",
    paper="arXiv:2404.10242",
    year=2024,
    reference="recursionpharma/maes_microscopy @ b3e68bb",
    license="non-commercial (reference code and weights)",
    kind="image",
    parent="mae",
    changed=(
        "one embedding for all channels, no channel code in the encoder",
        "parallel blocks with normalized queries and keys",
        "shared cross-attention, then a decoder per channel",
        "loss on Fourier magnitudes",
    ),
    status="adapted",
    departures=(
        "The released Fourier loss cannot run: it reads an attribute that is never set, and takes rows of tokens for "
        "an image. Here tokens are put back into images: guesses where something was asked, true values elsewhere. "
        "The transform is unitary, so that the weight of 0.01 does not depend on the size of the image.",
        "Images come standardized per channel; standardizing inside would show hidden pixels to the visible ones.",
        "The bias of a block's MLP goes to the MLP; timm 1.0, which the reference uses, adds most of it to queries, "
        "keys and values.",
        "Blocks of the decoder are plain, and their number of heads is our choice.",
        "Channels are known by name, and one that a sample lacks has no tokens and no loss.",
        "AdamW with the toolkit's schedule; the paper uses Lion with a one-cycle rate.",
    ),
    citation="Kraus, Kenyon-Dean, Saberian, et al. Masked Autoencoders for Microscopy are Scalable Learners of "
    "Cellular Biology. CVPR 2024.",
)

SCALES = {
    "test": {**TEST_SCALE, "sequences": ("a", "b", "c"), "layer_scale": 0.1, "drop_path": 0.0},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16, "drop_path": 0.3},
}  # fmt: skip


def ca_mae(
    *,
    sequences: tuple[str, ...] = ("dna", "er", "rna", "actin", "golgi", "mito"),
    size: tuple[int, ...] = (256, 256),
    patch: tuple[int, ...] = (16, 16),
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    layer_scale: float = 1e-4,
    drop_path: float = 0.1,
    decoder_width: int = 256,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    eps: float = 1e-6,
    mask_ratio: float = 0.75,
    fourier: float = 0.01,
    foreground_loss: bool = False,
) -> SpectrumAutoencoder:
    """Build the method; it reads one batch entry per channel, Float[b 1 *size], standardized.
    Words without an entry below are in :mod:`medmae.core.glossary`.

    Args:
        sequences: names of the channels, any number; the encoder has no parameter that belongs to one.
        decoder_depth: blocks of the decoder of every channel.
        fourier: weight of the loss on Fourier magnitudes; 0 leaves it out.
    """
    grid, names = Grid(tuple(size), tuple(patch)), tuple(sequences)
    method = SpectrumAutoencoder(
        tokenizer=ModalityGrid(names, grid),
        sampler=MaskSampler(random(), ratio(mask_ratio), weigh=foreground_loss),
        encoder=ViTEncoder(
            embed=SharedEmbed(grid.content, width), positions=SinCos(width), width=width, depth=depth, heads=heads,
            mlp_ratio=mlp_ratio, eps=eps, block=ParallelBlock, layer_scale=layer_scale, drop_path=drop_path,
        ),
        decoder=ChannelDecoder(
            names=names, encoder_width=width, content=grid.content, positions=SinCos(decoder_width),
            width=decoder_width, depth=decoder_depth, heads=decoder_heads, mlp_ratio=mlp_ratio, eps=eps,
        ),
        fourier=fourier,
    )  # fmt: skip
    xavier(method)
    return method
