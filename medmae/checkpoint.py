"""Model folders: the thing users share.

A folder holds ``model.safetensors``, ``config.json`` (method, resolved recipe, what the data looked like, license,
citation) and ``README.md`` (the card). Nothing in it is pickled. Loading is strict and returns a report of what was
used; a difference between file and network is an error unless it was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmae import __version__, hub
from medmae.atomic import replacing, write_text
from medmae.core.card import Card
from medmae.core.errors import CheckpointError, UsageError
from medmae.core.method import Method
from medmae.core.sequences import canonical
from medmae.find import find

FORMAT = 1
WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
TASK_METHOD = "finetuned"
"""What stands in place of a method's name in the folder of a fine-tuned model."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and of a network.

    Attributes:
        used: names copied as they are.
        missing: names the network has and the file lacks.
        unused: names the file has and the network lacks.
        resized: names whose shapes differ, with both shapes.
        fresh: missing names that were expected to be missing (a sequence that was added); ``name[sequence]``: a slice.
        dropped: unused names that were expected to be unused (a sequence that was left out), slices too.
    """

    used: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used"]
        for kind in ("fresh", "dropped", "missing", "unused", "resized"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                lines.append(f"{len(names)} {kind}: {', '.join(names[:8])}{more}")
        return "; ".join(lines)


@dataclass(frozen=True)
class Loaded:
    """A method with its weights, and what its folder says of it."""

    method: Method
    config: dict[str, Any]
    report: LoadReport = field(default_factory=LoadReport)


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    strict: bool = True,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> LoadReport:
    """Copy tensors into a network by name.

    Args:
        module: the network.
        state: tensors by name.
        strict: refuse any difference.
        before: sequences of the file, where they differ from those of the network.
        after: sequences of the network. What belongs to a sequence that came or went may be missing or unused; tensors
            with one slice per sequence are put together by name.

    Raises:
        CheckpointError: strict, and a tensor is missing, unused or of another shape; the message names them.
    """
    own = module.state_dict()
    alias = first_names(own)
    state = {**{k: state[alias[k]] for k in own if k not in state and alias[k] in state}, **state}
    sliced = _sliced(module, state, before, after) if tuple(before) != tuple(after) else {}
    state = {**state, **sliced}
    shared = [k for k in own if k in state]
    used = [k for k in shared if state[k].shape == own[k].shape]
    resized = [f"{k} {tuple(state[k].shape)} -> {tuple(own[k].shape)}" for k in shared if k not in set(used)]
    new = [k for k in own if k not in state]
    kept, used_names = set(before) & set(after), set(used)
    expected = [k for k in new if _belongs(k, set(after) - kept, kept, used_names)]
    left = [k for k in state if k not in own]
    dropped = [k for k in left if _belongs(k, set(before) - kept, kept, used_names)]
    came = [f"{k}[{name}]" for k in sliced for name in after if name not in kept]
    went = [f"{k}[{name}]" for k in sliced for name in before if name not in kept]
    report = LoadReport(
        used=tuple(used),
        missing=tuple(k for k in new if k not in expected),
        unused=tuple(k for k in left if k not in dropped),
        resized=tuple(resized),
        fresh=(*expected, *came),
        dropped=(*dropped, *went),
    )
    if strict and (report.missing or report.unused or report.resized):
        raise CheckpointError(f"the checkpoint does not fit this network: {report}")
    with torch.no_grad():
        for name in used:
            own[name].copy_(state[name])
    return report


def _sliced(
    module: nn.Module, state: Mapping[str, Tensor], before: Sequence[str], after: Sequence[str]
) -> dict[str, Tensor]:
    """Tensors with one slice per sequence, in the order of the network; a sequence the file lacks keeps its own."""
    axes: dict[int, int] = {}
    for part in module.modules():
        stacked: Any = getattr(part, "stacked", list)
        axes |= {id(values): axis for values, axis in stacked()}
    place = {name: i for i, name in enumerate(before)}
    found = {}
    for name, values in module.named_parameters(remove_duplicate=False):
        axis, old = axes.get(id(values)), state.get(name)
        if axis is None or old is None or old.ndim != values.ndim or old.shape[axis] != len(before):
            continue
        if [n for i, n in enumerate(old.shape) if i != axis] == [n for i, n in enumerate(values.shape) if i != axis]:
            found[name] = values.detach().clone()
            for i, sequence in enumerate(after):
                if sequence in place:
                    found[name].select(axis, i).copy_(old.select(axis, place[sequence]))
    return found


def first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The name under which each tensor of a state comes first: some networks register one tensor several times.

    Two names stand for one tensor when they share its memory, shape and strides.
    """
    first: dict[Any, str] = {}
    names = {}
    for name, value in state.items():
        same = (value.data_ptr(), value.device, value.shape, value.stride()) if value.numel() else name
        names[name] = first.setdefault(same, name)
    return names


