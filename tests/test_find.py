"""The file system is the registry of methods."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import medmae
from medmae import find
from medmae.core.errors import UsageError
from medmae.core.method import Method


def test_every_file_with_a_card_is_a_method() -> None:
    root = Path(medmae.__file__).parent
    files = {p.stem for room in find.ROOMS for p in (root / room).glob("*.py") if "\nCARD = " in p.read_text("utf-8")}
    assert set(find.names()) == files
    assert {"mae", "bm_mae"} <= files
    assert [found.name for found in find.all()] == list(find.names())


def test_finding_one_imports_that_file_only() -> None:
    code = "import sys; from medmae.find import find; find('mae'); print('medmae.volume.bm_mae' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert out.strip() == "False"


def test_names_cost_no_torch() -> None:
    code = "import sys; from medmae.find import names; names(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize(("name", "match"), [("bm_ame", "did you mean bm_mae"), ("zzzz", "there are: .*bm_mae.*mae")])
def test_unknown_names_suggest_the_nearest(name: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find.find(name)


def test_recipe_is_defaults_then_preset_then_scale_then_overrides() -> None:
    found = find.find("bm_mae")
    assert found.recipe()["mlp_ratio"] == 4.0
    assert found.recipe()["width"] == 768
    assert found.recipe(preset="published")["mlp_ratio"] == 2.0
    assert found.recipe(preset="published", scale="test")["size"] == [32, 32, 32]
    assert found.recipe(scale="test", width=96)["width"] == 96
    assert found.recipe(preset="published", scale="test", alpha=0.5)["alpha"] == 0.5


def test_recipes_are_complete_json_and_build_the_same() -> None:
    found = find.find("bm_mae")
    recipe = json.loads(json.dumps(found.recipe(scale="test", sequences=("t1n", "adc"))))
    method = found.build(**recipe)
    assert isinstance(method, Method)
    assert method.sequences == ("t1n", "adc")
    assert found.recipe(**recipe) == recipe


def test_recipes_are_not_shared() -> None:
    found = find.find("bm_mae")
    found.recipe(scale="test")["size"].append(99)
    assert found.recipe(scale="test")["size"] == [32, 32, 32]
    assert found.recipe()["size"] == [128, 128, 128]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scale": "tset"}, "no scale 'tset'; did you mean test"),
        ({"preset": "publish"}, "no preset 'publish'; did you mean published"),
        ({"mask_ration": 0.5}, "no argument 'mask_ration'; did you mean mask_ratio"),
    ],
)
def test_mistakes_in_a_recipe_are_named(options: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find.find("bm_mae").recipe(**options)


def test_a_method_without_presets_says_so() -> None:
    with pytest.raises(UsageError, match="no preset 'published'; there are: none"):
        find.find("mae").recipe(preset="published")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": (30, 32, 32)}, "not a multiple of patch"),
        ({"mask_ratio": 1.0}, r"ratio must be in \[0, 1\)"),
        ({"heads": 5}, "not a multiple of 5 heads"),
        ({"size": [16.5, 16, 16]}, "whole numbers|Type-check"),
        ({"coords": "cm"}, "coords"),
    ],
)
def test_values_that_do_not_fit_are_usage_errors(options: dict, match: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)bm_mae cannot be built.*{match}"):
        find.find("bm_mae").build(scale="test", **options)


@pytest.mark.parametrize(("key", "value"), [("sequences", "t1n"), ("size", 32)])
def test_one_word_or_number_is_no_list(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{key} must be a list"):
        find.find("bm_mae").recipe(**{key: value})
