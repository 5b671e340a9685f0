"""Where fine-tuning starts: the network and weights of a checkpoint, and the preprocessing that goes with them.

Preprocessing follows the checkpoint even where its weights are not used, so that runs with and without pre-training see
the same voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medmae.core.errors import CheckpointError, UsageError

from .console import say

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.data.cohort import Cohort

    from .finetune_run import Wish


def base(wish: Wish, cohort: Cohort) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Method and recipe of the encoder, and what is known of its pre-training (None from scratch).

    Raises:
        UsageError: a method that is none for volumes of named sequences.
        CheckpointError: a checkpoint that has no such encoder, or knows none of the cohort's sequences.
    """
    from medmae.checkpoint import TASK_METHOD, WEIGHTS, file_hash, model_folder, read_config
    from medmae.find import find

    if wish.checkpoint is None:
        name = wish.method or "bm_mae"
        found = find(name)
        recipe = found.recipe(scale=wish.scale)
        if found.card.kind != "volume" or "sequences" not in recipe or "size" not in recipe:
            raise UsageError(f"--method {name}: that is no method for volumes of named sequences and a fixed window")
        return name, {**recipe, "sequences": list(cohort.sequences)}, None
    folder = model_folder(wish.checkpoint)
    config = read_config(folder)
    if config["method"] == TASK_METHOD:
        raise CheckpointError(f"{wish.checkpoint} is fine-tuned already: start from the pre-trained model it came from")
    recipe = config["recipe"]
    known = recipe.get("sequences")
    if not known or len(recipe.get("size") or ()) != 3:
        raise CheckpointError(
            f"{wish.checkpoint} holds {config['method']}, which has no encoder of volumes of named sequences"
        )
    if not set(known) & set(cohort.sequences):
        raise CheckpointError(
            f"{wish.checkpoint} knows {', '.join(known)}, and the cohort has {', '.join(cohort.sequences)}: "
            "none in common. Choose a checkpoint for these sequences"
        )
    if ignored := [name for name in cohort.sequences if name not in known]:
        say(f"{', '.join(ignored)} left aside: the checkpoint does not know them", style="yellow")
    about = {"method": config["method"], "weights": f"sha256:{file_hash(folder / WEIGHTS)}"}
    pretrained = {**about, "data": config.get("data") or {}}
    if wish.from_scratch:
        pretrained = {
            "method": config["method"],
            "weights": None,
            "data": {"preprocess": pretrained["data"].get("preprocess")},
        }
    return config["method"], dict(recipe), pretrained


def weights(wish: Wish, name: str, recipe: Mapping[str, Any], *, seed: int) -> Method:
    """The method of :func:`base`, with the weights of the checkpoint or fresh ones drawn from ``seed``."""
    import torch

    from medmae.checkpoint import load_model
    from medmae.find import find

    if wish.checkpoint is not None and not wish.from_scratch:
        loaded = load_model(wish.checkpoint)
        say(f"Starting from {wish.checkpoint}: {loaded.report}")
        return loaded.method
    torch.manual_seed(seed)
    return find(name).build(**recipe)


def prepared_alike(cohort: Cohort, pretrained: Mapping[str, Any] | None) -> Cohort:
    """The cohort with the preprocessing of the checkpoint in place of the spec's."""
    from medmae.data.preprocess import PreprocessSettings
    from medmae.data.spec import Preprocess

    wanted = ((pretrained or {}).get("data") or {}).get("preprocess")
    if not wanted:
        if pretrained is not None:
            say("the checkpoint states no preprocessing: the spec's is used", style="yellow")
        return cohort
    own = PreprocessSettings.of(cohort.spec).describe()
    values = {name: wanted[name] for name in Preprocess.model_fields if name in wanted}
    if changed := [name for name in values if own.get(name) != wanted[name]]:
        say(f"preprocessing follows the checkpoint, not the spec: {', '.join(changed)}", style="yellow")
    spec = cohort.spec.model_copy(update={"preprocess": Preprocess.model_validate(values)})
    return replace(cohort, spec=spec)
