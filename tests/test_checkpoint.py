"""Model folders: strict, honest about what was loaded, never pickled, never half-written."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from medmae.checkpoint import (
    CONFIG,
    WEIGHTS,
    first_names,
    from_pretrained,
    load_model,
    load_state,
    model_folder,
    read_config,
    save_model,
)
from medmae.core.errors import CheckpointError, UsageError
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


@pytest.mark.parametrize("wrong", [{"method": ["bm_mae"]}, {"recipe": [1]}, {"recipe": None}, {"format": "2"}])
def test_a_config_of_another_shape_is_an_error_of_the_checkpoint(saved, wrong):
    _, run = saved
    path = run / "model" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(CheckpointError, match="config"):
        load_model(run)


def test_an_added_sequence_changes_nothing_for_the_others_and_can_be_trained(saved):
    method, run = saved
    grown = load_model(run, sequences=(*method.sequences, "adc")).method
    images = batch(method)
    plan = method.eval().plan(images)
    more = images | {"adc": torch.zeros_like(images["t1n"]), "present": torch.tensor([[1, 1, 1, 1, 0]] * 2).bool()}
    before = method.guess(method.tokenizer(images), plan)
    torch.testing.assert_close(grown.guess(grown.tokenizer(more), plan), before, atol=1e-4, rtol=1e-4)
    grown.train()(batch(grown))["reconstruction"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in grown.parameters())


@pytest.mark.parametrize("sequences", [(), ("t1n", "t1n"), ("t1n", "a.b")])
def test_impossible_sequences_are_refused(saved, sequences):
    with pytest.raises(UsageError, match="sequence"):
        load_model(saved[1], sequences=sequences)


def test_another_spelling_never_starts_a_known_sequence_afresh(saved):
    with pytest.raises(UsageError, match="T1CE is t1c"):
        load_model(saved[1], sequences=("t1n", "T1CE"))


def test_the_report_tells_what_was_dropped(saved):
    report = load_model(saved[1], sequences=("t1n", "adc")).report
    dropped = {part for name in report.dropped for part in name.split(".")} & {"t1n", "t1c", "t2w", "t2f"}
    assert dropped == {"t1c", "t2w", "t2f"}
    assert "dropped" in str(report)
    assert not report.unused


def test_weights_that_are_not_the_ones_the_config_names_are_refused(saved, tmp_path):
    method, run = saved
    with torch.no_grad():
        method.encoder.norm.bias += 1
    save_model(tmp_path / "other", method, name="bm_mae", recipe=find("bm_mae").recipe(scale="test"))
    (run / "model" / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(CheckpointError, match="hash differs"):
        load_model(run)
    assert load_model(run, strict=False).report.missing == ()


def test_a_sequence_called_like_a_part_of_the_network_excuses_no_missing_tensor(saved):
    _, run = saved
    added = ("t1n", "t1c", "t2w", "t2f", "head")
    assert all(".head" in name for name in load_model(run, sequences=added).report.fresh)
    larger = find("bm_mae").build(scale="test", sequences=list(added))
    state = {k: v for k, v in from_pretrained(run).state_dict().items() if k != "decoder.inner.head.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing: decoder\.inner\.head\.weight"):
        load_state(larger, state, before=added[:-1], after=added)


def test_a_tensor_with_two_names_is_stored_once_and_loaded_under_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.other = self.one

    source, target = Twice(), Twice()
    assert first_names(source.state_dict()) == {"one.weight": "one.weight", "other.weight": "one.weight"}
    report = load_state(target, {"one.weight": source.one.weight.detach()})
    assert not report.missing
    assert torch.equal(target.other.weight, source.one.weight)
    separate = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "other": nn.Linear(2, 2, bias=False)})
    with pytest.raises(CheckpointError, match=r"other\.weight"):
        load_state(separate, {"one.weight": source.one.weight.detach()})
