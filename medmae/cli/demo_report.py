"""The report of the demo: numbers of its evaluation, volumes of some held-out patients, curves of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae import __version__
from medmae.atomic import write_bytes

if TYPE_CHECKING:
    import numpy as np

    from medmae.demo import DemoSettings
    from medmae.report.values import Report, Viewer, Volume

EDGE = 0.15  # share of the window added on both sides, so that a reconstruction that goes too far is seen to


def write(folder: Path, settings: DemoSettings, *, summary: Mapping[str, Any], seconds: Mapping[str, float]) -> Path:
    """Write ``picture.png`` and ``report.html`` in the demo's folder; that of the run is already in its folder."""
    from medmae.report.html import write_report

    write_bytes(folder / "picture.png", picture(folder / "evaluation" / "volumes.npz", summary["about"]["sequences"]))
    return write_report(folder / "report.html", demo_report(folder, settings, summary=summary, seconds=seconds))


def demo_report(
    folder: Path, settings: DemoSettings, *, summary: Mapping[str, Any], seconds: Mapping[str, float]
) -> Report:
    """Everything the demo has to show."""
    from medmae.cli.report import environment_facts, evaluation_parts, qc_pictures, read_json, read_lines
    from medmae.config import load_config
    from medmae.report import run as parts
    from medmae.report.values import FactList, Report

    about = summary["about"]
    sequences = about["sequences"]
    tiles, lines, tables = evaluation_parts(summary, sequences=sequences)
    method = {k: v for k, v in load_config(folder / "run" / "config.yaml")["method"].items() if k != "sequences"}
    run = folder / "run"
    spent = {stage: f"{s:.0f} s" for stage, s in seconds.items()} | {"all stages": f"{sum(seconds.values()):.0f} s"}
    intro = (
        f"{settings.cases} made-up patients with brain tumors at {settings.spacing:g} mm, lacking each sequence with "
        f"probability {settings.missing:g}. A small BM-MAE learned from {about['training_cases']} of them to fill in "
        f"what is hidden, and then reconstructed every sequence of {about['cases']} patients it had never seen from "
        "every subset of their other sequences."
    )
    return Report(
        title="medmae demo",
        subtitle="Pre-training on incomplete multi-sequence MRI, and reconstruction of missing sequences",
        headline=tiles,
        summary=(intro, *lines),
        tables=tables,
        viewers=(_viewer(folder / "evaluation" / "volumes.npz", summary, spacing=settings.spacing),),
        curves=(
            *parts.training_charts(read_lines(run / "metrics.jsonl")),
            *parts.quality_chart(read_lines(run / "qc" / "quality.jsonl")),
        ),
        pictures=qc_pictures(run / "qc", most=2),
        data_card=_data_card(folder, read_json(run / "data" / "manifest.json")),
        facts=(
            FactList("Time of each stage", spent),
            *parts.fact_lists(method, title="Model"),
            *environment_facts(run),
        ),
        notes=_notes(),
        footer=f"medmae {__version__}. Reconstructed images are synthetic and must not be used for diagnosis.",
    )


def picture(path: Path, sequences: list[str]) -> bytes:
    """The first patient as a PNG: each sequence from all others that there are, beside the truth and the regression."""
    import numpy as np

    from medmae.report.pictures import Strip, Window, montage

    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    code = next(name.split("/")[0] for name in arrays if name.endswith("/foreground"))
    inside, place = arrays[f"{code}/foreground"], arrays[f"{code}/place"]
    strips = []
    for target in sequences:
        found = [key for key in arrays if key.startswith(f"{code}/") and key.endswith(f"/{target}/model")]
        if not found:
            continue
        key = max(found, key=lambda k: k.count("+"))
        low, high = _window(arrays[f"window/{target}"])

        def shown(name: str, low: float = low) -> np.ndarray:
            return np.where(inside, arrays[name].astype(np.float32), np.float32(low))

        images = {"truth": shown(f"{code}/truth/{target}"), "reconstruction": shown(key)}
        if key.removesuffix("model") + "linear" in arrays:
            images["linear regression"] = shown(key.removesuffix("model") + "linear")
        note = "from " + ", ".join(key.split("/")[1].split("+"))
        strips.append(Strip(target, images, Window(low, high), ("reconstruction", "truth"), inside, note))
    return montage(strips, title="A held-out synthetic patient", place={"axial": float(place[2])})


