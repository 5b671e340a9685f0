"""nnU-Net's trainer, started from pre-trained weights.

Everything that nnU-Net decides stays nnU-Net's: plan, patch, batch, loss, augmentation, deep supervision, validation.
Changed are five things only: the weights at the start of epoch 0, the learning rates, modality dropout, that
placeholders of missing sequences stay zero, and the name in the checkpoint. It says ``nnUNetTrainer``, so that a
trained model is an ordinary nnU-Net model: where the plans name an ordinary network, predicting with it needs neither
medmae nor a variable. The network is described by the plans and built by nnU-Net itself, never here.

This module subclasses nnU-Net, so importing it imports nnU-Net: import it late.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from medmae.atomic import replacing
from medmae.core.errors import CheckpointError, UsageError
from medmae.torchvision_guard import guard

from .adapt import AdaptReport, adapt
from .checkpoints import read_checkpoint
from .own_plans import ENTRY, is_vit
from .plans import channels, inputs
from .schedules import GroupedSchedule, course, groups, optimizer
from .settings import Settings
from .target import find_orientation
from .weights import Source, read_source

guard()

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

from .absence import keep_absent  # noqa: E402
from .dropout import with_modality_dropout  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

MIN_LOADED = 0.8
_LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
WEIGHT_DECAY = {"sawtooth": 3e-5, "warmup": 5e-2}


class MedMAETrainer(nnUNetTrainer):
    """Fine-tunes pre-trained weights inside nnU-Net on the user's own plan.

    The weights are those of the settings (argument of ``medmae nnunet train``, or the environment), else those that
    the plans name by a path relative to the plans' folder. They are read once, at the start of epoch 0: a resumed
    training or a validation never touches them.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net records this very signature
    ) -> None:
        plans.setdefault("continue_training", False)
        self.settings = Settings.from_environment()
        self.record: dict[str, Any] = {}
        self._source: Source | None = None
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._follow_settings()

    def _follow_settings(self) -> None:
        """Take the lengths from the settings where they say some."""
        chosen = self.settings
        lengths = (chosen.epochs, chosen.iterations, chosen.validation_iterations)
        for name, value in zip(_LENGTHS, lengths, strict=True):
            if value is not None:
                setattr(self, name, value)
        self.enable_deep_supervision = chosen.deep_supervision

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of distributed training and compilation."""
        network: Any = self.network
        network = network.module if isinstance(network, DistributedDataParallel) else network
        return getattr(network, "_orig_mod", network)

    def weights_path(self) -> Path | None:
        """The weights to start from: of the settings, else those the plans name; None to start from scratch."""
        if self.settings.from_scratch:
            return None
        if self.settings.checkpoint is not None:
            return Path(self.settings.checkpoint).expanduser()
        named = (self.plans_manager.plans.get(ENTRY) or {}).get("checkpoint")
        if not named:
            return None
        return Path(str(nnUNet_preprocessed), self.plans_manager.dataset_name, named)

    def source(self) -> Source | None:
        """The weights to start from, read once."""
        path = self.weights_path()
        if self._source is None and path is not None:
            self._source = read_source(path)
        return self._source

    def schedule(self) -> str:
        """The schedule of the settings, else what suits the weights."""
        if self.settings.schedule is not None:
            return self.settings.schedule
        source = self.source()
        if source is None:
            return "warmup" if is_vit(self.plans_manager.plans) else "scratch"
        return "warmup" if source.kind == "vit" else "sawtooth"

    def initialize(self) -> None:
        """Build network, optimizer and loss, and note what the channels are, for whoever starts from the result."""
        super().initialize()
        if not self.record:
            names = [name for name in self._input_names() if name]
            self.record = {"channels": names, "orientation": self._orientation()}

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net's own optimizer for ``scratch``; otherwise groups with rates of their own.

        What was open in the settings is decided here and kept with them, so that a resumed training goes on alike.
        """
        name, chosen = self.schedule(), self.settings
        if name == "scratch":
            if chosen.layer_decay != 1:
                raise UsageError("layer-decay slows down pre-trained layers; with the schedule scratch there are none")
            if chosen.learning_rate is not None:
                self.initial_lr = chosen.learning_rate
            self.settings = replace(chosen, schedule=name, learning_rate=self.initial_lr)
            return super().configure_optimizers()
        lengths = course(name, epochs=self.num_epochs, peak=chosen.learning_rate, warmup=chosen.warmup_epochs)
        self.initial_lr, self.weight_decay = lengths.peak, WEIGHT_DECAY[name]
        self.settings = replace(chosen, schedule=name, learning_rate=lengths.peak, warmup_epochs=lengths.together)
        members = groups(
            self.plain_network,
            decay=chosen.layer_decay,
            weight_decay=self.weight_decay,
            spare=name == "warmup",
        )
        ours = optimizer(name, members, rate=lengths.peak)
        return ours, GroupedSchedule(ours, lengths)

    def get_training_transforms(self, *arguments: Any, **options: Any) -> Any:
        """nnU-Net's transforms; placeholders stay zero, and modality dropout comes where it is asked for."""
        transforms = nnUNetTrainer.get_training_transforms(*arguments, **options)
        sequences = len(channels(self.dataset_json))
        transforms = keep_absent(transforms, channels=sequences)
        return with_modality_dropout(transforms, self.settings.modality_dropout, channels=sequences)

    def on_train_start(self) -> None:
        """Begin; at epoch 0, and only there, with the pre-trained weights."""
        if not self.was_initialized:
            self.initialize()
        if self.current_epoch == 0:
            self.load_weights()
        super().on_train_start()
        self.print_to_log_file(f"medmae: {json.dumps(self.settings.to_dict())}")

    def load_weights(self) -> AdaptReport | None:
        """Copy the pre-trained weights into the network, say what became of them, and record it.

        Raises:
            CheckpointError: fewer of them fit than asked for.
        """
        source = self.source()
        if source is None:
            self.print_to_log_file("medmae: no pre-trained weights, starting from scratch")
            return None
        report = adapt(source, self.plain_network, channels=self._input_names(), orientation=self.record["orientation"])
        self.print_to_log_file(f"medmae: weights of {source.origin} (sha256 {source.sha256})\n{report}")
        least = MIN_LOADED if self.settings.min_loaded is None else self.settings.min_loaded
        if report.share < least:
            raise CheckpointError(
                f"only {report.share:.1%} of the {report.scope} finds weights in {source.origin}, {least:.0%} are "
                "asked for: these weights are for another network. Choose plans that fit them, or lower --min-loaded.\n"
                f"{report}"
            )
        self.record |= {"origin": Path(source.origin).name, "sha256": source.sha256, "report": report.to_dict()}
        self._source = None  # read for once: the tensors are in the network now
        return report

    def _input_names(self) -> tuple[str, ...]:
        """Names of the network's inputs: those of the settings, else of dataset.json."""
        names = inputs(self.plans_manager.plans, self.dataset_json, self.configuration_name)
        renamed, images = self.settings.channels, len(channels(self.dataset_json))
        if renamed is None:
            return names
        if len(renamed) != images:
            raise UsageError(f"--channels names {len(renamed)} channels, dataset.json has {images}")
        return (*renamed, *names[images:])

    def _orientation(self) -> str | None:
        """Which way the axes of nnU-Net's arrays point; from the raw images where they are still there."""
        places = [Path(str(folder), self.plans_manager.dataset_name) for folder in (nnUNet_raw,) if folder.is_set()]
        codes, notes = find_orientation(self.plans_manager.plans, places)
        for note in notes:
            self.print_to_log_file(f"medmae: {note}")
        return codes or None

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint under nnU-Net's own trainer name, with what medmae did, whole or not at all."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with replacing(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))
            checkpoint = torch.load(temporary, map_location="cpu", weights_only=False)  # written a moment ago, above
            checkpoint["trainer_name"] = nnUNetTrainer.__name__
            checkpoint[ENTRY] = {**self.record, "settings": self._settings_to_keep().to_dict()}
            torch.save(checkpoint, temporary)

    def _settings_to_keep(self) -> Settings:
        """The settings without the place of the weights: paths of this machine do not travel, their hash does."""
        path = self.settings.checkpoint
        return self.settings if path is None else replace(self.settings, checkpoint=Path(path).name)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Go on from a checkpoint, with the settings it was made with."""
        if isinstance(filename_or_checkpoint, str):
            entry = read_checkpoint(filename_or_checkpoint).get(ENTRY)
            if entry is None:
                raise CheckpointError(
                    f"{filename_or_checkpoint} was not written by this trainer: resume it with the one that wrote it"
                )
            if not self.was_initialized:
                self.settings = self.settings.resumed_from(Settings.from_dict(entry["settings"]))
                self.record = {key: value for key, value in entry.items() if key != "settings"}
                self._follow_settings()
        super().load_checkpoint(filename_or_checkpoint)
