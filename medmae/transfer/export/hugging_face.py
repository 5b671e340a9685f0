"""A model folder as the Hugging Face hub likes it: the same three files, and a card that its pages can index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medmae.atomic import write_text
from medmae.checkpoint import CONFIG, README, TASK_METHOD, WEIGHTS, load_model, model_folder, read_config

from .staging import check_free, staged

LICENSES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "bsd-3-clause": "bsd-3-clause",
    "cc0-1.0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0": "cc-by-nc-nd-4.0",
}
"""Licenses that the hub knows by name."""


def export_hugging_face(checkpoint: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the folder, and load it once before it takes its place.

    Args:
        checkpoint: model or run folder, pre-trained or fine-tuned.
        out: folder to write.
        overwrite: replace the files of an existing one.

    Raises:
        UsageError: ``out`` is not empty.
        CheckpointError: the model cannot be loaded.
    """
    source, out = model_folder(checkpoint), check_free(out, overwrite=overwrite)
    config = read_config(source)
    text = (source / README).read_text("utf-8") if (source / README).is_file() else f"# {config['method']}\n"
    with staged(out) as stage:
        shutil.copyfile(source / WEIGHTS, stage / WEIGHTS)
        shutil.copyfile(source / CONFIG, stage / CONFIG)
        write_text(stage / README, front_matter(config) + body(text))
        _try(stage, config)
    return out


def front_matter(config: Mapping[str, Any]) -> str:
    """What the hub indexes, as YAML between dashes."""
    recipe, data = config.get("recipe") or {}, config.get("data") or {}
    kind = (config.get("task") or {}).get("kind")
    tags = ["medical-imaging", "masked-autoencoder", "self-supervised-learning", config["method"]]
    tags += [kind] if kind else []
    facts: dict[str, Any] = {
        **_license(config.get("license") or data.get("license")),
        "library_name": "medmae",
        "pipeline_tag": {"classify": "image-classification"}.get(kind or "", "image-feature-extraction"),
        "tags": [*tags, *(str(name) for name in recipe.get("sequences") or ())],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"


def body(text: str) -> str:
    """A card without the front matter it may have already."""
    if text.startswith("---\n") and "\n---\n" in text[3:]:
        return text[3:].partition("\n---\n")[2].lstrip("\n")
    return text


def facts_to_share(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Entries of the config about the training data that a reader of the folder can see, to be looked at first."""
    data = config.get("data") or {}
    return tuple(key for key, value in data.items() if value and json.dumps(value, default=str) not in ("{}", "[]"))


def _license(stated: Any) -> dict[str, str]:
    """The license by the hub's name for it, or as ``other`` with its own words."""
    if not stated:
        return {"license": "unknown"}
    known = LICENSES.get(str(stated).strip().lower().replace(" ", "-"))
    return {"license": known} if known else {"license": "other", "license_name": str(stated)}


def _try(folder: Path, config: Mapping[str, Any]) -> None:
    """Load what was written, strictly."""
    if config["method"] == TASK_METHOD:
        from medmae.transfer.task_folder import load_task

        load_task(folder)
    else:
        load_model(folder)
