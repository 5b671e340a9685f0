"""One process of ``bm_mae_step.py``: builds one configuration and serves one training step per line of standard
input."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from bm_mae_setups import Setup


def work(setup: Setup, threads: int) -> None:
    """Serve steps: every line on standard input is one step, every answer one line of JSON."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = {"ours": ours, "naive": naive, "monai": monai}[setup.kind](setup)
    answer = sys.stdout
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        start, cpu = time.perf_counter(), time.process_time()
        loss = step()
        seconds, busy = time.perf_counter() - start, time.process_time() - cpu
        after = resource.getrusage(resource.RUSAGE_SELF)
        print(
            json.dumps(
                {
                    "wall": seconds,
                    "cpu": busy,
                    "faults": after.ru_minflt - before.ru_minflt,
                    "peak": after.ru_maxrss * 1024,
                    "loss": loss,
                }
            ),
            file=answer,
            flush=True,
        )


def images() -> list[Any]:
    """Four volumes of noise [1 1 128 128 128]."""
    import torch

    draw = torch.Generator().manual_seed(1)
    return [torch.randn(1, 1, 128, 128, 128, generator=draw) for _ in range(4)]


def stepper(module: Any, loss: Callable[[int], Any], optimizer: Any, precision: str) -> Callable[[], float]:
    """A whole training step as a function."""
    import torch

    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(count)
        value.backward()
        optimizer.step()
        return float(value.detach())

    module.train()
    return step


def ours(setup: Setup) -> Callable[[], float]:
    """The published preset, trained as the engine does it."""
    import torch

    from medmae.engine.allocator import keep_freed_memory
    from medmae.engine.optimizer import adamw, parameter_groups
    from medmae.find import find
    from medmae.nets import kernels

    if setup.allocator == "kept":
        keep_freed_memory()
    if setup.options.get("products") == "torch":
        kernels.onednn_is_faster = lambda: False  # type: ignore[assignment]
    if setup.options.get("attention") == "fused":
        kernels._wants_heads = lambda q, k, v: False
    method = find("bm_mae").build(preset="published", decoder_dropout=setup.dropout)
    if setup.options.get("loop"):
        groups = parameter_groups(method, weight_decay=0.05, decay_all=True)
        optimizer: Any = torch.optim.AdamW(groups, lr=1e-4)  # type: ignore[arg-type]
    else:
        optimizer = adamw(method, lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999), decay_all=True)
    batch = dict(zip(("t1n", "t1c", "t2w", "t2f"), images(), strict=True))
    return stepper(
        method, lambda i: method(batch | {"key": torch.tensor([i])})["reconstruction"], optimizer, setup.precision
    )


def naive(setup: Setup) -> Callable[[], float]:
    """The straightforward implementation with torch's optimizer."""
    import torch
    from naive_bm_mae import NAMES, NaiveBMMAE

    model = NaiveBMMAE(decoder_dropout=setup.dropout, **setup.options)
    batch = dict(zip(NAMES, images(), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    return stepper(model, lambda i: model(batch), optimizer, setup.precision)


def monai(setup: Setup) -> Callable[[], float]:
    """MONAI's MAE on the same four volumes, stacked along the first axis: 2048 patches of 16^3, 512 visible, the same
    sizes."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    model = MaskedAutoEncoderViT(
        in_channels=1, img_size=(512, 128, 128), patch_size=16, hidden_size=768, mlp_dim=1536, num_layers=12,
        num_heads=12, masking_ratio=0.75, decoder_hidden_size=384, decoder_mlp_dim=1536, decoder_num_layers=3,
        decoder_num_heads=12, dropout_rate=setup.dropout, qkv_bias=True,
    )  # fmt: skip
    volume = torch.cat(images(), 2)
    truth = volume.reshape(1, 32, 16, 8, 16, 8, 16).permute(0, 1, 3, 5, 2, 4, 6).reshape(1, 2048, 4096)

    def loss(_: int) -> Any:
        guess, mask = model(volume)
        return ((guess - truth).square().mean(-1) * mask).sum() / mask.sum()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    return stepper(model, loss, optimizer, setup.precision)


if __name__ == "__main__":
    work(Setup(**json.loads(sys.argv[1])), int(sys.argv[2]))
