"""What the arguments of the builders mean: the words that methods share, explained once.

A builder's docstring explains only the words that mean something else there, or that no other method has. So a method's
file states what is different, a word means one thing everywhere, and :func:`meanings` still has an answer for every
argument: ``medmae show`` prints it, and the conformance suite asks for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

GLOSSARY: dict[str, str] = {
    "sequences": "names of the sequences, each an entry of the batch; any number",
    "size": "pixels or voxels per axis of what one forward pass sees, a multiple of patch",
    "patch": "pixels or voxels per axis of a patch, which is one token; axes may differ",
    "channels": "values per pixel or voxel (of each sequence)",
    "width": "features per token of the encoder",
    "depth": "blocks of the encoder",
    "heads": "attention heads of the encoder; its width is a multiple of them",
    "mlp_ratio": "hidden width of the MLPs over the width",
    "layer_scale": "initial factor of every residual branch of the encoder",
    "drop_path": "stochastic depth: probability of skipping the last block of the encoder, in [0, 1); 0 at the first",
    "decoder_width": "features per token of the decoder",
    "decoder_depth": "blocks of the decoder",
    "decoder_heads": "attention heads of the decoder; its width is a multiple of them",
    "eps": "added to the variance in the layer norms",
    "mask_ratio": "share of hidden tokens, over all sequences, in [0, 1)",
    "alpha": "concentration of the Dirichlet shares; lower is more unequal",
    "foreground_loss": "weigh the loss of every token by its share of foreground",
    "normalize_target": "predict values normalized per token to zero mean and unit variance",
    "variance_floor": "smallest variance a target is divided by, in squared units of the input",
}
"""Words of all kinds of data."""

OF_KIND: dict[str, dict[str, str]] = {
    "volume": {
        "sequences": "names of the sequences, any number; where they are channels of one network, in this order",
        "size": "voxels per axis of what one forward pass sees, a multiple of patch, or of block and the total stride",
        "features": "channels of every stage, fine to coarse",
        "blocks": "residual blocks of every stage (convolutions where plain)",
        "kernels": "kernel edges per stage and axis",
        "strides": "factors per stage and axis; all 1 at the first stage",
        "decoder_convs": "convolutions of every decoder stage, coarse to fine",
        "plain": "nnU-Net's network of stacked convolutions in place of residual blocks",
        "stem": "one stem over all channels, as in nnU-Net, or one per sequence, fused by a mean over those visible",
        "complete": "probability of hiding a random subset of the sequences whole and showing the rest whole; it takes "
        "some to reconstruct missing sequences",
        "hidden": "features inside the heads",
        "out": "features of a projection",
        "zoom": "smallest and largest edge of a view as a share of the window, in (0, 1]",
        "flip": "probability per axis that a view is mirrored",
        "contrast": "intensities are multiplied by 1 + U(-contrast, contrast), per sequence",
        "brightness": "U(-brightness, brightness) standard deviations are added, per sequence",
        "noise": "largest standard deviation of Gaussian noise",
        "blur": "largest standard deviation of a Gaussian blur, in voxels",
    },
    "video": {
        "size": "frames, rows and columns of a clip, multiples of patch",
        "patch": "frames, rows and columns of a token",
    },
    "audio": {
        "size": "frames (10 ms each) and mel bins of a spectrogram, multiples of patch",
        "patch": "frames and mel bins of a token",
        "rate": "samples per second of the sound that the frontend takes",
        "mean": "mean of the log-mel values of the data",
        "std": "standard deviation of the same; values become (x - mean) / (2 std)",
        "compat": "the positions of the released weights, which belong to the transposed grid",
    },
}
"""Words of one kind of data, which go before those of all kinds."""


def glossary(kind: str) -> dict[str, str]:
    """Every word that a method of this kind need not explain.

    Args:
        kind: of the method's card; one without words of its own has those of all kinds.
    """
    return GLOSSARY | OF_KIND.get(kind, {})


def own_meanings(builder: Callable[..., object]) -> dict[str, str]:
    """What a builder's docstring says under ``Args:``, each entry on one line."""
    _, found, section = (inspect.getdoc(builder) or "").partition("\nArgs:\n")
    words: dict[str, str] = {}
    word = ""
    for line in section.splitlines() if found else ():
        entry = re.fullmatch(r" {4}(\w+): (.+)", line)
        if entry:
            word, words[entry[1]] = entry[1], entry[2]
        elif word and line.startswith(" " * 8):
            words[word] += f" {line.strip()}"
        else:  # an empty line, or another section
            break
    return {word: meaning.replace("``", "").rstrip(".") for word, meaning in words.items()}


def meanings(builder: Callable[..., object], kind: str) -> dict[str, str]:
    """What every argument of a builder means, in their order: its own docstring first, then the glossary.

    An argument that neither explains is left out.

    Args:
        builder: of a method.
        kind: of the method's card.
    """
    words = glossary(kind) | own_meanings(builder)
    return {name: words[name] for name in inspect.signature(builder).parameters if name in words}
