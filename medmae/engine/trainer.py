"""The loop: one for every method, from the first step to ``DONE``.

A step is a function of (weights, optimizer, step number): the learning rate, the samples and every random
draw follow from the step number and the seed, so the loop keeps no other state. The order at a step boundary
is fixed: rows to the journal, validation, checkpoint, pictures, then the wish of a signal. A loss or gradient
that is not finite is noticed before the next checkpoint, so that the newest checkpoint is always a good one.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmae.config import plain
from medmae.core.errors import MedmaeError, Requeue, UsageError
from medmae.core.random import mix
from medmae.engine.callbacks import OnEnd, OnPicture, OnProbe, Result, SaveModel, Say, careful, draw
from medmae.engine.distributed import Processes, fill_twin, gradient_norm
from medmae.engine.ema import WeightAverage
from medmae.engine.journal import Journal
from medmae.engine.listeners import open_listeners
from medmae.engine.optimizer import adamw
from medmae.engine.precision import autocast, check_precision, explain_memory
from medmae.engine.progress import Progress
from medmae.engine.run_folder import RunFolder, open_run, require_same, run_identity
from medmae.engine.schedule import due, lr_factor
from medmae.engine.settings import TrainSettings
from medmae.engine.signals import GO_ON, Signals, stop
from medmae.engine.source import Batch, Source
from medmae.engine.state import (
    collect,
    disk_full,
    explain_disk,
    newest_state,
    not_finite,
    read_state,
    restore,
    write_state,
)
from medmae.engine.validation import VALIDATION, in_order, validation_losses

TRAIN = VALIDATION + 1  # stream of torch's generator in a training step


def pretrain(
    method: nn.Module,
    source: Source,
    settings: TrainSettings,
    *,
    folder: Path,
    recipe: Mapping[str, Any],
    save_model: SaveModel,
    resume: bool = False,
    overwrite: bool = False,
    on_picture: OnPicture | None = None,
    on_probe: OnProbe | None = None,
    on_end: OnEnd | None = None,
    manifest: Mapping[str, Any] | None = None,
    say: Say = print,
    quiet: bool = False,
    processes: Processes | None = None,
) -> Result:
    """Train ``method`` on ``source`` into the run folder ``folder``.

    ``recipe`` holds the sections of the configuration other than "train" (at least "method"); it is written to
    ``config.yaml``, and "method" must be the same when a run is resumed. ``save_model(path, method, about)`` writes a
    shareable model; it gets the averaged weights when there are any. ``model/`` is the best by validation, or the
    latest where nothing is validated; ``model-last/`` is written at the end when the last is not the best.
    ``on_picture(step, method)`` may draw, ``on_probe(step, method)`` gives numbers for a row "probe" of the metrics,
    ``on_end()`` comes after everything but ``DONE``; when they fail, a warning is all that happens. ``manifest`` is
    added to ``data/manifest.json``. With ``resume`` a folder without a run starts a new one, so that a job script may
    always say it.

    Raises :class:`UsageError` (folder in use, resume of another run), :class:`Requeue` (SIGTERM or SIGUSR1, after a
    checkpoint), ``KeyboardInterrupt`` (Ctrl-C, after a checkpoint), :class:`OutOfMemory`, and :class:`MedmaeError`
    when a loss is not finite or the disk is full; the last good checkpoint stays.
    """
    if source.size < 1:
        raise UsageError("There is no training sample.")
    team = processes or Processes(device=settings.device, parallel=settings.parallel)
    check_precision(settings.precision, device=team.device)
    run = open_run(folder, resume=resume, overwrite=overwrite) if team.main else RunFolder(folder, lock=None)
    team.wait()

    def talk(text: str) -> None:
        if team.main:
            run.note(text)
            say(text)

    try:
        with explain_memory(batch=settings.batch, accumulate=settings.accumulate), explain_disk(run.checkpoints):
            trainer = _Trainer(method, source, settings, team=team, run=run, say=talk, save_model=save_model)
            try:
                trainer.on_picture, trainer.on_probe = on_picture, on_probe
                return trainer.train(recipe, manifest=manifest or {}, on_end=on_end, quiet=quiet)
            finally:
                if trainer.journal is not None:
                    trainer.journal.close()
    except MedmaeError as error:
        if team.main and not disk_full(error) and not isinstance(error, Requeue):
            run.note(f"{type(error).__name__}: {error}")
        raise
    finally:
        run.close()


class _Trainer:
    """The pieces of one run, put together once."""

    def __init__(
        self,
        method: nn.Module,
        source: Source,
        settings: TrainSettings,
        *,
        team: Processes,
        run: RunFolder,
        say: Say,
        save_model: SaveModel,
    ) -> None:
        self.method, self.source, self.settings = method, source, settings
        self.team, self.run, self.say, self.save_model = team, run, say, save_model
        self.per_step = settings.batch * settings.accumulate * team.world
        self.per_epoch = source.size / self.per_step
        self.total = settings.total_steps(size=source.size, world=team.world)
        if settings.gradient_checkpointing:
            method.checkpoint_activations(True)  # type: ignore[operator]
        # A sharded method cannot be saved or drawn; the main process keeps a whole copy for that.
        self.twin = copy.deepcopy(method) if team.sharded and team.main else None
        if settings.compile:
            method.compile()
        self.wrapped = team.wrap(method)
        self.optimizer = adamw(
            method,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            eps=settings.eps,
            decay_all=settings.decay_all,
        )
        self.average = WeightAverage(method, decay=settings.ema) if settings.ema is not None else None
        self.trained = [p for p in method.parameters() if p.requires_grad]
        self.best: float | None = None
        self.step, self.best_step, self.validated = 0, 0, 0  # completed steps; those of the best and last validation
        self.pending: list[tuple[dict[str, Any], list[str], Tensor]] = []
        self.since, self.since_step = time.perf_counter(), 0
        self.journal: Journal | None = None
        self.on_picture: OnPicture | None = None
        self.on_probe: OnProbe | None = None

    # ---------------------------------------------------------------- the run

    def train(
        self, recipe: Mapping[str, Any], *, manifest: Mapping[str, Any], on_end: OnEnd | None, quiet: bool
    ) -> Result:
        identity = run_identity(
            self.settings,
            per_step=self.per_step,
            total=self.total,
            recipe=recipe,
            data=self.source.describe(),
            paced=any(not group["pace"].constant for group in self.optimizer.param_groups),
        )
        self._resume(identity)
        if self.team.main and self.run.done and self._over():
            self.say(f"The run is already complete ({self.step} steps).")
        if self.team.share(self.run.done) and self._over():
            return Result(self.step, self.best, self.run.path)
        self.journal = self._open(recipe, manifest=manifest)
        validate, checkpoint, picture, probe = (
            self.settings.every(which, per_epoch=self.per_epoch, total=self.total)
            for which in ("validate", "checkpoint", "picture", "probe")
        )
        stream = self.source.train(
            start=self.step * self.settings.accumulate,
            batch=self.settings.batch,
            rank=self.team.rank,
            world=self.team.world,
            seed=self.settings.seed,
        )
        self.since, self.since_step = time.perf_counter(), self.step
        bar = Progress(total=self.total, done=self.step, show=self.team.main and not quiet)
        with Signals() as signals, bar:
            # A run that was stopped inside a validation has not seen its result yet.
            if self.validated < self.step and due(self.step, validate, self.total):
                self._validate(signals)
                self._checkpoint(identity)
            while not self._over():
                self._step(stream)
                bar.step(self.step)
                if any(due(self.step, n, self.total) for n in (self.settings.log_every, validate, probe)):
                    self._flush(bar)
                if due(self.step, validate, self.total):
                    self._validate(signals)
                if self.on_probe and due(self.step, probe, self.total):
                    self._look(self._probe, what="probe")
                wish = self.team.anyone(signals.wish)
                if wish != GO_ON or due(self.step, checkpoint, self.total) or self._over():
                    self._flush(bar)
                    self._checkpoint(identity)
                if wish != GO_ON:
                    stop(wish, step=self.step, total=self.total, say=self.say)
                if self.on_picture and not self._over() and due(self.step, picture, self.total):
                    self._look(self.on_picture, what="pictures")
            if self.on_picture:
                self._look(self.on_picture, what="pictures")
        self._finish(on_end)
        return Result(self.step, self.best, self.run.path)

    def _step(self, stream: Iterator[Batch]) -> None:
        """One optimizer step: ``accumulate`` micro-steps, norm, update, average."""
        s = self.settings
        rate = s.lr * lr_factor(s, self.step, total=self.total, per_epoch=self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["pace"].at(self.step / self.total)
        names: list[str] = []
        seen: Tensor | None = None
        self.wrapped.train()
        for micro in range(s.accumulate):
            batch = self.source.finish(next(stream), device=self.team.device, training=True)
            torch.manual_seed(mix(s.seed, TRAIN, self.step, micro, self.team.rank))
            with self.team.accumulating(self.wrapped, more=micro + 1 < s.accumulate):
                with autocast(s.precision, device=self.team.device):
                    losses = self.wrapped(batch)
                names, values = in_order(losses)
                torch.autograd.backward(values.sum() / s.accumulate)
            seen = values.detach() / s.accumulate if seen is None else seen + values.detach() / s.accumulate
        norm = gradient_norm(self.trained, clip=s.clip).to(self.team.device)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step()  # type: ignore[operator]
        if self.average is not None:
            self.average.update(self.step)
        epoch = self.step * self.per_step // self.source.size
        self.step += 1
        for finished in range(epoch, self.step * self.per_step // self.source.size):
            self.method.after_epoch(finished)  # type: ignore[operator]
        assert seen is not None  # accumulate >= 1
        row = {"step": self.step, "split": "train", "epoch": epoch, "lr": rate}
        if self.pending and self.pending[-1][1] != names:
            self._flush(None)
        self.pending.append((row, names, torch.cat([seen.float(), norm.float().reshape(1)])))

    def _flush(self, bar: Progress | None) -> None:
        """Write the rows of the steps since the last time; stop when one of them is not finite."""
        if not self.pending:
            return
        names = self.pending[0][1]
        values = self.team.mean(torch.stack([v for _, _, v in self.pending])).tolist()
        now = time.perf_counter()
        speed = (self.step - self.since_step) * self.per_step / max(now - self.since, 1e-9)
        rows, fault = [], None
        for (row, _, _), numbers in zip(self.pending, values, strict=True):
            losses = dict(zip(names, numbers[:-1], strict=True))
            if not all(math.isfinite(n) for n in numbers):
                fault = (row, losses, numbers[-1])
                break
            rows.append({**row, "loss": sum(numbers[:-1]), **{f"loss/{n}": v for n, v in losses.items()}})
            rows[-1] |= {"grad_norm": numbers[-1], "samples_per_second": round(speed, 3)}
        self.pending.clear()
        self.since, self.since_step = now, self.step
        if self.journal is not None:
            self.journal.add(rows)
        if fault is not None:
            raise MedmaeError(not_finite(*fault, checkpoints=self.run.checkpoints))
        if bar is not None and rows:
            bar.words(loss=rows[-1]["loss"], rate=speed)

    # ------------------------------------------------------------- boundaries

    def _validate(self, signals: Signals) -> None:
        """Loss over the fixed validation samples and plans; a new best is saved as ``model/``."""
        began = time.perf_counter()
        with self._averaged():
            losses = validation_losses(
                self.method,
                self.source,
                self.settings,
                team=self.team,
                stopped=lambda: self.team.world == 1 and signals.wish != GO_ON,
            )
        if losses is None:
            return  # a signal came; it is done again after the resume
        if losses:
            self._note_validation(losses)
        elif self.validated == 0:
            self.say("There are no validation samples; model/ will hold the latest weights.")
        self.validated = self.step
        self.since += time.perf_counter() - began  # throughput is that of training

    def _over(self) -> bool:
        every = self.settings.every("validate", per_epoch=self.per_epoch, total=self.total)
        moments = {"best_step": self.best_step, "validated": self.validated}
        return self.step >= self.total or self.settings.given_up(every=every, **moments)

    def _note_validation(self, losses: dict[str, float]) -> None:
        loss = sum(losses.values())
        epoch = self.step * self.per_step // self.source.size
        row = {"step": self.step, "split": "val", "epoch": epoch, "loss": loss}
        if self.journal is not None:
            self.journal.add([row | {f"loss/{n}": v for n, v in losses.items()}])
        better = math.isfinite(loss) and (self.best is None or loss < self.best)
        self.say(f"step {self.step}/{self.total}  validation loss {loss:.6g}" + ("  (best so far)" if better else ""))
        if better:
            self.best, self.best_step = loss, self.step
            self._save(self.run.model, averaged=True)

    def _checkpoint(self, identity: Mapping[str, Any]) -> None:
        state = collect(self.method, self.optimizer, self.average.weights if self.average else None)
        state |= {"best": self.best, "best_step": self.best_step, "validated": self.validated}
        state |= {"identity": json.dumps(identity)}
        if self.team.main:
            write_state(self.run.checkpoints, state, step=self.step, keep=self.settings.keep)
        if self.best is None:
            with self._averaged():
                self._save(self.run.model, averaged=True)
        self.team.wait()

    def _save(self, path: Path, *, averaged: bool) -> None:
        """Write a model folder with the weights the method has now (sharded: through the whole copy)."""
        about = {
            "step": self.step,
            "validation_loss": self.best if self.best_step == self.step else None,
            "averaged": self.average is not None and averaged,
            "data": self.source.describe(),
            "train": self.settings.to_dict(),
        }
        whole_method = self._whole()
        if self.team.main:
            self.save_model(path, whole_method, about)

    def _look(self, at: OnPicture, *, what: str) -> None:
        """Let the main process look at the averaged weights; its time is not that of training."""
        began = time.perf_counter()
        with self._averaged(), torch.no_grad():
            method = self._whole()
            if self.team.main:
                draw(at, step=self.step, method=method, what=what, say=self.say, note=self.run.note)
        self.team.wait()
        self.since += time.perf_counter() - began

    def _probe(self, step: int, method: nn.Module) -> None:
        row = {"step": step, "split": "probe", "epoch": step * self.per_step // self.source.size}
        if self.on_probe is not None and self.journal is not None:
            self.journal.add([row | self.on_probe(step, method)])

    def _finish(self, on_end: OnEnd | None) -> None:
        if self.best is not None and self.best_step != self.step:
            with self._averaged():
                self._save(self.run.last_model, averaged=True)
        if self.team.main:
            best = f"; lowest validation loss {self.best:.6g} at step {self.best_step}" if self.best is not None else ""
            early = " (stopped early)" if self.step < self.total else ""
            self.say(f"Done: {self.step} steps{early}{best}.")
            if on_end is not None:
                careful(on_end, what="the report", say=self.say, note=self.run.note)
            self.run.finish({"steps": self.step, "best": self.best, "best_step": self.best_step})
        self.team.wait()

    # ------------------------------------------------------------ small parts

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average is not None else nullcontext()

    def _whole(self) -> nn.Module:
        """The method with all its weights: itself, or the copy of the main process when it is sharded."""
        return fill_twin(self.twin, self.method) if self.team.sharded else self.method

    def _resume(self, identity: Mapping[str, Any]) -> None:
        path = newest_state(self.run.checkpoints, say=self.say) if self.team.main else None
        path = self.team.share(path)
        if path is None:
            return
        state = read_state(path)
        require_same(json.loads(state["identity"]), identity)
        restore(state, self.method, self.optimizer, self.average.weights if self.average else None)
        self.step, self.best = state["step"], state["best"]
        self.best_step, self.validated = state["best_step"], state["validated"]
        self.say(f"Resumed from {path.name}: {self.step} of {self.total} steps are done.")

    def _open(self, recipe: Mapping[str, Any], *, manifest: Mapping[str, Any]) -> Journal | None:
        if not self.team.main:
            return None
        config = {**recipe, "train": self.settings.to_dict()}
        machine = {"processes": self.team.world, "device": str(self.team.device), "steps": self.total}
        self.run.describe(config=config, data=plain({**self.source.describe(), **manifest}), machine=machine)
        (self.run.path / "DONE").unlink(missing_ok=True)
        settings = self.settings
        listeners = open_listeners(settings.loggers, folder=self.run.path, step=self.step, settings=settings.to_dict())
        return Journal(self.run.path, step=self.step, validated=self.validated, listeners=listeners)
