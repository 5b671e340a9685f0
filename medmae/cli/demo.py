"""``medmae demo``: the main job on made-up patients, or another kind of data on toys, ending with a report's path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medmae.cli.console import emit, emit_json, flags, say
from medmae.core.errors import UsageError

VOLUME = "volume"
_FAST_STEPS, _FAST_SAMPLES = 40, 120  # of a demo on toys


def run(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    kind: Annotated[str, typer.Option(help="volume, or toys of image, video, points, audio.")] = VOLUME,
    steps: Annotated[int | None, typer.Option(help="Pre-training steps (2000; toys: as the kind needs).")] = None,
    cases: Annotated[int | None, typer.Option(help="Synthetic patients (64), or toys (1000).")] = None,
    seed: Annotated[int, typer.Option(help="Of patients, weights and masks.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Under a minute: shows the way, learns little.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make everything anew.")] = False,
) -> None:
    """See the main job work on a synthetic cohort, in minutes on two cores.

    Patients lack sequences; a small BM-MAE is pre-trained on them; each sequence of held-out patients is
    reconstructed from every subset of the others and compared with baselines; a report.html shows it all. Run again,
    it reuses what exists. With --kind image, video, points or audio, a small method of that kind is pre-trained on
    toys without labels, and a linear probe of its features is compared with one of random weights.
    """
    from medmae.cli.demo_stages import demo
    from medmae.demo import FAST, TOY_DEMOS, DemoSettings

    if kind not in (VOLUME, *TOY_DEMOS):
        raise UsageError(f"--kind must be one of {', '.join((VOLUME, *TOY_DEMOS))}, not {kind!r}")
    if kind != VOLUME:
        _toys(kind, out=out, steps=steps, samples=cases, seed=seed, fast=fast, overwrite=overwrite)
        return

    given = {"steps": steps, "cases": cases, "seed": seed}
    chosen = (FAST if fast else {}) | {name: value for name, value in given.items() if value is not None}
    result = demo(out, DemoSettings(**chosen), overwrite=overwrite, say=say, quiet=flags().quiet)  # type: ignore[arg-type]
    if flags().json:
        emit_json(
            {
                "report": str(result.report),
                "beats": {method: list(targets) for method, targets in result.beaten.items()},
                "sequences": list(result.sequences),
                "seconds": dict(result.seconds),
            }
        )
        return
    emit("")
    emit(result.table)
    emit("")
    for method, targets in result.beaten.items():
        emit(f"better than {method} on {len(targets)} of {len(result.sequences)} sequences")
    emit("")
    emit(f"Report: {result.report.resolve()}")


def _toys(
    kind: str, *, out: Path, steps: int | None, samples: int | None, seed: int, fast: bool, overwrite: bool
) -> None:
    """The demo of a kind of data that is no volume."""
    from dataclasses import replace

    from medmae.cli.demo_samples import toy_demo
    from medmae.demo import TOY_DEMOS

    short: dict[str, Any] = {"steps": _FAST_STEPS, "samples": _FAST_SAMPLES} if fast else {}
    given = {name: value for name, value in (("steps", steps), ("samples", samples)) if value is not None}
    settings = replace(TOY_DEMOS[kind], seed=seed, **(short | given))
    result = toy_demo(out, settings, overwrite=overwrite, say=say)
    if flags().json:
        emit_json({"report": str(result.report), **result.found, "seconds": dict(result.seconds)})
        return
    emit("")
    emit(result.table)
    emit("")
    emit(f"Report: {result.report.resolve()}")
