"""nnU-Net's checkpoints, read without executing anything in them.

nnU-Net itself unpickles them freely. A model that somebody downloaded is therefore looked through first, with only
plain values allowed, before nnU-Net gets to see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmae.core.errors import CheckpointError


def _harmless() -> list[Any]:
    """What nnU-Net's checkpoints hold besides tensors: numpy's numbers, in the log."""
    from numpy.dtypes import Float16DType, Float32DType, Float64DType, Int64DType

    core: Any = getattr(np, "_core", None) or getattr(np, "core", None)
    rebuild = [core.multiarray.scalar, core.multiarray._reconstruct]
    numbers = [np.dtype, np.ndarray, Float16DType, Float32DType, Float64DType, Int64DType]
    # The same functions under the name of the older numpy, for files written there.
    return [*rebuild, *((item, f"numpy.core.multiarray.{item.__name__}") for item in rebuild), *numbers]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of nnU-Net; tensors stay on the disk until they are used.

    Raises:
        CheckpointError: it cannot be read, is none of nnU-Net's, or wants to execute something.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, pickle's among them
        raise CheckpointError(
            f"{path} cannot be read, or holds more than numbers: {str(error).splitlines()[0]}. "
            "If you trust its author, use nnUNetv2_predict, which executes what is in it"
        ) from error
    if not isinstance(found, dict) or "network_weights" not in found:
        raise CheckpointError(f"{path} is no checkpoint of nnU-Net: it has no network_weights")
    return found
