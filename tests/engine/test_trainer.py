"""The loop on the toy: what it writes, what it refuses, what it survives."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Toy, make_toy, train_toy

from medmae.core.errors import CheckpointError, MedmaeError, OutOfMemory, UsageError
from medmae.engine import state
from medmae.engine.ema import WeightAverage
from medmae.engine.journal import read_rows
from medmae.engine.state import read_state, states


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["split"], r["loss"]) for r in read_rows(folder / "metrics.jsonl")]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def final(folder: Path) -> dict[str, Any]:
    return read_state(states(folder / "checkpoints")[-1])


def test_layout_and_result(tmp_path: Path) -> None:
    result, toy = train_toy(tmp_path / "run", train={"validate_every": 4, "checkpoint_every": 5, "keep": 2})
    run = tmp_path / "run"
    assert result.steps == 12
    assert result.folder == run
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "data",
        "log.txt",
        "model",
        "DONE",
    }
    assert [p.name for p in states(run / "checkpoints")] == ["step-000000010.pt", "step-000000012.pt"]
    rows = losses(run)
    assert [s for s, split, _ in rows if split == "train"] == list(range(1, 13))
    assert [s for s, split, _ in rows if split == "val"] == [4, 8, 12]
    assert result.best == min(v for _, split, v in rows if split == "val")
    assert rows[0][2] > rows[-1][2]
    assert toy.epochs == [0, 1]  # 24 samples, 10 an epoch
    assert int(toy.steps) == 12
    about = json.loads((run / "model" / "about.json").read_text())
    assert about["data"]["size"] == 10
    assert about["train"]["lr"] == 0.01
    assert torch.equal(toy.frozen.weight, make_toy().frozen.weight)
    assert not list(run.rglob("*.partial"))


def test_best_and_last_model(tmp_path: Path) -> None:
    """A rate so large that training diverges: the best is early, the last is kept beside it."""
    result, toy = train_toy(tmp_path / "run", train={"validate_every": 1, "lr": 0.9, "clip": None, "warmup": 12})
    about = json.loads((tmp_path / "run" / "model" / "about.json").read_text())
    values = {s: v for s, split, v in losses(tmp_path / "run") if split == "val"}
    best = min(values, key=lambda s: values[s])
    assert about["step"] == best
    assert about["validation_loss"] == result.best == values[best]
    assert best < 12
    assert same(torch.load(tmp_path / "run" / "model-last" / "weights.pt"), toy.state_dict())


def test_no_validation(tmp_path: Path) -> None:
    result, toy = train_toy(tmp_path / "run", source={"validation": 0})
    assert result.best is None
    assert same(torch.load(tmp_path / "run" / "model" / "weights.pt"), toy.state_dict())


def test_repeatable_with_dropout(tmp_path: Path) -> None:
    train_toy(tmp_path / "a", method={"dropout": 0.3})
    torch.rand(7)
    train_toy(tmp_path / "b", method={"dropout": 0.3}, train={"validate_every": 3})
    train = [[v for _, split, v in losses(tmp_path / n) if split == "train"] for n in "ab"]
    assert train[0] == train[1]
    train_toy(tmp_path / "c", method={"dropout": 0.3}, train={"seed": 1})
    assert losses(tmp_path / "c") != losses(tmp_path / "a")


def test_accumulation_equals_the_big_batch(tmp_path: Path) -> None:
    _, big = train_toy(tmp_path / "big", train={"batch": 4, "steps": 6})
    _, parts = train_toy(tmp_path / "parts", train={"batch": 1, "accumulate": 4, "steps": 6})
    for (_, _, a), (_, _, b) in zip(losses(tmp_path / "big"), losses(tmp_path / "parts"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for a, b in zip(big.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_clipping(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", train={"clip": 1e-3})
    norms = [r["grad_norm"] for r in read_rows(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"]
    assert norms[0] > 1.0  # before clipping
    toy = make_toy()
    from medmae.engine.distributed import gradient_norm

    for p in toy.parameters():
        p.grad = torch.full_like(p, 2.0)
    total = sum(4.0 * p.numel() for p in toy.parameters()) ** 0.5
    assert float(gradient_norm(toy.parameters(), clip=1.0)) == pytest.approx(total, rel=1e-5)
    assert float(gradient_norm(toy.parameters(), clip=None)) == pytest.approx(1.0, rel=1e-4)


def test_bf16_and_checkpointing_run(tmp_path: Path) -> None:
    result, toy = train_toy(tmp_path / "run", train={"precision": "bf16", "gradient_checkpointing": True})
    assert result.steps == 12
    assert toy.head.weight.dtype == torch.float32


@pytest.mark.slow
def test_compiled_is_the_same_method(tmp_path: Path) -> None:
    train_toy(tmp_path / "plain", train={"steps": 4})
    train_toy(tmp_path / "compiled", train={"steps": 4, "compile": True})
    for (_, _, a), (_, _, b) in zip(losses(tmp_path / "plain"), losses(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    names = [set(torch.load(tmp_path / n / "model" / "weights.pt")) for n in ("plain", "compiled")]
    assert names[0] == names[1]


def test_ema() -> None:
    toy = make_toy()
    average = WeightAverage(toy, decay=0.5)
    start = toy.head.weight.detach().clone()
    with torch.no_grad():
        toy.head.weight += 1.0
    average.update(100)
    with average.applied():
        torch.testing.assert_close(toy.head.weight.detach(), start + 0.5)
    assert torch.equal(toy.head.weight, start + 1.0)
    assert "frozen.weight" not in average.weights


def test_ema_is_what_is_validated_and_saved(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", source={"validation": 0}, train={"ema": 0.9, "checkpoint_every": 5})
    stored = final(tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "model" / "weights.pt")
    assert torch.equal(saved["head.weight"], stored["averages"]["head.weight"])
    assert not torch.equal(saved["head.weight"], stored["method"]["head.weight"])


# ------------------------------------------------------------------ resuming


def test_resume_equals_never_stopped(tmp_path: Path) -> None:
    """Stopped by a NaN-free crash after step 7; the checkpoint of step 6 is gone on from."""
    options: dict[str, Any] = {
        "method": {"dropout": 0.2},
        "train": {"checkpoint_every": 3, "validate_every": 4, "ema": 0.9, "accumulate": 2, "log_every": 1},
    }
    train_toy(tmp_path / "whole", **options)

    class Crash(BaseException):
        pass

    def crash(step: int, method: nn.Module) -> None:
        raise Crash

    with pytest.raises(Crash):
        train_toy(
            tmp_path / "cut",
            **(options | {"train": options["train"] | {"picture_every": 7}}),
            on_picture=crash,
        )
    train_toy(tmp_path / "cut", **options, resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    a, b = final(tmp_path / "whole"), final(tmp_path / "cut")
    assert same(a["method"], b["method"])
    assert same(a["averages"], b["averages"])
    assert a["best"] == b["best"]
    for name in a["optimizer"]:
        assert same(a["optimizer"][name], b["optimizer"][name])
    for folder in ("model", "model-last"):
        pair = [tmp_path / n / folder / "weights.pt" for n in ("whole", "cut")]
        assert pair[0].exists() == pair[1].exists()
        assert not pair[0].exists() or same(*(torch.load(p) for p in pair))


def test_damaged_newest_falls_back(tmp_path: Path) -> None:
    train = {"checkpoint_every": 4, "keep": 3}
    train_toy(tmp_path / "whole", train=train)
    train_toy(tmp_path / "run", train=train)
    newest = states(tmp_path / "run" / "checkpoints")[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF  # one flipped byte
    newest.write_bytes(data)
    (tmp_path / "run" / "DONE").unlink()
    said: list[str] = []
    train_toy(tmp_path / "run", train=train, resume=True, say=said.append)
    assert any("damaged" in line for line in said)
    assert any("step-000000008" in line for line in said)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_all_damaged(tmp_path: Path) -> None:
    train_toy(tmp_path / "run")
    for path in states(tmp_path / "run" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="--overwrite"):
        train_toy(tmp_path / "run", resume=True)


def test_resume_of_a_finished_run_does_nothing(tmp_path: Path) -> None:
    first, _ = train_toy(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again, _toy = train_toy(tmp_path / "run", resume=True)
    assert again.best == first.best
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    result, _ = train_toy(tmp_path / "run", resume=True)
    assert result.steps == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"lr": 0.02}}, "train.lr: 0.01 -> 0.02"),
        ({"train": {"steps": 24}}, "train.steps: 12 -> 24"),
        ({"train": {"batch": 3}}, "samples_per_step: 2 -> 3"),
        ({"method": {"dropout": 0.1}}, "method.dropout"),
        ({"source": {"size": 11}}, "data.size: 10 -> 11"),
    ],
)
def test_resume_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    train_toy(tmp_path / "run")
    with pytest.raises(UsageError, match=words):
        train_toy(tmp_path / "run", resume=True, **change)


def test_a_constant_run_can_be_made_longer(tmp_path: Path) -> None:
    train = {"schedule": "constant", "warmup": 0}
    train_toy(tmp_path / "whole", train=train | {"steps": 16})
    train_toy(tmp_path / "run", train=train)
    train_toy(tmp_path / "run", train=train | {"steps": 16}, resume=True)
    assert same(final(tmp_path / "run")["method"], final(tmp_path / "whole")["method"])


# ------------------------------------------------------------------ refusing


def test_overwrite_protection(tmp_path: Path) -> None:
    train_toy(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        train_toy(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    for name in ("notes.txt", "data/mine.txt"):
        (tmp_path / "run" / name).write_text("mine")
    train_toy(tmp_path / "run", overwrite=True, train={"steps": 3})
    assert len(losses(tmp_path / "run")) == 4  # three steps, one validation
    for name in ("notes.txt", "data/mine.txt"):
        assert (tmp_path / "run" / name).read_text() == "mine"
    with pytest.raises(UsageError, match="exclude"):
        train_toy(tmp_path / "run", overwrite=True, resume=True)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("x")
    for option in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="not a run"):
            train_toy(tmp_path, **option)


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    from medmae.engine.run_folder import open_run

    run = open_run(tmp_path / "run", resume=False, overwrite=False)
    with pytest.raises(UsageError, match="Another process"):
        train_toy(tmp_path / "run", resume=True)
    run.close()


# ----------------------------------------------------------------- surviving


def test_nan_loss(tmp_path: Path) -> None:
    with pytest.raises(MedmaeError, match=r"step 9 .*fit = nan(.|\n)*step-000000008"):
        train_toy(tmp_path / "run", method={"poison": 8}, train={"checkpoint_every": 4})
    assert all(torch.isfinite(v).all() for v in final(tmp_path / "run")["method"].values())
    assert len(losses(tmp_path / "run")) == 8
    assert not (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize("failure", ["enospc", "short"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    written = state._write_file

    def full(path: Path, content: Any) -> None:
        if content["step"] < 8:
            return written(path, content)
        path.write_bytes(b"half")
        if failure == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(state, "_write_file", full)
    with pytest.raises(MedmaeError, match=r"step 8(.|\n)*step-000000004") as caught:
        train_toy(tmp_path / "run", train={"checkpoint_every": 4})
    assert "--resume" in str(caught.value)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000004.pt"]
    monkeypatch.undo()
    result, _ = train_toy(tmp_path / "run", train={"checkpoint_every": 4}, resume=True)
    assert result.steps == 12


def test_really_full_disk(tmp_path: Path) -> None:
    """/dev/full refuses every write, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    partial = tmp_path / "checkpoints" / ".step-000000003.pt.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    with pytest.raises(MedmaeError, match="disk is full"):
        state.write_state(partial.parent, {"method": {"w": torch.zeros(1 << 16)}}, step=3, keep=2)
    assert states(partial.parent) == []


