"""Pre-trained weights from wherever they come, in one form: tensors by plain name, and what their channels mean.

A medmae model folder says which sequences its channels are and how its volumes were oriented. Files of nnU-Net and
nnssl do not say the second: their arrays are (z, y, x) of files that are most often stored along the axes of RAS, and
that is what is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medmae.checkpoint import WEIGHTS, file_hash, model_folder, read_config
from medmae.convert.nnunet_file import read_nnunet_file
from medmae.convert.unet_keys import has_decoder, is_unet, once
from medmae.core.errors import CheckpointError
from medmae.find import find

ORIENTATION = "RAS"
"""What medmae reorients volumes to where nothing else is asked for."""


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        weights: tensors by plain name; ``encoder.*``, and ``decoder.*`` of a U-Net where there is one.
        channels: what the input channels are, by name; empty where nothing is known of them.
        orientation: axis codes of the arrays the weights were trained on.
        kind: ``cnn`` (a U-Net of nnU-Net) or ``vit`` (blocks of attention).
        origin: the file or folder, for messages and records.
        sha256: of the file of weights.
        citations: what to cite, in the layout of nnssl: dictionaries with type, name and apa_citations.
        notes: what a reader should know, such as copies of a tensor that differed.
        about: method and recipe of a model folder, or the adaptation plan of a file.
    """

    weights: Mapping[str, Tensor]
    channels: tuple[str, ...]
    orientation: str
    kind: str
    origin: str
    sha256: str
    citations: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether a U-Net's decoder is there too."""
        return has_decoder(self.weights)


def read_source(path: str | Path) -> Source:
    """Weights of a medmae model or run folder, of a file that was exported, or of an nnssl or nnU-Net checkpoint.

    Nothing in a file is executed.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read, or holds no encoder that fits a volume.
    """
    path = Path(path)
    return _of_folder(path) if path.is_dir() or not path.exists() else _of_file(path)


def _of_folder(path: Path) -> Source:
    folder, config = model_folder(path), read_config(path)
    found, recipe = find(config["method"]), config["recipe"]
    try:
        stored = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}; copy the folder again") from error
    weights, _ = once(stored)
    kind = "cnn" if is_unet(weights) else "vit"
    if found.card.kind != "volume" or not any(key.startswith("encoder.") for key in weights):
        raise CheckpointError(
            f"{path} holds {config['method']}, a method for {found.card.kind} data; nnU-Net starts from methods for "
            "volumes with an encoder, such as resenc_mae or bm_mae"
        )
    cite = {"type": "Method", "name": found.card.title, "apa_citations": [str(line) for line in config["citation"]]}
    orientation = ((config.get("data") or {}).get("preprocess") or {}).get("orientation") or ORIENTATION
    return Source(
        weights={key: value for key, value in weights.items() if key.startswith(("encoder.", "decoder."))},
        channels=tuple(recipe.get("sequences") or ()),
        orientation=orientation,
        kind=kind,
        origin=str(path),
        sha256=file_hash(folder / WEIGHTS),
        citations=(cite,),
        about={
            "method": config["method"],
            "recipe": recipe,
            "data": {"preprocess": {"orientation": orientation}},  # where a config has it
        },
    )


def _of_file(path: Path) -> Source:
    file = read_nnunet_file(path)
    if not is_unet(file.weights):
        what = "a Primus transformer" if file.is_primus else "no U-Net encoder"
        raise CheckpointError(
            f"{path} holds {what} (its first tensors are {', '.join(list(file.weights)[:3])}). "
            + ("Convert it first: medmae convert nnssl FILE --out FOLDER" if file.is_primus else "Give another file.")
        )
    return Source(
        weights={key: value for key, value in file.weights.items() if key.startswith(("encoder.", "decoder."))},
        channels=file.channels,
        orientation=file.orientation,
        kind="cnn",
        origin=str(path),
        sha256=file_hash(path),
        citations=file.citations,
        notes=file.notes,
        about={"adaptation_plan": file.adaptation},
    )
