"""Settings from four places: who wins, what is refused, what is saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medmae.config import assignments, check, differences, flatten, load_config, merge, plain, save_config
from medmae.core.errors import UsageError

KNOWN: dict[str, Any] = {"method": {"name": None, "size": None}, "train": {"lr": None, "steps": None}, "free": {}}


def test_the_last_layer_wins() -> None:
    merged = merge(
        {"train": {"lr": 1, "steps": 5}}, {"train": {"lr": 2}, "method": {"size": [1, 2]}}, {"train": {"lr": 3}}
    )
    assert merged == {"train": {"lr": 3, "steps": 5}, "method": {"size": [1, 2]}}


def test_layers_are_not_changed() -> None:
    first = {"train": {"lr": 1}}
    merge(first, {"train": {"lr": 2}})["train"]["lr"] = 9
    assert first == {"train": {"lr": 1}}


def test_assignments() -> None:
    assert assignments(["train.lr=1e-4", "method.size=[96,96,96]", "train.clip=null", "method.name=a=b"]) == {
        "train": {"lr": 1e-4, "clip": None},
        "method": {"size": [96, 96, 96], "name": "a=b"},
    }
    for bad in ("train.lr", "=3", "train..lr=3", "train.lr=[1"):
        with pytest.raises(UsageError, match="--set"):
            assignments([bad])


@pytest.mark.parametrize("text", ["1e-4", "1.5E3", "-2e+5", ".5e1"])
def test_numbers_with_exponents_are_numbers(text: str) -> None:
    assert assignments([f"x={text}"])["x"] == float(text)


@pytest.mark.parametrize("text", ["e5", "1e", "t1e-4", "'1e-4'"])
def test_text_stays_text(text: str) -> None:
    assert assignments([f"x={text}"])["x"] == text.strip("'")


def test_unknown_keys_all_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        check({"trian": {}, "train": {"ls": 1}, "method": {"steps": 3}, "free": {"any": 1}}, KNOWN, origin="my.yaml")
    text = str(caught.value)
    assert "my.yaml: trian is not a setting. Did you mean train?" in text
    assert "train.ls is not a setting. Did you mean train.lr?" in text
    assert "method.steps is not a setting. Did you mean train.steps?" in text
    assert "free" not in text


def test_a_section_is_not_a_value() -> None:
    with pytest.raises(UsageError, match="train is a section"):
        check({"train": 5}, KNOWN, origin="--set")
    check({"method": {"name": {"any": 1}}}, KNOWN, origin="--set")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n  lr: [1\n", r"c.yaml:\d"),
        ("train:\n  lr: 1\n  lr: 2\n", "c.yaml:3: 'lr' is given twice"),
        ("- a\n", "mapping"),
        ("train: !!python/object/apply:os.system ['true']\n", "c.yaml:1"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_config(path)


def test_missing_file_suggests(tmp_path: Path) -> None:
    (tmp_path / "published.yaml").write_text("")
    assert load_config(tmp_path / "published.yaml") == {}
    with pytest.raises(UsageError, match=r"Did you mean published\.yaml"):
        load_config(tmp_path / "publsihed.yaml")


def test_saved_is_loaded(tmp_path: Path) -> None:
    config = {"train": {"lr": 1e-05, "betas": (0.9, 0.95), "clip": None}, "data": {"path": Path("a b.yaml")}}
    save_config(config, tmp_path / "new" / "c.yaml")
    assert load_config(tmp_path / "new" / "c.yaml") == plain(config)
    assert not list(tmp_path.rglob("*.partial"))


def test_differences() -> None:
    old, new = {"a": {"b": 1, "c": (1, 2)}, "d": "x" * 99}, {"a": {"b": 2, "c": [1, 2]}, "e": None}
    lines = differences(old, new)
    assert lines[0] == "a.b: 1 -> 2"
    assert lines[2] == "e: (absent) -> None"
    assert lines[1].startswith("d: 'xxx")
    assert lines[1].endswith("... -> (absent)")
    assert len(lines) == 3
    assert flatten({"a": {"b": {}}}) == {"a.b": {}}


def test_quick_to_import() -> None:
    code = "import sys, medmae.config; sys.exit(bool({'torch', 'yaml', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["bm_mae", "bm_mae_published"])
def test_shipped_configs(name: str) -> None:
    from medmae.cli.pretrain import make_plan

    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    plan = make_plan([(name, load_config(path))])
    assert plan.name == "bm_mae"
    if name == "bm_mae_published":
        assert plan.train.total_steps(size=1000, world=1) == 166667
        assert plan.train.decay_all
        assert plan.train.clip is None
        assert plan.recipe["reduce"] == "sum"


def test_shipped_config_of_resenc_mae() -> None:
    from medmae.cli.pretrain import make_plan

    path = Path(__file__).parents[1] / "configs" / "resenc_mae.yaml"
    plan = make_plan([("resenc_mae", load_config(path))])
    assert plan.name == "resenc_mae"
    assert plan.recipe["size"] == [128, 128, 128]
    assert plan.train.precision == "bf16"


def test_plan_layers() -> None:
    from medmae.cli.pretrain import make_plan

    plan = make_plan(
        [
            ("file", {"method": "bm_mae", "train": {"epochs": 9, "lr": 0.5}, "data": "a.yaml"}),
            ("flags", {"train": {"steps": 7}, "method": {"scale": "test"}}),
            ("--set", {"train": {"lr": 0.25}, "data": {"augmentation": {"noise": 0.1}}}),
        ]
    )
    assert plan.train.steps == 7
    assert plan.train.epochs is None
    assert plan.train.lr == 0.25
    assert plan.data["path"] == "a.yaml"
    assert plan.data["augmentation"]["noise"] == 0.1
    assert plan.data["augmentation"]["scale"] == 0.1
    assert plan.recipe["width"] == 48
    assert plan.recipe["sequences"] is None
    assert plan.config["method"]["scale"] == "test"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"train": {"batchsize": 2}}, "train.batchsize is not a setting. Did you mean train.batch"),
        ({"data": {"augmentation": {"flips": 0}}}, "data.augmentation.flip"),
        ({"method": {"name": "bm_mea"}}, "bm_mae"),
        ({"method": {"scale": "tini"}}, "tiny"),
        ({"model": {}}, "method"),
        ({"train": 3}, "section train"),
        ({"method": {"widht": 3}}, "method.width"),
        ({"method": {"name": 5}}, "method.name = 5 is not a name"),
        ({"method": {"preset": ["x"]}}, "method.preset"),
        ({"data": {"path": 5}}, "data.path = 5 is not a path"),
        ({"data": {"crop": 5}}, "three whole numbers"),
        ({"data": {"repeat": "two", "cache": 5, "require": "all"}}, "data.repeat"),
        ({"data": {"foreground_share": 2}}, "probability"),
        ({"data": {"augmentation": {"flip": 0.5}}}, "data.augmentation.flip = 0.5 is not three numbers"),
        ({"data": {"augmentation": {"flip": [0.5]}}}, "three numbers"),
        ({"data": {"augmentation": None}}, "data.augmentation = None"),
        ({"data": {"artifacts": {"probability": "often"}}}, "data.artifacts.probability"),
    ],
)
def test_plan_refuses(layer: dict[str, Any], words: str) -> None:
    from medmae.cli.pretrain import make_plan

    with pytest.raises(UsageError, match=words):
        make_plan([("test", layer)])