def test_too_little_space_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(MedmaeError, match="disk is full"):
        train_toy(tmp_path / "run")


def test_full_disk_at_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmae.engine.journal import Journal

    def full(self: Journal, rows: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(MedmaeError, match="No checkpoint had been written yet"):
        train_toy(tmp_path / "run")


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def big(self: Toy, batch: Any) -> None:
        if kind == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Toy, "forward", big)
    with pytest.raises(OutOfMemory, match=r"--batch 1 --set train.accumulate=2"):
        train_toy(tmp_path / "run")


def test_a_failing_picture_does_not_stop_training(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    said: list[str] = []

    def picture(step: int, method: nn.Module) -> None:
        seen.append((step, method.training))
        raise ValueError("no colors left")

    result, _ = train_toy(tmp_path / "run", train={"picture_every": 5}, on_picture=picture, say=said.append)
    assert result.steps == 12
    assert seen == [(5, False), (10, False), (12, False)]
    assert any("no colors left" in line for line in said)
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_the_end_comes_before_done(tmp_path: Path) -> None:
    seen: list[bool] = []

    def end() -> None:
        seen.append((tmp_path / "run" / "DONE").exists())
        raise MedmaeError("no report today")

    said: list[str] = []
    train_toy(tmp_path / "run", on_end=end, say=said.append)
    assert seen == [False]
    assert (tmp_path / "run" / "DONE").exists()
    assert any("no report today" in line for line in said)


def test_foreign_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "step-000000001.pt"
    torch.save({"hello": Path("x")}, path)
    with pytest.raises(CheckpointError, match="not a trainer checkpoint"):
        read_state(path)
