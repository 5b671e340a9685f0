"""The main job from beginning to end on made-up patients, in a few minutes on two cores.

Synthesize a cohort whose patients lack sequences, pre-train a small BM-MAE on it, reconstruct each sequence of held-out
patients from every subset of the others, compare with baselines, write one NIfTI and one HTML file. Every stage is what
the command of that name does.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.atomic import replacing, write_text
from medmae.demo import DemoSettings, Stages, key_of, remove

if TYPE_CHECKING:
    import numpy as np

    from medmae.data.cohort import Case, Cohort
    from medmae.evaluate.protocol import Subject

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """Where things are, and the table that is printed at the end."""

    folder: Path
    report: Path
    table: str
    beaten: Mapping[str, tuple[str, ...]]
    sequences: tuple[str, ...]
    seconds: Mapping[str, float]


def demo(
    folder: Path, settings: DemoSettings, *, overwrite: bool = False, say: Say = print, quiet: bool = False
) -> DemoResult:
    """Run the stages that are not complete; ``say`` is told what is going on."""
    stages = Stages.open(folder, overwrite=overwrite)
    made = asdict(settings)
    cohort_key = key_of({name: made[name] for name in ("cases", "spacing", "missing", "seed", "val", "test")})
    shown = made.pop("shown")
    run_key = key_of(made)
    result_key = key_of(made | {"shown": shown})

    what = f"synthesizing {settings.cases} patients at {settings.spacing:g} mm"
    with stage(stages, "cohort", cohort_key, ("cohort/cohort.json", "data.yaml"), say, what) as state:
        if state != "done":
            _synthesize(folder, settings, fresh=state == "new", quiet=quiet)
    what = f"pre-training BM-MAE for {settings.steps} steps"
    with stage(stages, "pretrain", run_key, ("run/DONE", "run/model"), say, what) as state:
        if state != "done":
            _pretrain(folder, settings, fresh=state == "new")
    what = "reconstructing every sequence of held-out patients from every subset"
    made_here = ("evaluation/summary.json", "evaluation/volumes.npz")
    with stage(stages, "evaluate", result_key, made_here, say, what) as state:
        if state != "done":
            _evaluate(folder, settings, quiet=quiet)
    what = "writing a missing sequence as NIfTI"
    with stage(stages, "reconstruct", run_key, ("reconstructed",), say, what) as state:
        if state != "done":
            _reconstruct(folder)
    summary = json.loads((folder / "evaluation" / "summary.json").read_text("utf-8"))
    with stage(stages, "report", result_key, ("report.html",), say, "writing the report") as state:
        if state != "done":
            from medmae.cli.demo_report import write

            write(folder, settings, summary=summary, seconds=stages.seconds())
    return _result(folder, summary, stages)


@contextmanager
def stage(stages: Stages, name: str, key: str, makes: tuple[str, ...], say: Say, what: str) -> Iterator[str]:
    """Says what happens, and stamps the stage when its body is through; it is done while what it makes is there."""
    state = stages.state(name, key)
    if state == "done" and not all((stages.folder / path).exists() for path in makes):
        state = "new"
    if state == "done":
        say(f"[{name}] reused")
        yield state
        return
    say(f"[{name}] {what}")
    stages.mark(name, key, done=False)
    began = time.perf_counter()
    yield state
    stages.mark(name, key, done=True, seconds=time.perf_counter() - began)


def _synthesize(folder: Path, settings: DemoSettings, *, fresh: bool, quiet: bool) -> None:
    """The cohort, and a spec of it that holds out more cases than the default."""
    import yaml

    from medmae.data.synthetic.cohort import synthesize

    if fresh:
        remove(folder / "cohort")
    spec = synthesize(
        folder / "cohort",
        cases=settings.cases,
        spacing=settings.spacing,
        seed=settings.seed,
        missing=settings.missing,
        quiet=quiet,
        workers=1,  # a case takes a tenth of a second, a second process takes five to start
    )
    values = yaml.safe_load(spec.read_text("utf-8"))
    values["root"] = "cohort"
    values["split"] = {"by": "subject", "seed": settings.seed, "val": settings.val, "test": settings.test}
    head = "# The demo's cohort with its split; try: medmae pretrain --data data.yaml\n"
    write_text(folder / "data.yaml", head + yaml.safe_dump(values, sort_keys=False))


def _pretrain(folder: Path, settings: DemoSettings, *, fresh: bool) -> None:
    """What ``medmae pretrain`` does, with settings for a small model and little time."""
    from medmae.cli.pretrain import make_plan, start

    heads = max(1, settings.width // 32)
    every = max(1, settings.steps // 8)
    layer = {
        "method": {
            "name": "bm_mae",
            "size": list(settings.size),
            "patch": list(settings.patch),
            "width": settings.width,
            "depth": settings.depth,
            "heads": heads,
            "decoder_width": settings.width,
            "decoder_depth": 2,
            "decoder_heads": heads,
            # The demo is about missing sequences, so most plans are those of a missing sequence.
            "complete": 0.7,
            "drop": 0.2,
        },
        "data": {
            "path": str(folder / "data.yaml"),
            "cache": str(folder / "cache"),
            "tier": "device",
            "augmentation": {"flip": [0.5, 0.0, 0.0], "scale": 0.0, "shift": 0.0},
        },
        "train": {
            "steps": settings.steps,
            "batch": settings.batch,
            "lr": settings.lr,
            "weight_decay": 0.01,
            "seed": settings.seed,
            "device": "cpu",
            "workers": 0,
            "validate_every": every,
            "checkpoint_every": 2 * every,
            "picture_every": 4 * every,
        },
    }
    start(make_plan([("demo", layer)]), out=folder / "run", resume=not fresh, overwrite=fresh)


def _evaluate(folder: Path, settings: DemoSettings, *, quiet: bool) -> None:
    """Every subset of every held-out case; volumes of some cases are kept for the report's viewer."""
    import numpy as np

    from medmae.cli.completion import open_completer
    from medmae.data.cohort import open_cohort
    from medmae.evaluate.baselines import Baselines, Sums
    from medmae.evaluate.protocol import evaluate
    from medmae.evaluate.statistics import summarize
    from medmae.evaluate.table import write

    completer = open_completer(folder / "run", device="cpu", batch=8)
    cohort = open_cohort(folder / "data.yaml")
    parts = cohort.split()
    sums = Sums(completer.sequences)
    values: dict[str, list[np.ndarray]] = {name: [] for name in completer.sequences}
    for case in parts["train"]:
        subject, _ = _subject(case, cohort)
        sums.add(subject.images, subject.foreground)
        for name, image in subject.images.items():
            values[name].append(image[subject.foreground])
    baselines = Baselines(sums)
    subjects = sorted((_subject(case, cohort)[0] for case in parts["test"]), key=lambda s: -len(s.images))
    kept: dict[str, np.ndarray] = {}
    chosen = {subject.code for subject in subjects[: settings.shown]}

    def guess(subject: Subject, given: tuple[str, ...], targets: tuple[str, ...]) -> dict[str, np.ndarray]:
        spacing = (settings.spacing,) * 3
        found = completer.guess(subject.images, subject.foreground, spacing=spacing, targets=targets)
        if subject.code in chosen:
            linear = {name: baselines.guess(subject.images, name).get("linear") for name in targets}
            for name in targets:
                for method, image in (("model", found[name]), ("linear", linear[name])):
                    if image is not None:
                        kept[f"{subject.code}/{'+'.join(given)}/{name}/{method}"] = image.astype(np.float16)
        return found

    with _bar(len(subjects), "held-out patients", quiet=quiet) as advance:
        rows = []
        for subject in subjects:
            rows += evaluate([subject], {"model": guess}, sequences=completer.sequences, baselines=baselines)
            advance()
    for subject in subjects:
        if subject.code in chosen:
            kept |= {f"{subject.code}/truth/{n}": image.astype(np.float16) for n, image in subject.images.items()}
            kept[f"{subject.code}/foreground"] = subject.foreground
            kept[f"{subject.code}/place"] = _middle(subject.foreground if subject.label is None else subject.label)
    kept |= {
        f"window/{name}": np.percentile(np.concatenate(parts_), [0.5, 99.5])
        for name, parts_ in values.items()
        if parts_
    }
    about = {"cases": len(subjects), "training_cases": sums.cases, "overlap": completer.overlap, "units": "z-score"}
    about |= {"sequences": list(completer.sequences), "weights": completer.weights}
    write(folder / "evaluation", rows, summarize(rows), about=about, title="Held-out synthetic patients")
    with replacing(folder / "evaluation" / "volumes.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **kept)  # type: ignore[arg-type]


def _middle(mask: np.ndarray) -> np.ndarray:
    """The middle of a mask as shares of the axes; that of the volume where the mask is empty."""
    import numpy as np

    places = np.argwhere(mask)
    return (places.mean(0) + 0.5) / mask.shape if len(places) else np.full(3, 0.5)


def _subject(case: Case, cohort: Cohort) -> tuple[Subject, Any]:
    """A case as the evaluation wants it: normalized by the very functions that prepared the training cases."""
    import numpy as np

    from medmae.data.fingerprint import Fingerprints, case_files, case_hash
    from medmae.data.preprocess import prepare
    from medmae.evaluate.protocol import Subject

    prepared = prepare(case, cohort.spec)
    inside = prepared.foreground > 0
    images = {}
    for name, item in prepared.images.items():
        known = prepared.statistics[name]
        images[name] = np.where(inside, (item.values() - known.mean) / known.std, 0).astype(np.float32)
    label = None if prepared.label is None else np.asarray(prepared.label) > 0
    code = case_hash(case_files(case, Fingerprints(None)))
    return Subject(code, images, inside, label), prepared


def _reconstruct(folder: Path) -> None:
    """One held-out patient: ``medmae reconstruct`` of a sequence that is not there, or else of one that is hidden."""
    from medmae.cli.reconstruct import run
    from medmae.data.cohort import open_cohort

    cohort = open_cohort(folder / "data.yaml")
    cases = sorted(cohort.split()["test"], key=lambda case: (len(case.images) != len(cohort.sequences) - 1, case.key))
    case = cases[0]
    absent = [name for name in cohort.sequences if name not in case.images]
    target = absent[0] if absent else cohort.sequences[-1]
    inputs = [f"{name}={path}" for name, path in case.images.items() if name != target]
    remove(folder / "reconstructed")
    out = folder / "reconstructed" / f"{target}.nii.gz"
    with redirect_stdout(io.StringIO()):  # standard output is for the demo's own result
        run(
            checkpoint=folder / "run",
            target=target,
            out=out,
            input_=inputs,
            mask=case.mask,
            device="cpu",
            overwrite=True,
        )


def _result(folder: Path, summary: Mapping[str, Any], stages: Stages) -> DemoResult:
    from medmae.report.comparison import compare, text_table

    comparison = compare(summary["summary"], sequences=summary["about"]["sequences"])
    return DemoResult(
        folder=folder,
        report=folder / "report.html",
        table=text_table(comparison),
        beaten={m: comparison.beats(m, metric="mae") for m in comparison.methods if m != "model"},
        sequences=comparison.targets,
        seconds=stages.seconds(),
    )


@contextmanager
def _bar(total: int, what: str, *, quiet: bool) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
