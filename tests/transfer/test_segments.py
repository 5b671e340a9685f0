"""Dice and cross-entropy of regions and classes, next to MONAI and torch; a teacher; what is not known counts not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from medmae.core.errors import UsageError
from medmae.find import find
from medmae.testing import example_batch
from medmae.transfer.building import build
from medmae.transfer.finetuned import Finetuned
from medmae.transfer.segments import LABEL, Segments
from medmae.transfer.task_folder import load_task, save_task

NAMES, VALUES = ["whole", "core"], [[1, 2, 4], [1, 4]]


def regions(**more) -> Segments:
    return Segments(names=NAMES, values=VALUES, **more)


def classes(**more) -> Segments:
    return Segments(names=["a", "b"], values=[[1], [3]], exclusive=True, **more)


def test_regions_against_monai_and_torch() -> None:
    from monai.losses.dice import DiceLoss

    label = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (2, 1, 6, 5, 4))]
    truth = torch.cat([label > 0, (label == 1) | (label == 4)], 1).float()
    scores = torch.randn(2, 2, 6, 5, 4)
    found = regions()(scores, {LABEL: label})
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(scores, truth)
    torch.testing.assert_close(found["dice"], dice / 2)
    torch.testing.assert_close(found["cross_entropy"], F.binary_cross_entropy_with_logits(scores, truth) / 2)


def test_classes_against_monai_and_torch() -> None:
    from monai.losses.dice import DiceLoss

    index = torch.randint(0, 3, (2, 1, 6, 5, 4))
    label = torch.tensor([0, 1, 3])[index]
    scores = torch.randn(2, 3, 6, 5, 4)
    found = classes(dice=0.3)(scores, {LABEL: label})
    dice = DiceLoss(
        softmax=True, to_onehot_y=True, include_background=False, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )(scores, index)
    torch.testing.assert_close(found["dice"], 0.3 * dice)
    torch.testing.assert_close(found["cross_entropy"], 0.7 * F.cross_entropy(scores, index[:, 0]))
    read = classes().read(scores)["probability"]
    torch.testing.assert_close(read, scores.softmax(1)[:, 1:])


def test_weights_change_what_counts() -> None:
    label = torch.tensor([0, 1, 2])[torch.randint(0, 3, (1, 1, 4, 4, 4))]
    scores = torch.randn(1, 2, 4, 4, 4)
    only = regions(weights=[0.0, 2.0])(scores, {LABEL: label})
    other = scores.clone()
    other[:, 0] += 3
    again = regions(weights=[0.0, 2.0])(other, {LABEL: label})
    assert only == again
    assert regions()(scores, {LABEL: label}) != regions()(other, {LABEL: label})


@pytest.mark.parametrize("objective", [regions, classes])
def test_an_empty_label_is_finite_and_has_a_gradient(objective) -> None:
    made = objective()
    scores = torch.zeros(1, made.outputs, 4, 4, 4, requires_grad=True)
    found = made(scores, {LABEL: torch.zeros(1, 1, 4, 4, 4, dtype=torch.long)})
    sum(found.values()).backward()
    assert all(bool(value.isfinite()) for value in found.values())
    assert bool(scores.grad.isfinite().all())
    assert float(scores.grad.abs().sum()) > 0


@pytest.mark.parametrize("objective", [regions, classes])
def test_what_is_not_known_counts_for_nothing(objective) -> None:
    made = objective(ignore=7)
    label = torch.randint(0, 2, (1, 1, 6, 4, 4))
    label[:, :, :2], label[:, :, 2] = -1, 7
    scores = torch.randn(1, made.outputs, 6, 4, 4)
    found = made(scores, {LABEL: label})
    other = scores.clone()
    other[:, :, :3] = 50.0
    assert found == made(other, {LABEL: label})
    alone = made(scores[:, :, 3:], {LABEL: label[:, :, 3:]})
    for name, value in found.items():
        torch.testing.assert_close(value, alone[name])
    nothing = made(scores, {LABEL: torch.full_like(label, -1)})
    assert all(bool(value.isfinite()) for value in nothing.values())


def test_scales_are_weighed_by_halves() -> None:
    made, label = regions(), torch.randint(0, 2, (1, 1, 8, 8, 8))
    fine, coarse = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 2, 4, 4, 4)
    both = made([fine, coarse], {LABEL: label})
    one, two = made(fine, {LABEL: label}), made(coarse, {LABEL: label[..., ::2, ::2, ::2]})
    for name, value in both.items():
        torch.testing.assert_close(value, (2 * one[name] + two[name]) / 3)


def test_scores_begin_at_the_prevalence() -> None:
    torch.testing.assert_close(regions(prevalence=[0.2, 0.01]).start().sigmoid(), torch.tensor([0.2, 0.01]))
    torch.testing.assert_close(classes(prevalence=[0.2, 0.01]).start().softmax(0), torch.tensor([0.79, 0.2, 0.01]))


@pytest.mark.parametrize(
    "wrong", [{"names": []}, {"values": [[1]]}, {"values": [[1], []]}, {"weights": [1.0]}, {"dice": 2.0}]
)
def test_lists_that_do_not_belong_together(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"name|weights|share"):
        Segments(**{"names": NAMES, "values": VALUES, **wrong})


# --- a teacher that sees everything -----------------------------------------------------------------------------------


def model(**more) -> Finetuned:
    torch.manual_seed(0)
    found = find("bm_mae")
    recipe = {
        "backbone": {"method": "bm_mae", "recipe": found.recipe(scale="test", depth=1), "layer": None},
        "head": {"kind": "decoder", "features": 4, "deep_supervision": True},
        "objective": {"kind": "segments", "names": NAMES, "values": VALUES},
        "modality_dropout": 1.0,
        **more,
    }
    made = build(recipe, method=found.build(**recipe["backbone"]["recipe"]))
    made.told = recipe
    return made


def batch_of(method: Finetuned) -> dict[str, torch.Tensor]:
    found = example_batch(method.backbone)
    label = (found[method.sequences[0]] > 0.5).long()
    return {**found, LABEL: label}


def disagreement(method: Finetuned, batch: dict[str, torch.Tensor]) -> float:
    """Mean distance between what is said of all sequences and of each alone."""
    method.eval()
    with torch.no_grad():
        whole = method.predict(batch)["probability"]
        parts = []
        for j in range(len(method.sequences)):
            present = torch.zeros(len(whole), len(method.sequences), dtype=torch.bool)
            present[:, j] = True
            parts.append(float((method.predict({**batch, "present": present})["probability"] - whole).abs().mean()))
    return sum(parts) / len(parts)


def trained(distill: float, *, steps: int = 40) -> tuple[Finetuned, dict[str, torch.Tensor]]:
    method = model(distill=distill, momentum=0.5)
    batch = batch_of(method)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        method.train()
        losses = method({**batch, "key": batch["key"] + 1000 * step})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.after_step()
    return method, batch


def test_a_teacher_is_frozen_and_seen_in_the_losses_only() -> None:
    method = model(distill=2.0).train()
    losses = method(batch_of(method))
    assert set(losses) == {"dice", "cross_entropy", "distillation"}
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert set(method.eval()(batch_of(method))) == {"dice", "cross_entropy"}
    with pytest.raises(UsageError, match="modality dropout"):
        model(distill=1.0, modality_dropout=0.0)


@pytest.mark.slow
def test_a_teacher_lowers_the_disagreement_between_subsets() -> None:
    without, with_teacher = (disagreement(*trained(weight)) for weight in (0.0, 20.0))
    assert with_teacher < 0.85 * without, (with_teacher, without)


def test_the_teacher_stays_out_of_the_folder(tmp_path: Path) -> None:
    method = model(distill=1.0)
    task = {"kind": "segment", "columns": {}, "classes": NAMES, "recipe": method.told}
    folder = save_task(tmp_path / "m", method, task=task)
    loaded = load_task(folder, kind="segment").method
    assert loaded.teacher is None
    batch = batch_of(method)
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(batch), method.eval().predict(batch))
    assert "whole, core" in (folder / "README.md").read_text()
