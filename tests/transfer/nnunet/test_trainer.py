"""The medmae trainer, without data: what it loads and when, what it saves, and what it keeps of nnU-Net."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_unets import architecture, dataset_of, network, plans_of
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("nnunetv2")

from medmae.core.errors import CheckpointError, UsageError
from medmae.transfer.nnunet import trainer as module
from medmae.transfer.nnunet.folders import KINDS, Folders, variable
from medmae.transfer.nnunet.settings import CHECKPOINT_VARIABLE, Settings
from medmae.transfer.nnunet.trainer import MedMAETrainer, nnUNetTrainer


class Quiet:
    """Stands for nnU-Net's cases on the disk."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in KINDS:
        monkeypatch.setenv(variable(kind), "")
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    Folders.use(tmp_path)
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as theirs

    monkeypatch.setattr(theirs, "infer_dataset_class", lambda folder: Quiet)
    return tmp_path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"network_weights": network(seed=1).state_dict()}, path)
    return path


def build(settings: Settings | None = None, *, plans: dict[str, Any] | None = None) -> MedMAETrainer:
    described = plans if plans is not None else plans_of(architecture())
    described["configurations"]["3d_fullres"]["batch_dice"] = False
    with (settings or Settings()).in_environment():
        return MedMAETrainer(deepcopy(described), "3d_fullres", 0, dataset_of(), torch.device("cpu"))


def ready(settings: Settings | None = None, **options: Any) -> MedMAETrainer:
    found = build(settings, **options)
    found.initialize()
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one if ".seg_layers." not in key)


def test_it_has_nnunets_signature_and_builds_nnunets_network(home: Path) -> None:
    import inspect

    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in (MedMAETrainer, nnUNetTrainer))
    assert list(ours) == list(theirs)
    assert MedMAETrainer.build_network_architecture is nnUNetTrainer.build_network_architecture
    found = build()
    assert set(found.my_init_kwargs) == {"plans", "configuration", "fold", "dataset_json", "device"}


def test_plans_without_the_entry_that_nnunet_takes_out(home: Path) -> None:
    plans = plans_of(architecture())
    assert "continue_training" not in plans
    build(plans=plans)


def test_lengths_come_from_the_settings_and_the_rest_from_nnunet(home: Path) -> None:
    found = build(Settings(epochs=7, iterations=3, validation_iterations=2, deep_supervision=False))
    assert (found.num_epochs, found.num_iterations_per_epoch, found.num_val_iterations_per_epoch) == (7, 3, 2)
    assert found.enable_deep_supervision is False
    plain = build()
    assert (plain.num_epochs, plain.num_iterations_per_epoch, plain.num_val_iterations_per_epoch) == (1000, 250, 50)
    assert plain.enable_deep_supervision is True


def test_the_weights_are_loaded_and_recorded(home: Path, weights: Path) -> None:
    found = ready(Settings(checkpoint=str(weights)))
    before = deepcopy(found.network.state_dict())
    expected = torch.load(weights, weights_only=True)["network_weights"]
    assert not same(before, expected)
    report = found.load_weights()
    assert report is not None
    assert report.share == 1.0
    assert same(found.network.state_dict(), expected)
    assert found.record["origin"] == "weights.pth"
    assert len(found.record["sha256"]) == 64
    log = Path(found.log_file).read_text()
    assert found.record["sha256"] in log
    assert "loaded:" in log


def test_the_optimizer_keeps_its_parameters(home: Path, weights: Path) -> None:
    found = ready(Settings(checkpoint=str(weights)))
    held = {id(value) for group in found.optimizer.param_groups for value in group["params"]}
    found.load_weights()
    assert held == {id(value) for value in found.network.parameters()}


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module"])
def test_wrapped_networks_are_unwrapped(home: Path, weights: Path, wrapper: str) -> None:
    found = ready(Settings(checkpoint=str(weights)))
    inner = found.network

    class Wrapped(DistributedDataParallel if wrapper == "module" else torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            setattr(self, wrapper, inner)

    found.network = Wrapped()
    assert found.plain_network is inner


def test_weights_named_by_argument_then_variable_then_plans(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = plans_of(architecture(), medmae={"checkpoint": "../weights.pth"})
    assert build(plans=plans).weights_path() == home / "nnUNet_preprocessed" / "Dataset901_Tiny" / "../weights.pth"
    assert build(Settings(from_scratch=True), plans=plans).weights_path() is None
    monkeypatch.setenv(CHECKPOINT_VARIABLE, "/from/variable")
    assert build(plans=plans).weights_path() == Path("/from/variable")
    assert build(Settings(checkpoint="/argument"), plans=plans).weights_path() == Path("/argument")


def test_without_weights_it_is_nnunet(home: Path) -> None:
    found = ready()
    assert found.load_weights() is None
    assert type(found.lr_scheduler).__name__ == "PolyLRScheduler"
    assert found.initial_lr == 1e-2
    assert found.settings.schedule == "scratch"


def test_cnn_weights_get_sawtooth(home: Path, weights: Path) -> None:
    found = ready(Settings(checkpoint=str(weights), epochs=8, layer_decay=0.5))
    assert (found.settings.schedule, found.settings.learning_rate, found.settings.warmup_epochs) == (
        "sawtooth",
        1e-3,
        2,
    )
    assert isinstance(found.optimizer, torch.optim.SGD)
    assert found.optimizer.param_groups[0]["weight_decay"] == 3e-5
    assert len({group["factor"] for group in found.optimizer.param_groups}) > 3


def test_a_vit_from_scratch_gets_warmup_and_a_choice_is_a_choice(home: Path, weights: Path) -> None:
    plans = plans_of(architecture(), medmae={"kind": "vit"})
    assert build(Settings(from_scratch=True), plans=plans).schedule() == "warmup"
    assert build(Settings(from_scratch=True, schedule="sawtooth"), plans=plans).schedule() == "sawtooth"
    assert build(Settings(checkpoint=str(weights), schedule="scratch")).schedule() == "scratch"


def test_layer_decay_has_nothing_to_slow_down_from_scratch(home: Path) -> None:
    with pytest.raises(UsageError, match="layer-decay"):
        ready(Settings(layer_decay=0.7))


def test_weights_of_another_network_are_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"network_weights": network(architecture(3, features=[6, 9, 12])).state_dict()}, path)
    found = ready(Settings(checkpoint=str(path)))
    with pytest.raises(CheckpointError, match=r"only .*% of the network .*lower --min-loaded"):
        found.load_weights()


