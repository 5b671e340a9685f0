"""``medmae demo``: the main job on made-up patients, ending with the path of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmae.cli.console import emit, emit_json, flags, say


def run(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Pre-training steps (2000).")] = None,
    cases: Annotated[int | None, typer.Option(help="Synthetic patients (64).")] = None,
    seed: Annotated[int, typer.Option(help="Of patients, weights and masks.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Under a minute: shows the way, learns little.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make everything anew.")] = False,
) -> None:
    """See the main job work on a synthetic cohort, in minutes on two cores.

    Patients lack sequences; a small BM-MAE is pre-trained on them; each sequence of held-out patients is
    reconstructed from every subset of the others and compared with baselines; a report.html shows it all. Run again,
    it reuses what exists.
    """
    from medmae.cli.demo_stages import demo
    from medmae.demo import FAST, DemoSettings

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
