"""What a MONAI bundle calls: cases in, a table of feature vectors out.

Cases are read by the functions that read the training cases, so that a bundle cannot meet other intensities than its
network learned on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medmae.atomic import write_text
from medmae.checkpoint import load_state
from medmae.core.errors import CheckpointError, UsageError
from medmae.transfer.backbone import volume_features

from .network import PooledFeatures


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fill a network from a safetensors file, strictly.

    Raises:
        CheckpointError: it cannot be read, or does not fit.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy the file again") from error
    load_state(network, state)


class Extractor:
    """Feature vectors of cases.

    Args:
        network: what the bundle's configuration builds.
        weights: safetensors file.
        preprocess: how the images of the pre-training were prepared.
    """

    def __init__(self, network: PooledFeatures, weights: str | Path, preprocess: Mapping[str, Any]) -> None:
        load_weights(network, weights)
        self.network, self.preprocess = network.eval(), preprocess

    def run(self, cases: Sequence[Mapping[str, str]], output_dir: str | Path) -> Path:
        """Write ``features.csv``: one row per case, with its number, its sequences and its vector.

        Args:
            cases: sequence -> file, and optionally ``key`` -> name of the case and ``mask`` -> file of the foreground.
            output_dir: folder to write to.

        Raises:
            UsageError: no cases, or a case with none of the sequences that the model knows.
            DataError: an image that cannot be read.
        """
        from medmae.data.inference import load_case

        if not cases:
            raise UsageError("no cases: give a list such as [{'t1n': 'a.nii.gz', 't2w': 'b.nii.gz'}]")
        names = tuple(self.network.sequences)
        for i, case in enumerate(cases):
            if strange := sorted(set(case) - {*names, "key", "mask"}):
                raise UsageError(f"case {i} has {', '.join(strange)}; this model knows {', '.join(names)}")
            if not set(case) & set(names):
                raise UsageError(f"case {i} has no image; this model knows {', '.join(names)}")
        backbone = self.network.network.backbone
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["case", "sequences", *(f"feature_{i}" for i in range(backbone.width))])
        for i, case in enumerate(cases):
            files = {name: case[name] for name in names if name in case}
            found = load_case(files, self.preprocess, mask=case.get("mask"))
            vector = volume_features(
                backbone,
                {name: torch.from_numpy(image) for name, image in found.images.items()},
                torch.from_numpy(found.foreground),
                spacing=found.spacing,
            )
            table.writerow([case.get("key", i), " ".join(found.images), *(f"{x:.8g}" for x in vector.tolist())])
        return write_text(Path(output_dir) / "features.csv", text.getvalue())
