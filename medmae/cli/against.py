"""``--against``: a new evaluation next to an earlier one, on the same cases.

One function for every evaluating command. It is called after the results were written, so that a comparison that
cannot be made never costs the results; what can be known before (no such folder, a model in place of results) is
refused by :func:`check_against` before anything is computed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .console import emit, flags, say

if TYPE_CHECKING:
    from medmae.evaluate.comparison import Comparison

HELP = "Results (--out) of an earlier evaluation of the same cases, to be compared with."
_VERBS = {"classify": "classify", "survive": "survive", "regress": "regress", "segment": "segment",
          "synthesize": "synthesize"}  # fmt: skip


def check_against(against: Path | None, out: Path) -> None:
    """Refuse what can be refused before the evaluation: raises UsageError where ``against`` holds no results, and
    DataError where they cannot be read."""
    if against is None:
        return
    if _same(against, out):
        raise UsageError(f"--against {against} is --out itself; choose another --out")
    open_results(against)


def compared(out: Path, against: Path | None, *, seed: int = 0) -> dict[str, Any]:
    """What a command adds to its ``--json`` output: nothing without ``against``, else ``{"against": ...}``.

    Without ``against``, the comparison of results that were just replaced is removed. Raises as :func:`compare`; what
    was written before stays.
    """
    if against is None:
        from medmae.evaluate.comparison import FILES

        for name in FILES:
            (out / name).unlink(missing_ok=True)
        return {}
    try:
        return {"against": compare(out, against, seed=seed)}
    except DataError as error:
        raise DataError(
            f"{error}\nThe results are in {out} all the same; other results can be compared with them by\n"
            f"  medmae compare {out} RESULTS --out DIR"
        ) from error


def compare(out: Path, against: Path, *, seed: int = 0, to: Path | None = None) -> dict[str, Any]:
    """Compare two folders of results; write ``against.csv``, ``against.json`` and ``against.png`` and print the table.

    Args:
        out: results of "this" model.
        against: results of the other one.
        seed: of the bootstrap.
        to: where to write, ``out`` by default.

    Returns:
        What ``against.json`` holds, and "files". Under ``--json`` nothing is printed: that is left to the caller.

    Raises:
        UsageError: one of the folders holds no results.
        DataError: they are not about the same task, cases, outcomes or metrics.
    """
    from medmae.data.writing import writing
    from medmae.evaluate.comparison import as_json, compare_results, write

    if _same(out, against):
        raise UsageError(f"{against} cannot be compared with itself")
    comparison = compare_results(open_results(out), open_results(against), seed=seed)
    if aside := comparison.about["subsets_left_aside"]:
        say(f"not compared, only one of the two has them: {', '.join(aside)}", style="yellow")
    with writing(to or out):
        files = write(to or out, comparison)
    if not flags().json:
        _print(comparison, to or out, against)
    return {**as_json(comparison), "files": {name: str(path) for name, path in files.items()}}


def open_results(folder: Path) -> Any:
    """``medmae.evaluate.results.read_results``, with a word for those who give a model in place of its results."""
    from medmae.evaluate.results import SUMMARY, read_results

    kind = None if (folder / SUMMARY).is_file() else _kind_of_model(folder)
    if kind is not None:
        raise UsageError(
            f"{folder} holds a model, not results. Evaluate it first, on the same cases, and give that folder:\n"
            f"  medmae evaluate {kind} --checkpoint {folder} --data SPEC --out RESULTS"
        )
    return read_results(folder)


def _kind_of_model(folder: Path) -> str | None:
    """The verb that evaluates the model in a folder; None where there is none."""
    from medmae.checkpoint import CONFIG, model_folder
    from medmae.core.errors import MedmaeError
    from medmae.data.fingerprint import read_json

    if folder.is_file() and folder.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        return "reconstruct"
    if (folder / "plans.json").is_file() and (folder / "dataset.json").is_file():
        return "segment"
    try:
        config = read_json(model_folder(folder) / CONFIG, None)
    except MedmaeError:
        return None
    if not isinstance(config, dict):
        return None
    task = config.get("task")
    return _VERBS.get(str(task.get("kind")), "classify") if isinstance(task, dict) else "reconstruct"


def _print(comparison: Comparison, out: Path, against: Path) -> None:
    from medmae.evaluate.comparison import sentences, shown_metrics, text

    about = comparison.about
    emit("")
    emit(f"this: {about['this']['folder']}; other: {about['other']['folder']}")
    metrics = shown_metrics(comparison.differences)
    if len(comparison.differences) > 24 * len(metrics):  # the file has the others
        metrics = metrics[:1]
    for metric in metrics:
        emit(f"{metric}, this minus other, {about['cases']} case(s) of {about['subjects']} subject(s)")
        emit(text(comparison.differences, metric=metric))
    for line in sentences(comparison.differences):
        emit(line)
    emit(os.fspath(out / "against.csv"))


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
