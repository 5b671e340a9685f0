"""A method is what its file, its card, its recipe and its checkpoint say it is."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Mapping
from typing import get_args

import torch

from medmae.checkpoint import load_model, save_model
from medmae.core.card import Card, Status
from medmae.core.glossary import glossary, own_meanings
from medmae.find import Found, names

from .batches import awake, example_batch
from .building import SCALE, build


def name_is_file_is_card(found: Found, *, known_checks: tuple[str, ...] = ()) -> None:
    """File, builder and registry share one name; the card is complete; exemptions exist and give a reason."""
    file = found.module.rpartition(".")[2]
    assert found.name == file == found.builder.__name__, (
        f"method {found.name!r} is built by {found.builder.__name__!r} in the file {file!r}"
    )
    card = found.card
    assert isinstance(card, Card), f"CARD is a {type(card).__name__}"
    for entry in ("title", "paper", "license", "kind", "citation"):
        assert getattr(card, entry).strip(), f"the card has no {entry}"
    assert 1950 < card.year < 2100, f"the year on the card is {card.year}"
    assert card.status in get_args(Status), f"the status on the card is {card.status!r}"
    assert card.reference or card.status != "faithful", "the card says faithful, but not to which code"
    assert card.parent is None or card.parent in names(), f"the parent {card.parent!r} on the card is no method"
    assert card.parent is None or card.changed, "the card has a parent and does not say what changed"
    for check, reason in card.exempt.items():
        assert not known_checks or check in known_checks, f"the card is exempt from {check!r}, which is no check"
        assert len(reason.split()) >= 3, f"the card is exempt from {check!r} and gives no reason"
    for documented in (found.builder, inspect.getmodule(found.builder)):
        assert getattr(documented, "__doc__", None), "file and builder need docstrings"


def recipe_is_complete(found: Found) -> None:
    """Every argument is by keyword and has a default; a recipe survives JSON."""
    for name, parameter in inspect.signature(found.builder).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"argument {name!r} is not by keyword only"
        assert parameter.default is not inspect.Parameter.empty, f"argument {name!r} has no default"
    assert SCALE in found.scales, f"there is no scale {SCALE!r}"
    for preset in (None, *found.presets):
        for scale in (None, *found.scales):
            recipe = found.recipe(preset=preset, scale=scale)
            assert json.loads(json.dumps(recipe)) == recipe, f"the recipe of {preset}/{scale} does not survive JSON"
    recipe = found.recipe(scale=SCALE)
    once, again = found.build(scale=SCALE), found.build(**json.loads(json.dumps(recipe)))
    assert _shapes(once.state_dict()) == _shapes(again.state_dict()), "the recipe builds another network"
    assert once.sequences, "the method names no sequences"
    assert once.sequences == again.sequences, "the recipe builds a method for other sequences"


def arguments_are_explained(found: Found) -> None:
    """Every argument has a meaning; the docstring explains no others, and nothing that the glossary says already."""
    arguments, meanings = inspect.signature(found.builder).parameters, found.meanings()
    for name in arguments:
        assert meanings.get(name), f"argument {name!r} is explained neither in the docstring nor in the glossary"
    shared = glossary(found.card.kind)
    for name, own in own_meanings(found.builder).items():
        assert name in arguments, f"the docstring explains {name!r}, which is no argument"
        more = _words(own) - _words(shared.get(name, ""))
        assert more, f"the docstring says of {name!r} only what the glossary says: {shared[name]!r}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def checkpoint_round_trip(found: Found) -> None:
    """Saved and loaded by name, the method gives the same losses to the last bit."""
    method = awake(build(found))
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, method, name=found.name, recipe=found.recipe(scale=SCALE))
        loaded = load_model(folder)
    assert loaded.config["method"] == found.name, f"the folder says it holds {loaded.config['method']!r}"
    batch = example_batch(method)
    with torch.no_grad():
        before, after = method(batch), loaded.method.eval()(batch)
    for name, value in before.items():
        assert torch.equal(value, after[name]), (
            f"loss {name!r} was {float(value):.8g}, and {float(after[name]):.8g} loaded"
        )
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, loaded.method.state_dict()[name]), f"{name} changed on the way"
