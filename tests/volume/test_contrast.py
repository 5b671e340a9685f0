"""SimCLR and BYOL: known losses, patients with missing sequences, and weights that fit nnU-Net's network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.core.errors import MissingDependency, UsageError
from medmae.find import find
from medmae.nets.build import resenc
from medmae.testing import example_batch, mixed_batch

BOTH = ("simclr", "byol")


def embeddings(method, batch) -> list[Tensor]:
    if hasattr(method, "see"):
        views = [method.see(batch, view=view) for view in (0, 1)]
        return [method.predictor(method.embed(view, method.encoder, method.projector)) for view in views]
    return [method.embed(batch, view=view) for view in (0, 1)]


def build(name: str, **options: object):
    torch.manual_seed(0)
    return find(name).build(scale="test", **options).eval()


@pytest.mark.parametrize("stem", ["stacked", "per_modality"])
@pytest.mark.parametrize("name", BOTH)
@torch.no_grad()
def test_a_patient_is_embedded_the_same_alone_and_in_any_batch(name: str, stem: str) -> None:
    method = build(name, stem=stem)
    batch = mixed_batch(method)
    together = embeddings(method, batch)
    for row in range(3):
        mine = {key: value[row : row + 1] for key, value in batch.items()}
        if bool(mine["present"].all()):
            mine.pop("present")
        for whole, alone in zip(together, embeddings(method, mine), strict=True):
            torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("stem", ["stacked", "per_modality"])
@pytest.mark.parametrize("name", BOTH)
@torch.no_grad()
def test_voxels_of_missing_sequences_do_not_matter(name: str, stem: str) -> None:
    method = build(name, stem=stem)
    batch = mixed_batch(method)
    filled = dict(batch)
    for column, sequence in enumerate(method.sequences):
        has = batch["present"][:, column].reshape(-1, 1, 1, 1, 1)
        filled[sequence] = torch.where(has, batch[sequence], torch.full_like(batch[sequence], torch.nan))
    before, after = method(batch), method(filled)
    assert all(torch.equal(before[key], after[key]) for key in before)
    gone = example_batch(method, lacking=[(1,)] * 3)
    left_out = {key: value for key, value in gone.items() if key != method.sequences[1]}
    here, absent = method(gone), method(left_out)
    assert all(torch.equal(here[key], absent[key]) for key in here)


@pytest.mark.parametrize("name", BOTH)
def test_a_missing_sequence_does_not_even_pass_its_stem_on(name: str) -> None:
    method = build(name, stem="per_modality", drop=0.0)
    batch = example_batch(method, samples=2, lacking=((1,), (1,)))
    sum(part.sum() for part in embeddings(method, batch)).backward()
    touched = {
        sequence: any(p.grad is not None and bool((p.grad != 0).any()) for p in stem.parameters())
        for sequence, stem in method.encoder.stems.each.items()
    }
    assert touched == {sequence: sequence != method.sequences[1] for sequence in method.sequences}


@torch.no_grad()
def test_the_contrast_is_the_cross_entropy_over_all_pairs() -> None:
    """Against the formula written out (SimCLR, equation 1)."""
    method = build("simclr", temperature=0.2)
    batch = example_batch(method, samples=4)
    z = F.normalize(torch.cat([method.embed(batch, view=view) for view in (0, 1)]).double(), dim=1)
    like = (z @ z.T / 0.2).exp()
    total = 0.0
    for i in range(8):
        others = sum(float(like[i, k]) for k in range(8) if k != i)
        total -= math.log(float(like[i, (i + 4) % 8]) / others)
    assert float(method(batch)["contrast"]) == pytest.approx(total / 8, rel=1e-5)


@torch.no_grad()
def test_the_distance_is_that_of_unit_vectors_both_ways() -> None:
    method = build("byol")
    for part in (method.encoder, method.projector):
        for parameter in part.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    batch = example_batch(method)
    views = [method.see(batch, view=view) for view in (0, 1)]
    guesses = [method.predictor(method.embed(view, method.encoder, method.projector)) for view in views]
    truths = [method.embed(view, method.target.teacher, method.target.projector) for view in views]
    expected = sum(
        (F.normalize(guess, dim=1) - F.normalize(truth, dim=1)).square().sum(1).mean()
        for guess, truth in zip(guesses, truths[::-1], strict=True)
    )
    torch.testing.assert_close(method(batch)["distance"], expected)


@pytest.mark.parametrize("name", BOTH)
def test_the_encoder_has_the_keys_and_the_answers_of_nnunets(name: str) -> None:
    found = find(name)
    recipe = found.recipe(scale="test")
    method = build(name)
    kept = {key: recipe[key] for key in ("features", "blocks", "kernels", "strides")}
    stock = resenc(**kept, decoder_convs=(1, 1)).build(input_channels=4, num_classes=2)
    own = {f"encoder.{key}": value for key, value in method.encoder.state_dict().items()}
    wanted = {key for key in stock.state_dict() if key.startswith("encoder.")}
    assert set(own) == wanted
    assert set(own) <= set(method.state_dict())
    stock.load_state_dict(own, strict=False)
    image = torch.randn(2, 4, *recipe["size"])
    shown = torch.ones(2, 4, 1, dtype=torch.bool)
    for mine, theirs in zip(method.encoder.features(image, shown), stock.encoder(image), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_batch_of_one_has_nothing_to_tell_apart() -> None:
    method = build("simclr")
    with pytest.raises(UsageError, match="at least 2"):
        method.check_training(batch=1, world=1)
    method.check_training(batch=1, world=2)
    method.check_training(batch=2, world=1)
    with pytest.raises(UsageError, match="at least 2"):
        build("simclr", gather=False).check_training(batch=1, world=2)
    build("byol").check_training(batch=1, world=1)
    assert float(method(example_batch(method, samples=1))["contrast"].detach()) == 0


def test_weights_are_usable_without_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependency("pip install 'medmae[contrastive]'")

    for name in BOTH:
        monkeypatch.setattr(f"medmae.volume.{name}.lightly_losses", missing)
        method = build(name)
        embeddings(method, example_batch(method))
        with pytest.raises(MissingDependency):
            method.check_training(batch=4, world=1)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"zoom": (0.5, 1.5)}, {"size": (18, 16, 16)}])
def test_recipes_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        build("simclr", **wrong)


GATHER = """
import json, os, sys, torch
import torch.distributed as dist
from medmae.find import find
from medmae.testing import example_batch
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
method = find("simclr").build(scale="test").train()
wrapped = torch.nn.parallel.DistributedDataParallel(method)
rank = dist.get_rank()
batch = {k: v[2 * rank : 2 * rank + 2] for k, v in example_batch(method, samples=4).items()}
loss = wrapped(batch)["contrast"]
loss.backward()
mean = loss.detach().clone()
dist.all_reduce(mean)
if rank == 0:
    torch.save({"loss": mean / 2, **{n: p.grad for n, p in method.named_parameters()}}, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    (tmp_path / "gather.py").write_text(GATHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = subprocess.run(
        [*command, str(tmp_path / "gather.py"), str(tmp_path / "out.pt")],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    method = build("simclr").train()
    loss = method(example_batch(method, samples=4))["contrast"]
    loss.backward()
    torch.testing.assert_close(found.pop("loss"), loss.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_recipes_are_json(tmp_path: Path) -> None:
    for name in BOTH:
        assert json.loads(json.dumps(find(name).recipe())) == find(name).recipe()
