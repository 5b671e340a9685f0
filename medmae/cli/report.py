"""``medmae report``: the HTML file of a run, made again from what its folder holds.

Everything comes from plain files, so a report can be made of a run on another machine, of an unfinished one, and
again by a newer version. What would tell who the patients are (paths, case names) is in the run folder and stays there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmae.cli.console import emit, emit_json, flags

if TYPE_CHECKING:
    from medmae.report.values import Picture, Report, Tone

PRIVATE = ("path", "cache", "root", "init", "subjects", "validation_subjects", "files", "split")
_MOST_PICTURES = 12


def run(
    run_folder: Annotated[Path, typer.Argument(help="Folder that `medmae pretrain` wrote.")],
    out: Annotated[Path | None, typer.Option(help="File to write (report.html in the run folder).")] = None,
) -> None:
    """Rebuild the HTML report of a run."""
    from medmae.report.html import write_report

    path = write_report(out or run_folder / "report.html", run_report(run_folder))
    if flags().json:
        emit_json({"report": str(path)})
    else:
        emit(str(path))


def run_report(folder: Path) -> Report:
    """The report of a run folder; what is not there yet is left out.

    Raises UsageError where the folder is not that of a run.
    """
    from medmae import __version__
    from medmae.core.errors import UsageError
    from medmae.report import run as parts
    from medmae.report.values import Report

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder of a run, such as runs/NAME")
    if not any((folder / name).exists() for name in ("metrics.jsonl", "config.yaml", "DONE")):
        raise UsageError(f"{folder} is not the folder of a run: it holds neither metrics.jsonl nor config.yaml")
    rows = read_lines(folder / "metrics.jsonl")
    quality = read_lines(folder / "qc" / "quality.jsonl")
    config, manifest = _config(folder), read_json(folder / "data" / "manifest.json")
    evaluation = _evaluation(folder)
    tiles, lines, tables = evaluation_parts(evaluation, sequences=manifest.get("sequences", ()))
    name = str(config.get("method", {}).get("name", "run"))
    steps = max((int(row["step"]) for row in rows), default=0)
    finished = _finished(folder, steps)
    state = "finished" if finished else "not finished"
    return Report(
        title=f"Pre-training {name}",
        subtitle=f"{steps} steps, {state}. Sequences: {', '.join(manifest.get('sequences', ())) or 'not recorded'}.",
        headline=(*_tiles(rows, quality), *tiles),
        summary=lines,
        tables=tables,
        curves=(*parts.training_charts(rows), *parts.quality_chart(quality)),
        pictures=qc_pictures(folder / "qc", caption=_caption(config, manifest)),
        data_card=_data_card(manifest),
        facts=(*parts.fact_lists(_public(config), title="Settings"), *environment_facts(folder)),
        notes=_notes(folder, finished=finished),
        footer=f"medmae {__version__}. Reconstructed images are synthetic and must not be used for diagnosis.",
    )


def evaluation_parts(evaluation: Mapping[str, Any], *, sequences: Any) -> tuple[Any, Any, Any]:
    """Tiles, sentences and tables of an evaluation's ``summary.json``; empty where there is none."""
    from medmae.report.comparison import by_subset, compare, headline, overview, summary_lines

    summary = evaluation.get("summary") or []
    if not summary:
        return (), (), ()
    names = list(sequences) or sorted({entry["target"] for entry in summary})
    comparison = compare(summary, sequences=names)
    return headline(comparison), summary_lines(comparison), (overview(comparison), by_subset(comparison))


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none. Raises DataError for anything else."""
    from medmae.core.errors import DataError

    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that a crash cut off is left out."""
    from medmae.core.errors import DataError

    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True), 1):
        if not line.strip() or not line.endswith("\n"):
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error})") from error
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


_VOLUMES = (
    "Columns: truth, what the model saw, its reconstruction (hidden patches filled in), and the error where "
    "patches were hidden. Gray windows come from training samples."
)
_FLAT = "Columns: the original, what the model saw, and its reconstruction (hidden patches filled in)."
_STACKED = (
    f"{_FLAT} Rows: slices along the first axis. Three sequences are shown as red, green and blue; of any other "
    "number, the first alone."
)
CAPTIONS: Mapping[str, str] = {
    "image": _FLAT,
    "video": _FLAT,
    "points": "From left to right: the cloud, the groups that the model saw, and these with its guesses of the hidden "
    "ones (orange). Near points are strong, far ones pale.",
    "audio": "From top to bottom: the original, what the model saw, and its reconstruction (hidden patches filled in). "
    "Time runs to the right, frequency upward; bright is loud.",
}
"""What stands below the pictures of data that are no volumes, by their kind."""


