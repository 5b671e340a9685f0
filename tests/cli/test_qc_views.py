"""Pictures of methods that know several channels, tasks, groups of bands, or predict some frames only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medmae.cli.qc_samples import montage, rows_of
from medmae.cli.qc_views import parts_of, plain_volumes, views
from medmae.find import find
from medmae.testing import example_batch

SMALL = {"size": (16, 16), "patch": (8, 8)}
CUBE = {"size": (16, 16, 16), "patch": (8, 8, 8)}


def build(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return find(name).build(scale="test", **options)


@pytest.mark.parametrize(
    ("name", "options", "names", "shape"),
    [
        ("ca_mae", SMALL, ["a", "b", "c"], (1, 16, 16)),
        ("satmae", {**SMALL, "groups": ((2, 0), (1,))}, ["group0: bands 2, 0", "group1: band 1"], (2, 16, 16)),
        ("mae_st", {}, ["video"], (3, 4, 32, 32)),
        ("videomae_v2", {}, ["video"], (3, 8, 32, 32)),
        ("audio_mae", {}, ["spectrogram"], (1, 64, 32)),
        ("multimae", {**CUBE, "sequences": ("t1n", "t2w")}, ["t1n", "t2w"], (1, 16, 16, 16)),
    ],
)
def test_views_lie_on_one_another(name: str, options: dict, names: list[str], shape: tuple[int, ...]) -> None:
    """What was visible is true, and a guess stands where something else was asked."""
    method = build(name, **options)
    seen = views(method, {n: v for n, v in example_batch(method).items() if n != "present"})
    assert [view.name for view in seen] == names
    for view in seen:
        assert view.truth.shape == view.visible.shape == view.pasted.shape
        shown = ~view.visible.isnan()
        assert torch.equal(view.visible[shown], view.truth[shown])
        assert bool((view.pasted[shown] == view.truth[shown]).all())
    assert tuple(seen[0].truth.shape[1:]) == shape
    assert any(bool((~view.pasted.isnan() & view.visible.isnan()).any()) for view in seen)


def test_frames_that_are_not_predicted_are_not_shown() -> None:
    method = build("mae_st")
    batch = example_batch(method)
    (view,) = views(method, batch)
    torch.testing.assert_close(view.truth, batch["video"][:, :, list(method.target.frames)])
    assert view.scaled


def test_a_perfect_guess_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of interleaved bands come back in their own order, labels as labels, depth in its own unit."""
    from medmae.core.tokens import take

    bands = build("satmae", **SMALL, groups=((2, 0), (1,)))
    monkeypatch.setattr(bands, "guess", lambda tokens, plan: take(bands.target(tokens), plan.target))
    image = torch.randn(2, 3, 16, 16)
    group, other = views(bands, {"image": image, "key": torch.arange(2)})
    torch.testing.assert_close(group.pasted, image[:, [2, 0]])
    torch.testing.assert_close(other.pasted, image[:, [1]])

    tasks = build("multimae", **SMALL)
    batch = example_batch(tasks)
    batch = {**batch, "semseg": torch.randint(0, 5, batch["semseg"].shape).float()}
    batch.pop("present", None)
    wide = tasks.target.width

    def perfect(tokens: Any, plan: Any) -> torch.Tensor:
        truth, task = take(tasks.target(tokens), plan.target), take(tokens.layout.modality, plan.target)
        guess = torch.nn.functional.pad(truth, (0, wide - truth.shape[-1]))
        label = tasks.tokenizer.tasks[2].grid.content
        logits = torch.nn.functional.one_hot(truth[..., :label].long().clamp(0, 4), 5).flatten(-2).float()
        logits = torch.nn.functional.pad(logits, (0, wide - logits.shape[-1]))
        return torch.where((task == 2)[..., None], logits, guess)

    monkeypatch.setattr(tasks, "guess", perfect)
    for view in views(tasks, batch):
        assert view.classes == (5 if view.name == "semseg" else 0)
        hidden = view.visible.isnan() & ~view.pasted.isnan()
        torch.testing.assert_close(view.pasted[hidden], view.truth[hidden])


def test_a_channel_that_is_missing_has_no_row() -> None:
    method = build("ca_mae", **SMALL)
    batch = {**example_batch(method), "present": torch.ones(3, 3, dtype=torch.bool), "key": torch.arange(3)}
    batch["present"][1, 0] = False
    seen = views(method, batch)
    rows = [[row.name for view in seen for row in rows_of(view, i, alone=False)] for i in range(2)]
    assert rows == [["a", "b", "c"], ["b", "c"]]


def test_a_montage_has_a_row_per_task_and_frames_of_a_clip() -> None:
    tasks, clip = build("multimae", **SMALL), build("videomae")
    rows = [row for view in views(tasks, example_batch(tasks)) for row in rows_of(view, 0, alone=False)]
    assert [(row.name, row.labels) for row in rows] == [("rgb", False), ("depth", False), ("semseg", True)]
    assert montage(rows, title="step 1").startswith(b"\x89PNG")
    (view,) = views(clip, example_batch(clip))
    rows = rows_of(view, 0, alone=True)
    assert len(rows) == 4
    assert all(np.nanmin(row.panels[0]) >= 0 and np.nanmax(row.panels[0]) <= 1 and row.scaled for row in rows)


def test_methods_without_pixels_have_no_views() -> None:
    cloud = build("point_mae")
    assert parts_of(cloud) == []
    assert views(cloud, {}) == []


def test_volumes_are_known_by_their_sequences() -> None:
    assert plain_volumes(build("ca_mae", **CUBE))
    assert plain_volumes(build("multimae", **CUBE, sequences=("t1n", "t2w")))
    assert not plain_volumes(build("multimae", **CUBE, sequences=("rgb", "depth")))
    assert not plain_volumes(build("ca_mae", **SMALL))
