"""Tasks with contents of different widths in one row of tokens, and the losses of each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medmae.core.grid import Grid
from medmae.core.heterogeneous import Answer, Answers, Task, TaskGrid
from medmae.core.loss import class_map, l1, mse, sample_mean, spectrum_l1
from medmae.core.target import Content, Normalized

FULL = Grid((8, 12), (4, 4))
TASKS = (
    Task("rgb", Grid((8, 12), (4, 4), 3)),
    Task("labels", Grid((4, 6), (2, 2)), classes=5),
    Task("odd", Grid((8, 12), (4, 4), 2), entry="bands", channels=(4, 1)),
    Task("even", Grid((8, 12), (4, 4), 1), entry="bands", channels=(2,)),
)


def batch() -> dict[str, torch.Tensor]:
    return {
        "rgb": torch.randn(2, 3, 8, 12),
        "labels": torch.randint(0, 5, (2, 1, 4, 6)).float(),
        "bands": torch.randn(2, 6, 8, 12),
    }


def test_every_task_has_its_own_patches_then_zeros() -> None:
    tokenizer, data = TaskGrid(TASKS, grid=FULL), batch()
    content = tokenizer(data).content
    assert content.shape == (2, 24, 48)
    rgb, labels, odd, even = content.split(6, 1)
    assert torch.equal(rgb, TASKS[0].grid.patchify(data["rgb"]))
    assert torch.equal(labels[..., :4], TASKS[1].grid.patchify(data["labels"]))
    assert torch.equal(odd[..., :32], TASKS[2].grid.patchify(data["bands"][:, [4, 1]]))
    assert torch.equal(even[..., :16], FULL.patchify(data["bands"][:, [2]]))
    assert not bool(labels[..., 4:].any() | odd[..., 32:].any() | even[..., 16:].any())


def test_what_is_read_and_what_a_mark_on_tokens_means() -> None:
    tokenizer, data = TaskGrid(TASKS, grid=FULL), batch()
    assert tokenizer.entries == {"rgb": (3, 8, 12), "labels": (1, 4, 6), "bands": (5, 8, 12)}
    data["bands"] = data["bands"][:, :5]
    marks = torch.rand(2, 24) < 0.5
    held = tokenizer.voxels(marks)
    assert not bool(held["bands"][:, [0, 3]].any())
    for name, image in data.items():
        data[name] = image.masked_fill(~held[name], 0)
    content = tokenizer(data).content
    assert not bool(content[~marks].any())
    assert torch.equal(tokenizer.voxels(torch.ones_like(marks))["rgb"], torch.ones(2, 3, 8, 12, dtype=torch.bool))


def test_a_missing_entry_takes_all_of_its_tasks_along() -> None:
    tokenizer, data = TaskGrid(TASKS, grid=FULL), batch()
    data["present"] = torch.tensor([[True, True, False], [True, True, True]])
    data["bands"][0] = float("nan")
    tokens = tokenizer(data)
    there = tokens.layout.exists.view(2, 4, 6).all(-1).tolist()
    assert there == [[True, True, False, False], [True] * 4]
    assert bool(tokens.content.isfinite().all())
    without = {"rgb": data["rgb"], "labels": data["labels"], "present": torch.tensor([[True, True, False]] * 2)}
    assert not bool(tokenizer(without).layout.exists[:, 12:].any())
    with pytest.raises(KeyError, match="no 'bands'"):
        tokenizer({"rgb": data["rgb"], "labels": data["labels"]})


def test_numbers_and_dates_are_coordinates() -> None:
    numbered = TaskGrid(TASKS, grid=FULL, numbered=True)(batch()).layout.coords
    assert torch.equal(numbered[0, :, 2], torch.arange(4.0).repeat_interleave(6))
    dates = torch.randn(2, 4, 3)
    stamped = TaskGrid(TASKS, grid=FULL, stamped="time")
    coords = stamped(batch() | {"time": dates}).layout.coords
    assert torch.equal(coords[..., 2:], dates.repeat_interleave(6, 1))
    with pytest.raises(ValueError, match="no 'time'"):
        stamped(batch())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="other tasks into"):
        TaskGrid((*TASKS, Task("fine", Grid((8, 12), (2, 2)))), grid=FULL)
    with pytest.raises(ValueError, match="with 1 per pixel"):
        TaskGrid((Task("two", FULL, channels=(0, 1)),), grid=FULL)
    with pytest.raises(ValueError, match="named twice"):
        TaskGrid((TASKS[0], TASKS[0]), grid=FULL)
    with pytest.raises(ValueError, match="4 channels; odd reads"):
        TaskGrid(TASKS, grid=FULL)(batch() | {"bands": torch.randn(2, 4, 8, 12)})


def test_answers_stand_one_after_the_other() -> None:
    tokens = TaskGrid(TASKS, grid=FULL)(batch())
    asked = [
        Answer("rgb", 0, 48, 48, mse, Content()),
        Answer("rgb_normalized", 0, 48, 48, mse, Normalized()),
        Answer("labels", 1, 20, 4, class_map(5)),
        Answer("even", 3, 16, 16, l1),
    ]
    answers = Answers(TASKS, asked)
    assert (answers.width, answers.truth) == (96, 96)
    assert answers.columns[1] == (slice(48, 96), slice(48, 96))
    assert answers.columns[2] == (slice(0, 20), slice(0, 4))
    truth = answers(tokens)
    rgb = tokens.content[:, :6]
    assert torch.equal(truth[:, :6, :48], rgb)
    expected = (rgb - rgb.mean(-1, keepdim=True)) / (rgb.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(truth[:, :6, 48:], expected)
    assert not bool(truth[:, 12:18].any())  # nothing is asked of this task


def test_the_loss_of_class_maps_is_cross_entropy_without_void() -> None:
    logits, labels = torch.randn(2, 3, 4 * 5), torch.randint(0, 5, (2, 3, 4)).float()
    expected = F.cross_entropy(logits.view(-1, 5), labels.long().flatten(), reduction="none").view(2, 3, 4)
    torch.testing.assert_close(class_map(5)(logits, labels), expected.mean(-1))
    labels[0, 0, :2], labels[1, 2] = torch.tensor([-1.0, 7.0]), 255.0
    error = class_map(5)(logits, labels)
    torch.testing.assert_close(error[0, 0], expected[0, 0, 2:].mean())
    assert float(error[1, 2]) == 0


def test_the_mean_over_samples_leaves_out_those_without_tokens() -> None:
    values, weight = torch.tensor([[1.0, 3.0], [5.0, 9.0], [7.0, 7.0]]), torch.tensor([[1.0, 1], [1, 0], [0, 0]])
    assert float(sample_mean(values, weight)) == 3.5  # (2 + 5) / 2
    assert float(sample_mean(values, weight * 0)) == 0


@pytest.mark.parametrize("size", [(6, 10), (4, 6, 5)])
def test_the_spectrum_forgets_shifts_and_nothing_else(size: tuple[int, ...]) -> None:
    np = pytest.importorskip("numpy")
    image, other = torch.randn(2, 3, *size), torch.randn(2, 3, *size)
    axes = tuple(range(2, image.ndim))
    assert float(spectrum_l1(image, image).max()) == 0
    assert float(spectrum_l1(image, image.roll((2, 1), axes[:2])).max()) < 1e-5
    one, two = (np.abs(np.fft.fftn(x.double().numpy(), axes=axes, norm="ortho")) for x in (image, other))
    expected = torch.from_numpy(np.abs(one - two).mean(axes)).float()
    torch.testing.assert_close(spectrum_l1(image, other), expected, atol=1e-5, rtol=1e-5)
    assert float(spectrum_l1(image, other).min()) > 0.1
