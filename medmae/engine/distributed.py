"""The processes of a run: one, or several started by torchrun. The only module that knows accelerate.

accelerate reads the launcher's environment, picks the device and the backend, and wraps the method for DDP.
Sharding (FSDP2) uses torch's ``fully_shard`` directly: it keeps parameter names, so a checkpoint written by
one process loads in many and the other way round.

Losses are means over the local batch, and gradients are averaged over processes. So N processes with batch B
equal one process with batch N x B exactly when every sample weighs the same; where the number of targets
differs from sample to sample (incomplete cases), the average of means differs slightly from the mean over
all.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from medmae.core.errors import MissingDependency, UsageError


class Processes:
    """Rank, device and the few collective operations that the loop needs.

    ``device`` is "auto", "cpu", "cuda", "cuda:N" or "mps"; ``parallel`` is "ddp" or "fsdp" and matters only
    when torchrun started more than one process.
    """

    def __init__(self, *, device: str = "auto", parallel: str = "ddp") -> None:
        """Join the other processes; a device that is not there is a :class:`MissingDependency`."""
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState

        _check_device(device)
        if device.startswith("cuda:"):
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise UsageError(f"--device {device} with several processes: say cuda, every process takes its own.")
            torch.cuda.set_device(int(device.split(":")[1]))
        AcceleratorState._reset_state(reset_partial_state=True)  # a second run in this process chooses its device anew
        GradientState._reset_state()
        # Incomplete cases: a batch in which nobody has a sequence leaves that sequence's parameters without
        # gradient.
        kwargs = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[kwargs])
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.sharded = parallel == "fsdp" and self.world > 1
        self._announced: Tensor | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that talks and writes."""
        return self.rank == 0

    def wrap(self, method: nn.Module) -> nn.Module:
        """The module to call in a training step: ``method`` itself, or ``method`` in DDP, or sharded in
        place.
        """
        method.to(self.device)
        if self.world == 1:
            return method
        if not self.sharded:
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            wrapped: nn.Module = self._accelerator.prepare_model(method)
            return wrapped
        from torch.distributed.fsdp import fully_shard

        for parameter in method.parameters():  # which may be channels-last, and must be in rows to be sharded
            parameter.data = parameter.data.contiguous()
        for block in blocks(method):
            fully_shard(block)
        fully_shard(method)
        return method

    def accumulating(self, wrapped: nn.Module, *, more: bool) -> AbstractContextManager[None]:
        """Context of one micro-step; with ``more`` to come, gradients are not exchanged yet."""
        if self.world == 1 or not more:
            return nullcontext()
        return _unsynchronized(wrapped) if self.sharded else wrapped.no_sync()  # type: ignore[operator]

    def mean(self, values: Tensor) -> Tensor:
        """Average of a tensor over processes."""
        return self.total(values) / self.world if self.world > 1 else values

    def total(self, values: Tensor) -> Tensor:
        """Sum of a tensor over processes."""
        if self.world > 1:
            values = values.to(self.device).contiguous().clone()
            torch.distributed.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """The main process's ``value`` (anything picklable between our own processes), on every process."""
        if self.world == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def anyone(self, code: int) -> int:
        """The largest ``code`` of any process: of this step when alone, of the previous step when several.

        Every process gets the same answer, so all stop at the same step. The answer is read one step late so
        that the device never waits for it.
        """
        if self.world == 1:
            return code
        earlier = self._announced
        self._announced = torch.tensor([code], device=self.device, dtype=torch.int32)
        torch.distributed.all_reduce(self._announced, op=torch.distributed.ReduceOp.MAX)
        return int(earlier.item()) if earlier is not None else 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, on every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self._accelerator.wait_for_everyone()


def leave() -> None:
    """Leave the process group, at the very end of a command that torchrun started; harmless when alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def blocks(method: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, inner ones first: what is worth sharding one by one.

    Children of a ``ModuleList`` that are of one class, at least two of them, and made of several layers.
    """
    found: list[nn.Module] = []
    for module in method.modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(m) for m in module}) > 1:
            continue
        found += [m for m in module if any(True for _ in m.children()) and any(True for _ in m.parameters())]
    return found[::-1]


def whole(value: Tensor) -> Tensor:
    """A full copy on the CPU of a tensor that may be sharded (a collective operation when it is)."""
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().to("cpu", copy=True)


@torch.no_grad()
def put(full: Tensor, into: Tensor) -> None:
    """Copy a full tensor into one that may be sharded (a collective operation when it is)."""
    if hasattr(into, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        full = distribute_tensor(full.to(into.device), into.device_mesh, into.placements)  # type: ignore[attr-defined]
    into.copy_(full)


def fill_twin(twin: nn.Module | None, sharded: nn.Module) -> nn.Module:
    """Load the weights of a sharded method into its whole copy (collective); without a copy the method comes
    back.
    """
    full = {n: whole(v) if isinstance(v, Tensor) else v for n, v in sharded.state_dict().items()}
    if twin is None:
        return sharded
    twin.load_state_dict(full)
    return twin


def gradient_norm(parameters: Iterable[nn.Parameter], *, clip: float | int | None) -> Tensor:
    """Euclidean norm of all gradients before clipping (a scalar on the device); clips in place when asked."""
    held = [p for p in parameters if p.grad is not None]
    if not held:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(held, clip, norm)
    return norm.detach()


@contextmanager
def _unsynchronized(sharded: Any) -> Any:
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "the driver reports no GPU"
        raise MissingDependency(f"--device {device}: no CUDA device ({why}). Use --device cpu, or see `medmae doctor`.")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise MissingDependency(f"--device {device}: there are only {torch.cuda.device_count()} CUDA devices.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MissingDependency("--device mps: Metal is not available here. Use --device cpu.")
