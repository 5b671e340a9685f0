"""From JSON values to a model: what a task folder says, and what a command was asked for, go through here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from medmae.core.errors import CheckpointError, UsageError
from medmae.core.method import Method
from medmae.find import find

from .backbone import Backbone
from .dense import KINDS as DENSE
from .dense import build_dense
from .finetuned import Finetuned
from .heads import build_head
from .objectives import Classes, Cox, Hazards, Objective, Regression
from .segments import Segments
from .synthesis import KIND as SYNTHESIS
from .synthesis import Synthesis, build_synthesis

OBJECTIVES: Mapping[str, type[Objective]] = {
    "classes": Classes, "cox": Cox, "hazards": Hazards, "regression": Regression, "segments": Segments,
    "synthesis": Synthesis,
}  # fmt: skip


def build_objective(recipe: Mapping[str, Any]) -> Objective:
    """The objective that ``recipe`` describes: ``kind`` and its arguments.

    Raises:
        UsageError: there is no such kind, or arguments that cannot be meant.
    """
    options = dict(recipe)
    kind = options.pop("kind", None)
    if kind not in OBJECTIVES:
        raise UsageError(f"there is no objective {kind!r}; there are {', '.join(OBJECTIVES)}")
    try:
        return OBJECTIVES[kind](**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the objective {kind} cannot be built: {error}") from error


def build(recipe: Mapping[str, Any], *, method: Method | None = None) -> Finetuned:
    """The fine-tuned model that ``recipe`` describes, with fresh weights.

    Args:
        recipe: JSON values: ``backbone`` (``method``, ``recipe``, ``layer``), ``head`` and ``objective`` (each with
            ``kind``), ``modality_dropout``, ``schedule``, ``layer_decay``, ``wait``, ``distill``, ``momentum``.
        method: whose tokenizer and encoder are used, with their weights; None builds them, for prediction: then there
            is no teacher.

    Raises:
        CheckpointError: the method has no encoder of volumes.
        UsageError: values that cannot be meant.
    """
    base, given = recipe["backbone"], method
    if method is None:
        method = find(base["method"]).build(**base["recipe"])
    grid = getattr(getattr(method, "tokenizer", None), "grid", None)
    if grid is None or len(grid.size) != 3 or grid.channels != 1:
        raise CheckpointError(f"{base['method']} has no encoder of volumes to fine-tune")
    backbone = Backbone(method, layer=base.get("layer"), frozen=recipe.get("schedule") == "frozen")
    objective = build_objective(recipe["objective"])
    if recipe["head"].get("kind") in DENSE:
        head: nn.Module = build_dense(recipe["head"], backbone=backbone, outputs=objective.outputs)
    elif recipe["head"].get("kind") == SYNTHESIS:
        head = build_synthesis(recipe["head"], backbone=backbone, outputs=objective.outputs)
    else:
        head = build_head(recipe["head"], width=backbone.width, outputs=objective.outputs)
    head.start(objective.start())  # type: ignore[operator]
    rest = (
        "modality_dropout",
        "schedule",
        "layer_decay",
        "wait",
        *(("distill", "momentum") if method is given else ()),
    )
    return Finetuned(
        backbone=backbone,
        head=head,
        objective=objective,
        **{name: recipe[name] for name in rest if name in recipe},
    )
