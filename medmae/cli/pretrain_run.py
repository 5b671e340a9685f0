"""One pre-training, whatever its data are: from settings that are checked to a model folder.

Cohorts of volumes (``pretrain.py``) and lists of samples (``pretrain_samples.py``) differ in how data are opened and in
what there is to say of them. The order of all the rest is the same, and matters: nothing is prepared before the run
folder is known to be free, and the weights are drawn before anything else could draw.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.cli.console import detail, flags, main_process, say
from medmae.cli.pretrain_layers import Plan, folder_name, initialize

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.engine.source import Source
    from medmae.engine.trainer import Result

INIT = 0x696E6974  # stream of the initial weights


@dataclass(frozen=True)
class Ready:
    """Data that are prepared for a method, and what is particular to them.

    Attributes:
        source: of the batches.
        lines: that say what will run.
        split: keys of the samples of every part.
        license: of the data.
        options: what a model folder tells of the data beside what the source says.
        picture: called as ``picture(step, method)``; None: there are no pictures of such a method.
        probe: called as ``probe(step, method)``; None: nothing is probed.
        after: the command that comes next, given the model folder.
    """

    source: Source
    lines: Sequence[str]
    split: Mapping[str, Sequence[str]]
    license: str | None
    picture: Callable[[int, Any], None] | None
    probe: Callable[[int, Any], Any] | None
    after: Callable[[Path], str]
    options: Mapping[str, Any]


def train(
    plan: Plan,
    recipe: Mapping[str, Any],
    prepare: Callable[[Method, Path, int], Ready],
    *,
    name: str,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    init: Path | None,
) -> Result:
    """Build the method, prepare the data for it, say what will run, and train.

    Args:
        plan: of the settings.
        recipe: of the method, whole, which the data may have completed.
        prepare: the data, given the method, the run folder and the number of processes.
        name: of the data.
        out: the run folder; None is ``runs/DATA-METHOD``.
        resume: go on where a run in the folder stopped.
        overwrite: remove a run in the folder first.
        init: a model folder to start from.

    Raises what the rooms raise.
    """
    import torch

    from medmae import checkpoint
    from medmae.cli.report import run_report
    from medmae.core.errors import Requeue
    from medmae.core.random import mix
    from medmae.engine.allocator import keep_freed_memory
    from medmae.engine.distributed import Processes, leave
    from medmae.engine.listeners import check_listeners
    from medmae.engine.run_folder import check_free
    from medmae.engine.trainer import pretrain
    from medmae.find import find
    from medmae.report.html import write_report

    settings = plan.train
    folder = out or Path("runs") / folder_name(f"{name}-{plan.name}")
    if main_process():
        check_listeners(settings.loggers)
        check_free(folder, resume=resume, overwrite=overwrite)
    if resume and out is not None and not (out / "config.yaml").exists():
        say(f"There is no run in {out} to resume: a new one starts.")
    team = Processes(device=settings.device, parallel=settings.parallel)
    try:
        if team.device.type == "cpu":
            detail(keep_freed_memory())
        torch.manual_seed(mix(settings.seed, INIT))
        method = find(plan.name).build(**recipe)
        method.check_training(batch=settings.batch, world=team.world)
        ready = prepare(method, folder, team.world)
        if init is not None:
            say(f"Starting from {init}: {initialize(method, init)}")
        for line in ready.lines:
            say(line)
        say(f"  into      {folder} ({team.device}, {settings.precision})")

        def save_model(path: Path, trained: Any, about: dict[str, Any]) -> None:
            told = {"data": {**about.pop("data"), **ready.options}, "training": about, "license": ready.license}
            checkpoint.save_model(path, trained, name=plan.name, recipe=recipe, about=told)

        result = pretrain(
            method,
            ready.source,
            settings,
            folder=folder,
            recipe={"method": {**plan.config["method"], **recipe}, "data": plan.data},
            save_model=save_model,
            resume=resume,
            overwrite=overwrite,
            on_picture=ready.picture,
            on_probe=ready.probe,
            on_end=lambda: write_report(folder / "report.html", run_report(folder)),
            manifest={"split": ready.split},
            say=say,
            quiet=flags().quiet,
            processes=team,
        )
        leave()
        say(f"The model is in {folder / 'model'}. Next: {ready.after(folder / 'model')}")
        return result
    except (Requeue, KeyboardInterrupt):
        leave()
        raise


def features_command(model: Path, data: str | Path, *, labeled: bool) -> str:
    """What to do with a model of which features are wanted: probe them where there are classes, or write them down."""
    verb, result = ("probe", "probe") if labeled else ("embed", "features.csv")
    words = ["--checkpoint", str(model), "--data", str(data), "--out", str(model.parent / result)]
    return f"medmae {verb} {shlex.join(words)}"