def _viewer(path: Path, summary: Mapping[str, Any], *, spacing: float) -> Viewer:
    import numpy as np

    from medmae.report.values import Choice, Pane, Scene, Viewer

    sequences = summary["about"]["sequences"]
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    windows = {name: _window(arrays[f"window/{name}"]) for name in sequences if f"window/{name}" in arrays}
    codes = list(dict.fromkeys(name.split("/")[0] for name in arrays if name.endswith("/foreground")))
    volumes: dict[str, Volume] = {}
    scenes, patients = [], {code: f"patient {i + 1} ({code[:6]})" for i, code in enumerate(codes)}
    for code in codes:
        inside = arrays[f"{code}/foreground"]
        x, y, z = (float(share) for share in arrays[f"{code}/place"])
        place = (x, y, z)
        volumes[f"{code}/inside"] = _volume(inside.astype(np.float32), inside, (0.0, 1.0), spacing)
        for name in sequences:
            if f"{code}/truth/{name}" in arrays:
                volumes[f"{code}/{name}"] = _volume(arrays[f"{code}/truth/{name}"], inside, windows[name], spacing)
        found = [key.split("/")[1:3] for key in arrays if key.startswith(f"{code}/") and key.endswith("/model")]
        for given, target in sorted(found, key=lambda pair: (sequences.index(pair[1]), pair[0].count("+"))):
            shown = given.split("+")
            truth, inside_name = f"{code}/{target}", f"{code}/inside"
            panes = [Pane(f"input {name}", f"{code}/{name}") for name in shown]
            panes.append(Pane(f"truth {target}", truth, note="never shown to the model"))
            for method, title in (("model", "model"), ("linear", "linear regression")):
                key = f"{code}/{given}/{target}/{method}"
                if key in arrays:
                    volumes[key] = _volume(arrays[key], inside, windows[target], spacing)
                    panes.append(Pane(f"{title}: {target}", key))
                    panes.append(
                        Pane(
                            f"{title}: error",
                            key,
                            minus=truth,
                            inside=inside_name,
                            note=_error(arrays, key, code, target),
                        )
                    )
            caption = f"{target} of {patients[code]} reconstructed from {' and '.join(shown)}."
            options = (patients[code], target, given.replace("+", " + "))
            scenes.append(Scene(options, tuple(panes), caption, place))
    places = {name: i for i, name in enumerate(sequences)}
    givens = sorted(
        {scene.options[2] for scene in scenes}, key=lambda g: (g.count("+"), [places[s] for s in g.split(" + ")])
    )
    choices = (
        Choice("patient", tuple(patients.values())),
        Choice("reconstruct", tuple(name for name in sequences if any(s.options[1] == name for s in scenes))),
        Choice("from", tuple(givens)),
    )
    note = (
        "Held-out patients; at first the planes go through the middle of the tumor. Gray windows are those of the "
        "training cases, one per sequence, and the same for truth and reconstruction. Errors are absolute, in standard "
        "deviations of the volume. Shift and wheel change the slice; a click sets where the other planes go through."
    )
    return Viewer("Truth, inputs, reconstruction, error", volumes, choices, tuple(scenes), note)


def _window(ends: np.ndarray) -> tuple[float, float]:
    low, high = (float(v) for v in ends)
    room = EDGE * (high - low)
    return low - room, high + room


def _volume(values: np.ndarray, inside: np.ndarray, window: tuple[float, float], spacing: float) -> Volume:
    """Background is black, whatever value it has."""
    import numpy as np

    from medmae.report.values import Volume

    return Volume(np.where(inside, values.astype(np.float32), window[0]), *window, (spacing,) * 3)


def _error(arrays: Mapping[str, np.ndarray], key: str, code: str, target: str) -> str:
    import numpy as np

    inside = arrays[f"{code}/foreground"]
    apart = arrays[key].astype(np.float32) - arrays[f"{code}/truth/{target}"].astype(np.float32)
    return f"MAE {float(np.abs(apart[inside]).mean()):.3f}"


def _data_card(folder: Path, manifest: Mapping[str, Any]) -> tuple[Any, ...]:
    from medmae.data.cohort import open_cohort
    from medmae.data.readers import inspect
    from medmae.report.run import availability_table, fact_lists, geometry_table
    from medmae.report.values import Table

    cohort = open_cohort(folder / "data.yaml")
    parts = [(part, case) for part, cases in cohort.split().items() for case in cases]
    patterns, names = [tuple(case.images) for _, case in parts], [part for part, _ in parts]
    headers = [inspect(next(iter(case.images.values()))) for _, case in parts]
    tables = [
        *availability_table(patterns, cohort.sequences, parts=names),
        geometry_table([h.shape for h in headers], [h.spacing for h in headers], title="Files"),
    ]
    preprocess = fact_lists(manifest.get("preprocess", {}), title="Preprocessing")
    tables += [Table(facts.title, ("", "value"), tuple(facts.facts.items())) for facts in preprocess]
    return tuple(tables)


def _notes() -> tuple[str, ...]:
    return (
        "The patients are synthetic: sequences follow from one another through known signal equations, so a sequence "
        "is easier to predict from the others than in real data. The numbers show that the machinery works, not what "
        "to expect of it.",
        "Voxels are large and the model is tiny, so that all takes minutes. Real runs use 1 mm and --scale base.",
        "Baselines are fitted on training cases: the mean intensity, the best single available sequence after a linear "
        "fit, and a voxelwise linear regression from all available sequences.",
        "Metrics are taken inside the brain. Cases appear as short hashes of their content.",
    )
