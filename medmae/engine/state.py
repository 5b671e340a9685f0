"""Trainer checkpoints: everything that the next step depends on, in one file that is either complete or not there.

A checkpoint holds the step, the method, the optimizer, the averaged weights and the best validation so far.
Everything else is a function of the step. Tensors are stored whole and by parameter name, so that the number
of processes may change. A file is written under a hidden name, flushed to disk and renamed; it is read with
``weights_only=True`` after the checksums of its records were verified.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmae.atomic import flush
from medmae.core.errors import CheckpointError, MedmaeError
from medmae.engine.distributed import put, whole

FORMAT = 1


def collect(
    method: nn.Module, optimizer: torch.optim.Optimizer, averages: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """Method, optimizer and averaged weights as full CPU tensors by name (collective when sharded)."""
    moments: dict[str, dict[str, Tensor]] = {}
    for name, parameter in method.named_parameters():
        if parameter in optimizer.state:
            moments[name] = {k: whole(v) for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
    return {
        "method": {n: whole(v) if isinstance(v, Tensor) else v for n, v in _own(method).items()},
        "optimizer": moments,
        "averages": None if averages is None else {n: whole(v) for n, v in averages.items()},
    }


def restore(
    state: Mapping[str, Any],
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, Tensor] | None,
) -> None:
    """Put what :func:`collect` gathered back in place; :class:`CheckpointError` when names or shapes differ."""
    present = _own(method)
    _same_names("method", present, state["method"])
    for name, value in present.items():
        if isinstance(value, Tensor):
            _same_shape(name, value, state["method"][name])
            put(state["method"][name], value)
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in method.named_parameters():
        stored = state["optimizer"].get(name)
        if stored is None:
            continue
        optimizer.state[parameter] = {}
        for key, value in stored.items():
            if key != "step":
                held = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
                put(value, held)
            else:  # torch keeps it on the CPU unless the optimizer is fused
                held = value.to(parameter.device) if fused else value.clone()
            optimizer.state[parameter][key] = held
    if averages is not None:
        _same_names("averages", averages, state["averages"] or {})
        for name, value in averages.items():
            put(state["averages"][name], value)


def _own(method: nn.Module) -> dict[str, Any]:
    """The state of a method, a tensor that is registered under several names under its first one only."""
    own = {name for name, _ in method.named_parameters()} | {name for name, _ in method.named_buffers()}
    return {n: v for n, v in method.state_dict().items() if n in own or not isinstance(v, Tensor)}


def write_state(folder: Path, state: Mapping[str, Any], *, step: int, keep: int) -> Path:
    """Write ``folder/step-N.pt`` atomically, then remove all but the newest ``keep``.

    Raises :class:`MedmaeError` when the disk is full; older checkpoints are untouched then, and the newest is
    named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    partial = folder / f".{path.name}.partial"
    needed = _size(state)
    try:
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write_file(partial, {"format": FORMAT, "step": step, **state})
        os.replace(partial, path)
        flush(folder)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error) and "iostream" not in str(error):
            raise
        reason = "the disk is full" if disk_full(error) else str(error).strip().splitlines()[0]
        raise MedmaeError(
            f"The checkpoint of step {step} ({needed / 2**20:.0f} MiB) could not be written to {folder}: {reason}.\n"
            f"{last_good(folder)}\nFree some space (or lower --set train.keep), then go on with --resume."
        ) from error
    for old in states(folder)[:-keep]:
        old.unlink()
    return path


def states(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    return sorted(folder.glob("step-*.pt"))


def last_good(folder: Path) -> str:
    """One sentence that names the newest checkpoint."""
    found = states(folder)
    return f"The last good checkpoint is {found[-1]}." if found else "No checkpoint had been written yet."


def newest_state(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    """The newest readable checkpoint, or None; damaged ones are set aside with a warning.

    Raises :class:`CheckpointError` when checkpoints exist and none can be read.
    """
    for partial in folder.glob(".step-*.partial"):
        partial.unlink()
    found = states(folder)
    for path in reversed(found):
        fault = damage(path)
        if fault is None:
            return path
        aside = path.with_name(f"damaged-{path.name}")
        os.replace(path, aside)
        say(f"Warning: {path.name} is damaged ({fault}); it was renamed to {aside.name} and the one before is used.")
    if found:
        raise CheckpointError(
            f"None of the {len(found)} checkpoints in {folder} can be read; start again with --overwrite."
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None: every record's checksum is verified."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return None if bad is None else f"record {bad} fails its checksum"
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__


def read_state(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU without unpickling code; :class:`CheckpointError` when it is not one of
    ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is not a trainer checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a trainer checkpoint of format {FORMAT}.")
    return state


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):  # libraries with errors of their own (safetensors)
            return True
        error = error.__cause__
    return False


def not_finite(row: Mapping[str, Any], losses: Mapping[str, float], norm: float, *, checkpoints: Path) -> str:
    """What to say when a step's loss or gradient norm is NaN or infinite."""
    told = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
    return (
        f"Training stopped: step {row['step']} has a loss or gradient that is not finite "
        f"({told}, gradient norm {norm:g}, lr {row['lr']:.3g}).\n{last_good(checkpoints)}\n"
        "Look for broken volumes with `medmae data check`; otherwise lower train.lr, lengthen train.warmup, "
        "lower train.clip or train with --precision fp32."
    )


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk anywhere inside into a :class:`MedmaeError` that names the newest checkpoint in
    ``folder``.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MedmaeError) or not disk_full(error):
            raise
        raise MedmaeError(
            f"The disk is full: {error}.\n{last_good(folder)}\nFree some space, then go on with --resume."
        ) from error


def _write_file(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def _size(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(_size(v) for v in state.values())
    return 64


def _same_names(what: str, present: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    missing, unknown = sorted(set(present) - set(stored)), sorted(set(stored) - set(present))
    if missing or unknown:
        raise CheckpointError(
            f"The checkpoint's {what} does not fit: "
            f"missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} ({len(unknown)})."
        )


def _same_shape(name: str, present: Any, stored: Any) -> None:
    if isinstance(present, Tensor) and present.shape != stored.shape:
        raise CheckpointError(f"{name}: the checkpoint has {tuple(stored.shape)}, the method {tuple(present.shape)}.")
