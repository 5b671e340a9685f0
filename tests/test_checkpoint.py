"""Model folders: strict, honest about what was loaded, never pickled, never half-written."""

from __future__ import annotations

import json

import pytest
import torch

from medmae.checkpoint import (
    CONFIG,
    WEIGHTS,
    from_pretrained,
    load_model,
    load_state,
    model_folder,
    read_config,
    save_model,
)
from medmae.core.errors import CheckpointError
from medmae.find import find


@pytest.fixture
def saved(tmp_path):
    found = find("bm_mae")
    recipe = found.recipe(scale="test")
    method = found.build(**recipe)
    save_model(tmp_path / "run" / "model", method, name="bm_mae", recipe=recipe, about={"data": {"spacing": [1, 1, 1]}})
    return method, tmp_path / "run"


def batch(method, size=(32, 32, 32)):
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.randn(2, 1, *size, generator=generator) for name in method.sequences}
    return images | {"key": torch.arange(2)}


def test_round_trip_gives_the_same_loss(saved):
    method, run = saved
    again = from_pretrained(run / "model")
    assert torch.equal(method.eval()(batch(method))["reconstruction"], again(batch(method))["reconstruction"])


def test_a_run_folder_stands_for_its_model_folder(saved):
    _, run = saved
    assert model_folder(run) == run / "model"


def test_nothing_in_the_folder_is_pickled_and_the_card_names_the_citation(saved):
    _, run = saved
    assert sorted(p.name for p in (run / "model").iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert "Robinet" in (run / "model" / "README.md").read_text()
    json.loads((run / "model" / CONFIG).read_text())


def test_a_missing_tensor_is_an_error_that_names_it(saved):
    method, _ = saved
    state = dict(method.state_dict())
    del state["encoder.norm.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: encoder\.norm\.weight"):
        load_state(method, state)


def test_an_unused_or_reshaped_tensor_is_an_error_that_names_it(saved):
    method, _ = saved
    with pytest.raises(CheckpointError, match="1 unused: extra"):
        load_state(method, {**method.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 resized: encoder\.norm\.weight \(3,\) -> \(48,\)"):
        load_state(method, {**method.state_dict(), "encoder.norm.weight": torch.zeros(3)})


def test_asked_not_to_be_strict_it_loads_the_rest_and_says_so(saved):
    method, _ = saved
    state = {k: v + 1 for k, v in method.state_dict().items() if k != "encoder.norm.weight"}
    report = load_state(method, state, strict=False)
    assert report.missing == ("encoder.norm.weight",)
    assert len(report.used) == len(state)
    assert torch.equal(method.state_dict()["encoder.norm.bias"], state["encoder.norm.bias"])


def test_a_sequence_can_be_added_and_the_rest_is_kept(saved):
    method, run = saved
    loaded = load_model(run, sequences=("t1n", "t1c", "t2w", "t2f", "swi"))
    own, old = loaded.method.state_dict(), method.state_dict()
    assert all(torch.equal(own[name], old[name]) for name in old)
    assert set(own) - set(old) == set(loaded.report.fresh)
    assert all("swi" in name.split(".") for name in loaded.report.fresh)
    assert loaded.config["recipe"]["sequences"][-1] == "swi"
    assert torch.isfinite(loaded.method(batch(loaded.method))["reconstruction"])


def test_sequences_can_be_dropped_and_reordered_by_name(saved):
    method, run = saved
    loaded = load_model(run, sequences=("t2f", "t1n"))
    assert loaded.method.sequences == ("t2f", "t1n")
    key = "encoder.embed.linear.t2f.weight"
    assert torch.equal(loaded.method.state_dict()[key], method.state_dict()[key])


def test_another_window_size_needs_no_surgery(saved):
    _, run = saved
    larger = load_model(run, size=(48, 32, 40)).method
    assert torch.isfinite(larger(batch(larger, (48, 32, 40)))["reconstruction"])


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04\x95pickle"])
def test_broken_weights_are_a_checkpoint_error(saved, content):
    _, run = saved
    (run / "model" / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(run)


def test_broken_configs_are_a_checkpoint_error(saved, tmp_path):
    _, run = saved
    config = run / "model" / CONFIG
    text = config.read_text()
    for broken, message in (("{", "cannot be read"), ("[]", "names no method"), ("{}", "names no method")):
        config.write_text(broken)
        with pytest.raises(CheckpointError, match=message):
            read_config(run)
    config.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(CheckpointError, match="upgrade medmae"):
        read_config(run)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="medmae pretrain"):
        read_config(tmp_path / "empty")