def test_channels_may_be_renamed_but_not_miscounted(home: Path, weights: Path) -> None:
    assert build(Settings(channels=("t2f", "pd")))._input_names() == ("t2f", "pd")
    with pytest.raises(UsageError, match=r"names 1 channels, dataset\.json has 2"):
        build(Settings(channels=("t2f",)))._input_names()


def test_training_begins_with_the_weights_only_at_epoch_zero(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    loaded: list[int] = []
    monkeypatch.setattr(MedMAETrainer, "load_weights", lambda self: loaded.append(self.current_epoch))
    found = ready(Settings(checkpoint=str(weights)))
    found.on_train_start()
    assert loaded == [0]
    found.current_epoch = 1
    found.on_train_start()
    assert loaded == [0]


def saved(found: MedMAETrainer, *, epochs: int = 1) -> Path:
    for epoch in range(epochs):
        for key in ("train_losses", "val_losses", "lrs", "mean_fg_dice"):
            found.logger.log(key, np.float64(0.5), epoch)
        found.logger.log("dice_per_class_or_region", [np.float32(0.5)], epoch)
    found.current_epoch = epochs - 1
    path = Path(found.output_folder) / "checkpoint_final.pth"
    found.save_checkpoint(str(path))
    return path


def test_a_checkpoint_is_nnunets_own(home: Path, weights: Path) -> None:
    found = ready(Settings(checkpoint=str(weights)))
    found.load_weights()
    path = saved(found)
    content = torch.load(path, weights_only=False)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["medmae"]["sha256"] == found.record["sha256"]
    assert content["medmae"]["report"]["share"] == 1.0
    assert content["medmae"]["channels"] == ["T1", "T2"]
    assert (
        content["medmae"]["settings"]["checkpoint"] == "weights.pth"
    )  # a place on this machine means nothing elsewhere
    assert str(home) not in json.dumps(content["medmae"])
    assert {"network_weights", "optimizer_state", "init_args", "current_epoch", "logging"} <= set(content)
    assert same(found.network.state_dict(), content["network_weights"])
    assert [item.name for item in path.parent.iterdir() if item.suffix == ".part"] == []
    json.dumps(content["medmae"])


def test_a_disabled_checkpoint_is_not_written(home: Path) -> None:
    found = ready()
    found.disable_checkpointing = True
    assert not saved(found).exists()


def test_resuming_goes_on_with_what_it_began_with(home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(Settings(checkpoint=str(weights), epochs=8, modality_dropout=0.3))
    first.load_weights()
    path = saved(first, epochs=2)
    monkeypatch.setattr(module, "read_source", lambda path: pytest.fail("the weights were read again"))
    second = build(Settings(epochs=12))
    second.load_checkpoint(str(path))
    assert second.current_epoch == 2
    assert second.num_epochs == 12
    assert second.settings.modality_dropout == 0.3
    assert second.record == first.record
    assert same(second.network.state_dict(), first.network.state_dict())
    assert second.lr_scheduler.course.together == first.lr_scheduler.course.together == 2


def test_validating_needs_no_settings(home: Path, weights: Path) -> None:
    path = saved(ready(Settings(checkpoint=str(weights), schedule="warmup")))
    weights.unlink()
    found = build()
    found.load_checkpoint(str(path))
    assert isinstance(found.optimizer, torch.optim.AdamW)


def test_a_checkpoint_of_another_trainer_is_not_resumed(home: Path) -> None:
    path = saved(ready())
    content = torch.load(path, weights_only=False)
    del content["medmae"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not written by this trainer"):
        build().load_checkpoint(str(path))


def test_modality_dropout_reaches_the_training_transforms(home: Path) -> None:
    arguments = ((16, 16, 16), (-0.5, 0.5), None, (0, 1, 2), False)
    for probability, expected in ((0.0, 0), (0.5, 1)):
        found = build(Settings(modality_dropout=probability))
        names = [type(step).__name__ for step in found.get_training_transforms(*arguments).transforms]
        assert names.count("ModalityDropout") == expected
        if expected:
            assert names.index("ModalityDropout") + 1 == names.index("RemoveLabelTransform")
            assert names.index("MirrorTransform") < names.index("ModalityDropout")
