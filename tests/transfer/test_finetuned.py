"""A fine-tuned model: any subset, dropped is missing, schedules, and a folder that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medmae.checkpoint import load_model, save_model
from medmae.core.errors import CheckpointError, UsageError
from medmae.find import find
from medmae.testing import example_batch, mixed_batch
from medmae.transfer.building import build
from medmae.transfer.finetuned import Finetuned, drop_sequences
from medmae.transfer.objectives import CLASS
from medmae.transfer.task_folder import load_task, save_task

HEADS = ({"kind": "linear", "pool": "mean"}, {"kind": "mlp", "pool": "modality", "hidden": 7}, {"kind": "attentive"})


def recipe(name: str = "bm_mae", **more) -> dict:
    backbone = {"method": name, "recipe": find(name).recipe(scale="test"), "layer": None}
    return {
        "backbone": backbone, "head": HEADS[0], "objective": {"kind": "classes", "count": 3}, **more,
    }  # fmt: skip


def model(name: str = "bm_mae", **more) -> Finetuned:
    torch.manual_seed(0)
    return build(recipe(name, **more))


def batch_of(method: Finetuned, *, mixed: bool = False) -> dict[str, torch.Tensor]:
    make = mixed_batch if mixed else example_batch
    return {**make(method.backbone), CLASS: torch.tensor([0, 2, -1])}


@pytest.mark.parametrize("name", ["bm_mae", "resenc_mae", "eva_mae"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["kind"])
@torch.no_grad()
def test_any_subset_alone_or_in_a_batch(name: str, head: dict) -> None:
    if name != "bm_mae":
        head = {**head, "pool": "mean", **({"heads": 2} if head["kind"] == "attentive" else {})}
    method = model(name, head=head).eval()
    batch = batch_of(method, mixed=True)
    together = method.predict(batch)["probability"]
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    for row in range(3):
        mine = {key: value[row : row + 1] for key, value in batch.items()}
        torch.testing.assert_close(method.predict(mine)["probability"][0], together[row], rtol=0, atol=1e-4)


def test_subsets_are_uniform_and_never_empty() -> None:
    present = torch.tensor([[True, False, True, True]]).expand(7000, -1)
    key = torch.arange(7000)
    kept = drop_sequences(present, key, probability=1.0)
    assert bool(kept.any(1).all())
    assert not bool(kept[:, 1].any())
    words, counts = kept.long().unique(dim=0, return_counts=True)
    assert len(words) == 7
    assert bool(((counts - 1000).abs() < 150).all()), counts
    assert torch.equal(kept[17:19], drop_sequences(present[17:19], key[17:19], probability=1.0))
    assert torch.equal(drop_sequences(present, key, probability=0.0), present)
    part = (drop_sequences(present, key, probability=0.5) != present).any(1).float().mean()
    assert abs(float(part) - 0.5 * 6 / 7) < 0.03
    with pytest.raises(ValueError, match="at most 20"):
        drop_sequences(torch.ones(1, 21, dtype=torch.bool), torch.zeros(1, dtype=torch.long), probability=1.0)


@pytest.mark.parametrize("name", ["bm_mae", "resenc_mae", "eva_mae"])
def test_dropped_is_missing_exactly(name: str) -> None:
    method = model(name, modality_dropout=1.0).train()
    batch = batch_of(method)
    found = method(batch)["cross_entropy"]
    present = drop_sequences(torch.ones(3, len(method.sequences), dtype=torch.bool), batch["key"], probability=1.0)
    assert not bool(present.all())
    lacking = {**batch, "present": present}
    for column, sequence in enumerate(method.sequences):
        lacking[sequence] = batch[sequence].clone()
        lacking[sequence][~present[:, column]] = torch.nan  # whatever is there, it must not matter
    method.modality_dropout = 0.0
    assert torch.equal(method(lacking)["cross_entropy"], found)
    assert not torch.equal(method(batch)["cross_entropy"], found)


@torch.no_grad()
def test_validation_sees_everything_and_one_fixed_subset() -> None:
    method = model(modality_dropout=0.5).eval()
    batch = batch_of(method)
    found = method(batch)["cross_entropy"]
    assert torch.equal(found, method(batch)["cross_entropy"])
    whole = method.objective(method.answer(batch), batch)["cross_entropy"]
    present = drop_sequences(torch.ones(3, 4, dtype=torch.bool), batch["key"], probability=1.0)
    part = method.objective(method.answer({**batch, "present": present}), batch)["cross_entropy"]
    torch.testing.assert_close(found, (whole + part) / 2)


def test_it_overfits_a_batch() -> None:
    method = model()
    batch = {**batch_of(method), CLASS: torch.tensor([0, 2, 1])}
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for _ in range(40):
        loss = method(batch)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_layers_learn_slower_the_earlier_they_are() -> None:
    method = model(layer_decay=0.5)
    found = {name: method.pace(name).at(0.3) for name, _ in method.named_parameters()}
    assert found["head.outer.weight"] == 1
    assert found["backbone.encoder.norm.weight"] == 0.5
    assert found["backbone.encoder.blocks.1.norm1.weight"] == 0.5
    assert found["backbone.encoder.blocks.0.norm1.weight"] == 0.25
    assert found["backbone.encoder.prefix_tokens"] == 0.125


def test_schedules() -> None:
    encoder, head = "backbone.encoder.norm.weight", "head.outer.weight"

    def rates(schedule: str) -> list[tuple[float, float]]:
        method = model(schedule=schedule, wait=0.2)
        each = [(method.pace(encoder).at(x), method.pace(head).at(x)) for x in (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)]
        return [(round(one, 6), round(other, 6)) for one, other in each]

    assert rates("full") == [(1, 1)] * 6
    assert rates("warmup") == [(0, 1), (0, 1), (0, 1), (0.5, 1), (1, 1), (1, 1)]
    assert rates("sawtooth") == [(0, 0), (0, 0.5), (0, 0), (0.5, 0.5), (1, 1), (1, 1)]
    frozen = model(schedule="frozen").train()
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    frozen(batch_of(frozen))["cross_entropy"].backward()
    assert frozen.head.outer.weight.grad is not None


def test_the_encoder_of_a_checkpoint_is_used() -> None:
    torch.manual_seed(5)
    method = find("bm_mae").build(scale="test")
    tuned = build(recipe(), method=method)
    assert tuned.backbone.encoder is method.encoder
    assert "decoder" not in {name.split(".")[0] for name in tuned.state_dict()}


def test_what_cannot_be_meant() -> None:
    for more in ({"schedule": "zigzag"}, {"modality_dropout": 2.0}, {"layer_decay": 0.0}, {"head": {"kind": "tree"}},
                 {"head": {"kind": "linear", "pool": "max"}}, {"head": {"kind": "attentive", "heads": 5}},
                 {"head": {"kind": "linear", "depth": 3}}):  # fmt: skip
        with pytest.raises(UsageError):
            model(**more)
    with pytest.raises(CheckpointError, match="no encoder of volumes"):
        model("mae")
    cox = model(objective={"kind": "cox"})
    with pytest.raises(UsageError, match="1 is too few"):
        cox.check_training(batch=1, world=1)


# --- folders --------------------------------------------------------------------------------------------------------


def save(folder: Path, **more) -> Finetuned:
    whole = recipe(**more)
    torch.manual_seed(1)
    method = build(whole)
    task = {"kind": "classify", "columns": {"class": "idh"}, "classes": ["a", "b", "c"], "recipe": whole}
    save_task(folder, method, task=task, about={"data": {"preprocess": {}, "subjects": ["x"]}})
    return method.eval()


@torch.no_grad()
def test_a_folder_gives_the_model_back(tmp_path: Path) -> None:
    method = save(tmp_path, head=HEADS[1])
    loaded = load_task(tmp_path, kind="classify")
    batch = batch_of(method, mixed=True)
    assert torch.equal(method.predict(batch)["probability"], loaded.method.predict(batch)["probability"])
    assert loaded.task["classes"] == ["a", "b", "c"]
    assert loaded.data["subjects"] == ["x"]
    assert not loaded.method.training
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert "predicts classes of idh" in (tmp_path / "README.md").read_text()


def test_folders_say_what_they_are(tmp_path: Path) -> None:
    save(tmp_path / "task")
    with pytest.raises(CheckpointError, match="fine-tuned to classify"):
        load_model(tmp_path / "task")
    with pytest.raises(CheckpointError, match=r"predicts classes of idh; it cannot survive"):
        load_task(tmp_path / "task", kind="survive")
    found = find("bm_mae")
    save_model(tmp_path / "pre", found.build(scale="test"), name="bm_mae", recipe=found.recipe(scale="test"))
    with pytest.raises(CheckpointError, match="fine-tune it first"):
        load_task(tmp_path / "pre")


def test_folders_that_were_changed(tmp_path: Path) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["task"]["recipe"]["objective"]["count"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_task(tmp_path)
    del config["task"]["recipe"]["head"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be built"):
        load_task(tmp_path)
    save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="hash differs"):
        load_task(tmp_path)
