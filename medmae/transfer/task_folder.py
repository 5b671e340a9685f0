"""Folders of fine-tuned models: what they predict, how they were made, and whom they have seen.

They look like other model folders, and say in a section ``task`` of ``config.json`` everything that is needed to build
the model again and to read its numbers. Nothing is pickled, and loading is strict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmae import __version__
from medmae.atomic import write_text
from medmae.checkpoint import (
    CONFIG,
    FORMAT,
    README,
    TASK_METHOD,
    WEIGHTS,
    LoadReport,
    file_hash,
    load_state,
    model_folder,
    read_config,
    read_weights,
    write_weights,
)
from medmae.core.errors import CheckpointError, MedmaeError
from medmae.find import find

from .building import build
from .finetuned import Finetuned

VERBS = {
    "classify": "classes of", "survive": "survival by", "regress": "values of", "segment": "the voxels of",
    "synthesize": "what is missing of",
}  # fmt: skip
"""Kind of a task -> what it predicts, as a sentence begins."""


@dataclass(frozen=True)
class LoadedTask:
    """A fine-tuned model with its weights, in evaluation mode, and what its folder says of it."""

    method: Finetuned
    config: dict[str, Any]
    report: LoadReport = field(default_factory=LoadReport)

    @property
    def task(self) -> dict[str, Any]:
        """Its section ``task``: ``kind``, ``columns``, ``classes``, ``recipe``, ``pretrained``."""
        found: dict[str, Any] = self.config["task"]
        return found

    @property
    def data(self) -> dict[str, Any]:
        """What it remembers of the data it was fine-tuned on."""
        return self.config.get("data") or {}


def save_task(
    folder: str | Path, method: Finetuned, *, task: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> Path:
    """Write the folder of a fine-tuned model; an existing one is replaced file by file, the weights first.

    Args:
        folder: where to.
        method: the trained model.
        task: ``kind`` (classify, survive, ...), ``columns`` (role -> column of the table), ``recipe`` (as for
            :func:`medmae.transfer.finetuned.build`), ``classes`` where there are any, ``pretrained`` (``method``,
            ``weights`` and ``data`` of the checkpoint it began with; None from scratch).
        about: further entries of the config, as in :func:`medmae.checkpoint.save_model`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = "teacher."  # of use in training only
    state = {name: values for name, values in method.state_dict().items() if not name.startswith(teacher)}
    write_weights(folder, method, state=state)
    base = task["recipe"]["backbone"]
    card = find(base["method"]).card
    config = {
        "medmae": __version__,
        "format": FORMAT,
        "method": TASK_METHOD,
        "recipe": {"sequences": list(method.sequences), "size": list(method.backbone.tokenizer.grid.size)},
        "task": dict(task),
        "parameters": sum(p.numel() for name, p in method.named_parameters() if not name.startswith(teacher)),
        "weights_sha256": file_hash(folder / WEIGHTS),
        "method_license": card.license,
        "citation": [line for line in (card.citation,) if line],
        **(about or {}),
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2, default=str) + "\n")
    write_text(folder / README, _readme(config))
    return folder


def load_task(folder: str | Path, *, kind: str | None = None, strict: bool = True) -> LoadedTask:
    """Build the fine-tuned model of a folder and load its weights.

    Args:
        folder: of the model, or of its run.
        kind: what it must do, such as ``classify``; None takes any.
        strict: refuse any difference between file and network, and a changed file.

    Raises:
        CheckpointError: it is no fine-tuned model, one for another task, or its weights do not fit.
    """
    path, config = model_folder(folder), read_config(folder)
    task = config.get("task")
    if not isinstance(task, dict):
        raise CheckpointError(
            f"{folder} holds {config['method']}, a pre-trained model, which predicts nothing yet: fine-tune it first "
            "(medmae finetune classify or survive), then give the folder that this prints"
        )
    if kind is not None and task.get("kind") != kind:
        raise CheckpointError(f"{folder} {describe_task(task)}; it cannot {kind}")
    try:
        method = build(task["recipe"])
    except (KeyError, TypeError, MedmaeError) as error:
        raise CheckpointError(f"{path / CONFIG}: the model cannot be built from it ({error})") from error
    report = load_state(method, read_weights(path, config, strict=strict), strict=strict)
    return LoadedTask(method.eval(), config, report)


def describe_task(task: Mapping[str, Any]) -> str:
    """What a fine-tuned model does, in a few words that follow its name."""
    columns = _subject(task)
    return f"predicts {VERBS.get(str(task.get('kind')), str(task.get('kind')) + ' of')} {columns}"


def _subject(task: Mapping[str, Any]) -> str:
    """What it is about: columns of a table, else the names that it tells apart, or the sequences that it makes."""
    names = (task.get("columns") or {}).values() or task.get("classes") or task["recipe"]["objective"].get("names")
    return ", ".join(str(name) for name in names or ())


def _readme(config: Mapping[str, Any]) -> str:
    """The model card."""
    task, data = config["task"], config.get("data", {})
    base, pretrained = task["recipe"]["backbone"], task.get("pretrained")
    lines = [
        f"# {task['kind']}: {_subject(task)}",
        "",
        f"Fine-tuned with medmae {config['medmae']}; it {describe_task(task)} from any subset of its sequences.",
        "",
        f"- sequences: {', '.join(config['recipe']['sequences'])}",
        *([f"- classes: {', '.join(task['classes'])}"] if task.get("classes") else []),
        f"- encoder: {base['method']}, "
        + (f"pre-trained (weights {pretrained['weights'][:16]})" if pretrained else "from scratch"),
        f"- head: `{json.dumps(task['recipe']['head'])}`",
        f"- parameters: {config['parameters']:,}",
        f"- window: {config['recipe']['size']}",
        f"- preprocessing: `{json.dumps(data.get('preprocess', {}))}`",
        f"- license of the data: {config.get('license') or 'not stated'}",
        f"- license of the method's reference: {config['method_license']}",
        "",
        "```sh",
        "medmae predict --checkpoint this/folder --t1n a.nii.gz --t2w b.nii.gz "
        f"--out prediction{'.csv' if task.get('columns') else '/' if task['kind'] == 'synthesize' else '.nii.gz'}",
        "```",
        "",
        "A research model: not validated for diagnosis or treatment.",
        "",
        "## Cite",
        "",
        *[f"- {line}" for line in config["citation"]],
    ]
    return "\n".join(lines) + "\n"
