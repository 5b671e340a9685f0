"""From unlabeled volumes to segmentations through nnU-Net: its own commands, the medmae trainer, and a ViT.

Everything is tiny and runs on the CPU. nnU-Net works in this process, except where the point is that medmae is not
there: those predictions are made by a process in which importing medmae fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medmae.cli import main
from medmae.transfer.nnunet.folders import KINDS, variable

pytest.importorskip("nnunetv2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DATASET, PLANS = "Dataset901_Tiny", "nnUNetResEncUNetMPlans"
SIZE = (44, 42, 40)
CHANNELS = ("T1", "T2-FLAIR")
RATE = ("--modality-dropout", 0.5, "--learning-rate", 0.01)
LENGTHS = ("--iterations", "12", "--validation-iterations", "1", "--device", "cpu", "--workers", "0")

# What a user without medmae has: torch and nnU-Net. The first lines are for a CPU build of torch beside a CUDA build of
# torchvision, which does not import otherwise; the refusal to import medmae stands for a machine that does not have it.
WITHOUT_MEDMAE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "medmae":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.set_num_threads(1)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

if __name__ == "__main__":
    model, images, out = sys.argv[1:]
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(images, out)
    assert not any(name.partition(".")[0] == "medmae" for name in sys.modules)
"""


def write_dataset(raw: Path, *, cases: int = 4, tests: int = 2) -> Path:
    """Noisy bodies with a bright ball in them, whose core is bright in the second channel only."""
    folder = raw / DATASET
    draw = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"), -1)
    body = np.linalg.norm((grid - np.array(SIZE) / 2) / np.array(SIZE), axis=-1) < 0.48
    for i in range(cases + tests):
        part = "Tr" if i < cases else "Ts"
        distance = np.linalg.norm(grid - draw.uniform(15, 27, 3), axis=-1)
        label = ((distance < 10).astype(np.uint8) + (distance < 6)) * body
        for k in range(len(CHANNELS)):
            image = 100 + 15 * draw.standard_normal(SIZE) + (90 * (label > 0) if k == 0 else 90 * (label > 1))
            save(folder / f"images{part}" / f"case{i}_{k:04d}.nii.gz", (image * body).astype(np.float32))
        save(folder / f"labels{part}" / f"case{i}.nii.gz", label.astype(np.uint8))
    about = {
        "channel_names": {str(k): name for k, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "edema": 1, "core": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def dice(raw: Path, out: Path) -> float:
    """Mean over the test cases of the Dice of everything that is not background."""
    values = []
    for path in sorted((raw / "labelsTs").glob("*.nii.gz")):
        truth, guess = (np.asarray(nib.load(file).dataobj) > 0 for file in (path, out / path.name))
        assert truth.shape == guess.shape
        values.append(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
    assert len(values) == 2
    return float(np.mean(values))


class World:
    """The folders of the test, and the command line in them."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw = root, root / "nnUNet_raw" / DATASET
        self.preprocessed, self.results = root / "nnUNet_preprocessed" / DATASET, root / "nnUNet_results" / DATASET

    def medmae(self, *arguments: object) -> None:
        line = [str(argument) for argument in arguments]
        if line[0] == "nnunet":
            line += ["--nnunet-root", str(self.root)]
        assert main(line) == 0, line

    def train(self, *arguments: object) -> None:
        self.medmae("nnunet", "train", DATASET, *LENGTHS, *arguments)

    def model(self, *, trainer: str = "MedMAETrainer", plans: str = PLANS) -> Path:
        return self.results / f"{trainer}__{plans}__3d_fullres"

    def without_medmae(self, model: Path, name: str) -> float:
        """Predict the test cases in a process that cannot import medmae, and score them."""
        script, out = self.root / "predict.py", self.root / name
        script.write_text(WITHOUT_MEDMAE)
        out.mkdir()
        line = [sys.executable, "-I", str(script), str(model), str(self.raw / "imagesTs"), str(out)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
        return dice(self.raw, out)

    def with_one_missing(self, model: Path, name: str) -> float:
        """Predict where one test case lacks its second channel, and score."""
        images, out = self.root / f"{name}_images", self.root / name
        shutil.copytree(self.raw / "imagesTs", images)
        (images / "case5_0001.nii.gz").unlink()
        self.medmae(
            "nnunet", "predict", model, "-i", images, "-o", out, "--device", "cpu", "--workers", 0, "--no-mirror"
        )
        record = json.loads((out / "presence.json").read_text())
        assert record["cases"] == {"case4": ["t1n", "t2f"], "case5": ["t1n"]}
        return dice(self.raw, out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A planned data set whose plan was made small, and a pre-trained CNN and ViT."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*map(variable, KINDS), "nnUNet_extTrainer"):
            patch.delenv(name, raising=False)
        found = World(tmp_path_factory.mktemp("nnunet"))
        write_dataset(found.root / "nnUNet_raw")
        found.medmae("nnunet", "plan", 901, "--workers", 0)
        path = found.preprocessed / f"{PLANS}.json"
        plans = json.loads(path.read_text())
        values = plans["configurations"]["3d_fullres"]
        values |= {"patch_size": [32, 32, 32], "batch_size": 2}
        values["architecture"]["arch_kwargs"] |= {
            "n_stages": 3,
            "features_per_stage": [8, 16, 24],
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
        }
        path.write_text(json.dumps(plans))
        common = ("--data", found.raw, "--steps", 3, "--device", "cpu", "--workers", 0)
        found.medmae("pretrain", *common, "--method", "resenc_mae", "--plans", path, "--out", found.root / "cnn")
        found.medmae("pretrain", *common, "--method", "bm_mae", "--scale", "test", "--out", found.root / "vit")
        yield found


def test_stock_nnunet_trains_from_the_exported_file(world: World) -> None:
    file = world.root / "weights.pth"
    world.medmae("nnunet", "export", world.root / "cnn", "--dataset", 901, "--plans", PLANS, "--out", file)

    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    from medmae.transfer.nnunet.pools import workers

    with workers(0):
        trainer = get_trainer_from_args(DATASET, "3d_fullres", 0, "nnUNetTrainer", PLANS, device=torch.device("cpu"))
        assert type(trainer).__module__.startswith("nnunetv2.")
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 20, 1
        maybe_load_checkpoint(trainer, False, False, str(file))
        exported = torch.load(file, weights_only=True)["network_weights"]
        state = trainer.network.state_dict()
        assert all(torch.equal(state[key], exported[key]) for key in state if ".seg_layers." not in key)
        trainer.run_training()
    assert world.without_medmae(world.model(trainer="nnUNetTrainer"), "stock") > 0.5


def test_the_trainer_makes_an_ordinary_nnunet_model(world: World) -> None:
    user = (world.preprocessed / f"{PLANS}.json").read_bytes()
    world.train("--checkpoint", world.root / "cnn", "--epochs", 4, *RATE)
    summary = json.loads((world.model() / "fold_0" / "validation" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] > 0.3
    assert (world.preprocessed / f"{PLANS}.json").read_bytes() == user
    checkpoint = torch.load(world.model() / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["medmae"]["report"]["share"] == 1.0
    assert checkpoint["medmae"]["settings"]["schedule"] == "sawtooth"
    assert len(checkpoint["medmae"]["sha256"]) == 64
    assert world.without_medmae(world.model(), "isolated") > 0.5
    assert 0.3 < world.with_one_missing(world.model(), "one_missing") < 1


def test_resuming_does_not_load_the_weights_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmae.transfer.nnunet import trainer

    monkeypatch.setattr(trainer, "read_source", lambda path: pytest.fail(f"{path} was read again"))
    before = torch.load(world.model() / "fold_0" / "checkpoint_final.pth", weights_only=False)
    world.train("--resume", "--no-validate", "--epochs", 5, "--schedule", "sawtooth")
    after = torch.load(world.model() / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert (before["current_epoch"], after["current_epoch"]) == (4, 5)
    assert after["medmae"]["sha256"] == before["medmae"]["sha256"]
    assert after["medmae"]["settings"]["modality_dropout"] == 0.5
    assert after["logging"]["train_losses"][:4] == before["logging"]["train_losses"]


def test_a_vit_trains_and_predicts(world: World) -> None:
    user = (world.preprocessed / f"{PLANS}.json").read_bytes()
    world.train("--checkpoint", world.root / "vit", "--no-validate", "--iterations", 8, "--epochs", 2, *RATE)
    assert (world.preprocessed / f"{PLANS}.json").read_bytes() == user
    (plans,) = (path.stem for path in world.preprocessed.glob(f"{PLANS}_bm_mae_*.json"))
    checkpoint = torch.load(world.model(plans=plans) / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["medmae"]["settings"]["schedule"] == "warmup"
    assert checkpoint["medmae"]["report"]["scope"] == "encoder"
    assert 0 < world.with_one_missing(world.model(plans=plans), "vit_one_missing") < 1