def _caption(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What stands below the pictures of a run: they are drawn by kind of data, and volumes in two ways."""
    recipe = config.get("method", {})
    if manifest.get("kind") or "sequences" in recipe or "channels" not in recipe:
        return CAPTIONS.get(str(manifest.get("kind")), _VOLUMES)
    return _STACKED  # a cohort's sequences are channels of one image, which is drawn as images and clips are


def qc_pictures(folder: Path, *, most: int = _MOST_PICTURES, caption: str = _VOLUMES) -> tuple[Picture, ...]:
    """The pictures of the last step first, then some of the steps before, spread over the run."""
    from medmae.report.values import Picture

    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("step_*.png")) if folder.is_dir() else ():
        match = re.fullmatch(r"step_(\d+)(?:_\d+)?\.png", path.name)
        if match:
            found.setdefault(int(match.group(1)), []).append(path)
    steps = sorted(found, reverse=True)
    chosen = steps[:: max(1, -(-len(steps) // max(1, most // 2)))]
    pictures = [
        Picture(f"Step {step}, sample {i + 1}", path.read_bytes(), caption)
        for step in chosen
        for i, path in enumerate(found[step])
    ]
    return tuple(pictures[:most])


def environment_facts(folder: Path) -> tuple[Any, ...]:
    """Versions and machine of a run."""
    from medmae.report.run import fact_lists

    return fact_lists(read_json(folder / "environment.json"), title="Environment")


def _config(folder: Path) -> dict[str, Any]:
    from medmae.config import load_config

    path = folder / "config.yaml"
    return load_config(path) if path.is_file() else {}


def _evaluation(folder: Path) -> dict[str, Any]:
    for path in (folder / "evaluation" / "summary.json", folder / "evaluation.json"):
        if path.is_file():
            return read_json(path)
    return {}


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without entries that hold paths or name patients."""
    return {k: _public(v) if isinstance(v, Mapping) else v for k, v in values.items() if k not in PRIVATE}


def _tiles(rows: list[dict[str, Any]], quality: list[dict[str, Any]]) -> list[Any]:
    from medmae.report.values import Tile

    tiles = []
    val = [(row["loss"], row["step"]) for row in rows if row.get("split") == "val" and row.get("loss") is not None]
    train = [row for row in rows if row.get("split") == "train" and row.get("loss") is not None]
    if val:
        loss, step = min(val)
        tiles.append(Tile("lowest validation loss", f"{loss:.4g}", f"at step {step}"))
    if train:
        tiles.append(Tile("last training loss", f"{train[-1]['loss']:.4g}", f"at step {train[-1]['step']}"))
    if quality:
        last = quality[-1]
        gain = 100 * (1 - last["mae"] / last["mae_mean"]) if last["mae_mean"] else 0.0
        tone: Tone = "good" if gain > 0 else "bad"
        tiles.append(
            Tile("error of hidden patches", f"{last['mae']:.3f}", f"{gain:.0f} % below guessing the mean", tone)
        )
    return tiles


def _data_card(manifest: Mapping[str, Any]) -> tuple[Any, ...]:
    from medmae.report.run import fact_lists, geometry_table
    from medmae.report.values import Table

    tables: list[Any] = []
    cases = manifest.get("cases")
    if isinstance(cases, Mapping):
        tables.append(Table("Cases", ("part", "cases"), tuple((part, str(count)) for part, count in cases.items())))
    if manifest.get("shapes") and manifest.get("spacings"):
        tables.append(geometry_table(manifest["shapes"], manifest["spacings"]))
    for facts in fact_lists(_public({k: v for k, v in manifest.items() if k != "cases"}), title="Samples"):
        tables.append(Table(facts.title, ("", "value"), tuple(facts.facts.items())))
    return tuple(tables)


def _finished(folder: Path, steps: int) -> bool:
    """Whether all steps are done; the report is written before ``DONE``, which is the last file of a run."""
    planned = read_json(folder / "environment.json").get("steps")
    return (folder / "DONE").exists() or (isinstance(planned, int) and steps >= planned)


def _notes(folder: Path, *, finished: bool) -> tuple[str, ...]:
    notes = []
    if not finished:
        notes.append("This run is not finished: the report shows what there is so far.")
    if not (folder / "qc").is_dir():
        notes.append("There are no pictures: the method cannot be shown this way, or train.picture_every is 0.")
    notes.append("Cases appear as short hashes of their content or not at all; names stay in the run folder.")
    return tuple(notes)
