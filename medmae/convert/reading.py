"""Tensors out of a file that somebody else made, without running any of its code.

A ``.pth`` file is a pickle, and a pickle is a program. torch's restricted reader builds tensors and plain containers
only and refuses everything else; safetensors holds no program to begin with.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmae.core.errors import CheckpointError, UsageError

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts nest the weights."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and ``torch.compile`` put before every name."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file or of a pickled state dict, on the CPU.

    Weights nested under one of :data:`WRAPPERS` are taken out, and prefixes of wrapping modules removed.

    Args:
        path: the file; its kind is told by its content, not by its name.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is damaged, holds anything but tensors, or would have to run code to be read.
    """
    path = Path(path)
    return _checked(_without_prefix(_unwrapped(read_contents(path), path)), path)


def read_contents(path: str | Path) -> Any:
    """Everything a file of weights holds, tensors and plain containers and numbers, on the CPU.

    Args:
        path: the file; its kind is told by its content, not by its name.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is damaged, or would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"{path}: {'that is a folder, give the weights file in it' if path.is_dir() else 'no such file'}"
        )
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: this is a Git LFS pointer, not the weights; run 'git lfs pull' or download the file"
        )
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: this is a web page, not weights (a download that asked for confirmation?)")
    return _read_safetensors(path) if _is_safetensors(head, path) else _read_pickle(path)


def checked_tensors(found: Mapping[Any, Any], path: str | Path) -> dict[str, Tensor]:
    """The entries of ``found``, all of them finite tensors, without the prefixes of wrapping modules.

    Raises:
        CheckpointError: an entry is anything else.
    """
    return _checked(_without_prefix(found), Path(path))


def _is_safetensors(head: bytes, path: Path) -> bool:
    """A length that fits in the file, then a JSON object."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{path}: a damaged safetensors file ({error}); download it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's own advice is to run the code: not passed on
        what = f"it asks for {wanted.group(1)}" if wanted else "it is not a plain state dict"
        raise CheckpointError(
            f"{path}: refused, because reading it would run code or build objects that are not tensors ({what}). "
            "Ask its author for a plain state dict or a safetensors file; medmae never unpickles anything else"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: not a file of weights, or a damaged one ({first}); download it again"
        ) from error


def _numbers() -> list[Any]:
    """What numpy's single numbers are pickled with: training loops leave them in their logs, and they run no code."""
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")}
    named = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*named, np.dtype, *kinds]


def _unwrapped(found: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, expected a mapping from names to tensors")
    for key in WRAPPERS:
        inner = found.get(key)
        if isinstance(inner, Mapping):
            return inner
    return found


def _without_prefix(found: Mapping[Any, Any]) -> dict[Any, Any]:
    for prefix in PREFIXES:
        if found and all(isinstance(key, str) and key.startswith(prefix) for key in found):
            found = {key[len(prefix) :]: value for key, value in found.items()}
    return dict(found)


def _checked(found: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Dense floating-point tensors under text keys, all finite."""
    faults = []
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            faults.append(f"{key!r} is a {type(value).__name__}, not a tensor")
        elif value.layout != torch.strided or not value.dtype.is_floating_point:
            faults.append(f"{key} is not a dense tensor of floating-point numbers")
        elif not bool(torch.isfinite(value).all()):
            faults.append(f"{key} holds NaN or infinity")
    if faults or not found:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{path}: {'; '.join(faults[:5]) or 'holds no tensors'}{more}")
    return {key: value.detach() for key, value in found.items()}