def _belongs(name: str, sequences: set[str], kept: set[str], used: set[str]) -> bool:
    """Whether a tensor is one of a sequence's own: where a sequence that is kept has a tensor of the same role.

    A sequence may be called like any other part of a network ("head"), so its name alone proves nothing.
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part in sequences:
            roles = {".".join([*parts[:i], other, *parts[i + 1 :]]) for other in kept}
            if roles & used or not kept:
                return True
    return False


def save_model(
    folder: str | Path,
    method: Method,
    *,
    name: str,
    recipe: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model folder; an existing one is replaced file by file, each atomically, the weights first.

    Args:
        folder: where to.
        method: the trained method.
        name: its name in the registry.
        recipe: its resolved arguments (``Found.recipe``).
        about: further entries of the config: ``data`` (``Source.describe()``), ``training``, ``license`` of the data.
        state: weights to save in place of the method's own (an average of them).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = find(name).card
    write_weights(folder, method, state=state)
    config = {
        "medmae": __version__,
        "format": FORMAT,
        "method": name,
        "recipe": dict(recipe),
        "parameters": sum(p.numel() for p in method.parameters()),
        "weights_sha256": file_hash(folder / WEIGHTS),
        "method_license": card.license,
        "citation": [line for line in (card.citation,) if line],
        **(about or {}),
    }
    text = json.dumps(config, indent=2, sort_keys=False, default=str)
    write_text(folder / CONFIG, text + "\n")
    write_text(folder / README, _readme(config, card))
    return folder


def write_weights(folder: Path, module: nn.Module, *, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the weights file of a model folder, each tensor once; ``state`` stands in for the module's own values."""
    values = state or module.state_dict()
    alias = first_names(module.state_dict())  # averaged weights have the aliases of the method, not its memory
    weights = {key: value.detach().cpu().contiguous() for key, value in values.items() if alias.get(key, key) == key}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def read_weights(folder: Path, config: Mapping[str, Any], *, strict: bool = True) -> dict[str, Tensor]:
    """The tensors of a model folder.

    Raises:
        CheckpointError: the file cannot be read, or (strict) is not the one that ``config`` was written for.
    """
    try:
        state: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}; copy the file again") from error
    if strict and config.get("weights_sha256", "") not in ("", file_hash(folder / WEIGHTS)):
        raise CheckpointError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written for (its hash differs): "
            "copy the folder again, or load it with strict=False if you know what it is"
        )
    return state


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a model folder, or of the ``model`` folder inside a run folder.

    Raises:
        CheckpointError: there is none, it cannot be read, or a newer version wrote it.
    """
    path = model_folder(folder) / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as the config of a model folder: {error}") from error
    named = isinstance(config, dict) and isinstance(config.get("method"), str)
    if not named or not isinstance(config.get("recipe"), dict):
        raise CheckpointError(f"{path} is not the config of a model folder: it names no method and recipe")
    version = config.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(f"{path} has format {version!r}; this medmae reads up to {FORMAT}: upgrade medmae")
    return config


def model_folder(folder: str | Path) -> Path:
    """The model folder itself, given it or its run folder.

    Raises:
        CheckpointError: neither holds a config and weights.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    what = "does not exist" if not folder.exists() else f"holds no {CONFIG} and {WEIGHTS} (nor does its model/ folder)"
    raise CheckpointError(
        f"{folder} {what}; give the model folder that `medmae pretrain` wrote, for example runs/NAME/model"
    )


def load_model(
    folder: str | Path,
    *,
    size: Sequence[int] | None = None,
    sequences: Sequence[str] | None = None,
    strict: bool = True,
) -> Loaded:
    """Build the method of a model folder and load its weights.

    Args:
        folder: model folder or run folder.
        size: another window size than the one trained with; must be a multiple of the patch.
        sequences: other sequences: those the model does not know start fresh, those left out are dropped, the rest
            is kept.
        strict: refuse any other difference between file and network.

    Raises:
        CheckpointError: the folder is not a model folder, or its weights do not fit its recipe.
        UsageError: the recipe cannot be built, or a sequence the model knows is spelled in another way.
    """
    folder, config = model_folder(folder), read_config(folder)
    if config["method"] == TASK_METHOD:
        kind = (config.get("task") or {}).get("kind", "a task")
        raise CheckpointError(
            f"{folder} holds a model that is fine-tuned to {kind}, not a pre-trained one: "
            "use it with medmae predict or medmae evaluate (in Python: medmae.transfer.task_folder.load_task)"
        )
    recipe = dict(config["recipe"])
    known = list(recipe.get("sequences") or ())
    if size is not None:
        recipe["size"] = list(size)
    if sequences is not None:
        if "sequences" not in recipe:
            raise CheckpointError(f"{config['method']} has no named sequences, so none can be added or dropped")
        for name in set(sequences) - set(known):
            if canonical(name) in known:
                raise UsageError(f"{name} is {canonical(name)}, which this model knows: call it {canonical(name)}")
        recipe["sequences"] = list(sequences)
    method = find(config["method"]).build(**recipe)
    report = load_state(
        method,
        read_weights(folder, config, strict=strict),
        strict=strict,
        before=known,
        after=recipe.get("sequences") or known,
    )
    return Loaded(method.eval(), {**config, "recipe": recipe}, report)


def from_pretrained(folder: str | Path, *, revision: str | None = None, **options: Any) -> Method:
    """The method of a model folder with its weights, in evaluation mode.

    Args:
        folder: model or run folder; or, where there is no such folder, ``organization/name`` on the Hugging Face hub,
            of which three files are fetched (the extra ``hub``).
        revision: branch, tag or commit on the hub.
        options: those of :func:`load_model`.

    Raises:
        MissingDependency: a name on the hub, and huggingface_hub is not installed.
        CheckpointError: as :func:`load_model`; or the hub has no such model, or cannot be reached.
    """
    if hub.is_id(folder):
        folder = hub.fetch(str(folder), revision=revision)
    return load_model(folder, **options).method


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _readme(config: Mapping[str, Any], card: Card) -> str:
    """The model card."""
    data = config.get("data", {})
    recipe = config["recipe"]
    command = "reconstruct --checkpoint this/folder --t1n a.nii.gz --t2w b.nii.gz --target t1c --out c.nii.gz"
    if data.get("kind"):  # images, clips, clouds, sound
        command = "probe --checkpoint this/folder --data folder-of-classes --out probe"
    elif "sequences" not in recipe:  # a cohort's are the channels of one image, of which none can be predicted
        command = "probe --checkpoint this/folder --data spec.yaml --target COLUMN --out probe"
    lines = [
        f"# {config['method']}",
        "",
        f"Pre-trained with medmae {config['medmae']}. Method: {card.title} ({card.paper}, {card.year}).",
        "",
        f"- parameters: {config['parameters']:,}",
        f"- sequences: {', '.join(recipe.get('sequences', ())) or 'not named'}",
        f"- window: {recipe.get('size')}, patch: {recipe.get('patch')}",
        f"- preprocessing: `{json.dumps(data.get('preprocess') or data.get('reading') or {})}`",
        f"- license of the data: {config.get('license') or data.get('license') or 'not stated'}",
        f"- license of the method's reference: {card.license}",
        "",
        "```python",
        "from medmae.checkpoint import from_pretrained",
        'method = from_pretrained("this/folder")',
        "```",
        "",
        "```sh",
        f"medmae {command}",
        "```",
        "",
        "Reconstructed images are synthetic and must not be used for diagnosis.",
        "",
        "## Cite",
        "",
        *[f"- {line}" for line in config["citation"]],
    ]
    return "\n".join(lines) + "\n"
