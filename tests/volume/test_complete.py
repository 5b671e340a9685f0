"""Whole volumes from windows: what the windows may not leave behind, and what they may not see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medmae.core.errors import CheckpointError, UsageError
from medmae.core.tokens import MaskPlan
from medmae.find import find
from medmae.volume.complete import complete, cover, preview

NAMES = ("t1n", "t1c", "t2w", "t2f")


def model(**options: object):
    torch.manual_seed(0)
    return find("bm_mae").build(scale="test", **options).eval()


def volumes(*size: int, names: tuple[str, ...] = NAMES, b: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(b, 1, *size, generator=generator) for name in names}


def blocky(method: nn.Module) -> nn.Module:
    """The worst case: every patch is one constant, unrelated to its neighbors."""
    head = method.decoder.inner.head
    with torch.no_grad():
        head.weight.copy_(
            torch.randn(1, head.in_features, generator=torch.Generator().manual_seed(3)).expand_as(head.weight)
        )
        head.bias.zero_()
    return method


def seam_ratio(volume: Tensor, *, patch: int, start: int) -> float:
    """Mean squared gradient across one patch lattice over that at all other voxels, averaged over axes."""
    ratios = []
    for axis in range(volume.ndim):
        step = volume.diff(dim=axis).square().transpose(0, axis).flatten(1).mean(1)
        border = (torch.arange(1, len(step) + 1) - start) % patch == 0
        ratios.append(float(step[border].mean() / step[~border].mean().clamp_min(1e-12)))
    return sum(ratios) / len(ratios)


def worst_seam(volume: Tensor, *, patch: int, size: int, overlap: float) -> float:
    """The larger seam ratio of the two lattices on which patches of some window meet."""
    before = cover(len(volume), size=size, patch=patch, overlap=overlap).before
    return max(seam_ratio(volume, patch=patch, start=start - before) for start in (0, patch // 2))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("size", "patch"), [(32, 8), (32, 32), (15, 5), (8, 1), (12, 6), (96, 16)])
def test_weights_sum_to_one_and_cover_everything(size: int, patch: int, overlap: float) -> None:
    for length in (1, 3, size - 1, size, size + 1, size + patch // 2 + 1, 2 * size - 1, 3 * size + 5):
        axis = cover(length, size=size, patch=patch, overlap=overlap)
        total = torch.zeros(axis.length)
        for start, weight in zip(axis.starts, axis.weights, strict=True):
            assert start + size <= axis.length
            total[start : start + size] += weight
        torch.testing.assert_close(total, torch.ones(axis.length))
        assert axis.before >= 0
        assert axis.before + length <= axis.length


@pytest.mark.parametrize("length", [20, 32, 33, 37, 45, 60, 64, 100])
def test_no_patch_border_inside_the_volume_has_weight_of_its_own(length: int) -> None:
    """Where one estimate breaks, it has no weight: the break it leaves is its share of the weight, nearly zero."""
    size, patch = 32, 8
    axis = cover(length, size=size, patch=patch)
    share = torch.zeros(axis.length + 1)  # weight of estimates that begin a patch at this voxel
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        for border in range(0, size, patch):
            share[start + border] += weight[border]
    inside = share[axis.before + 1 : axis.before + length]
    assert float(inside.max()) < 0.12
    unshifted = cover(length, size=size, patch=patch, overlap=0.25)
    full = torch.zeros(unshifted.length + 1)
    for start, weight in zip(unshifted.starts, unshifted.weights, strict=True):
        full[start : start + size : patch] += weight[::patch]
    assert float(full.max()) > 0.99  # the check sees seams where there are some


def test_overlap_gives_the_number_of_windows_it_promises() -> None:
    assert len(cover(96, size=96, patch=16, overlap=0.0).starts) == 1
    assert len(cover(96, size=96, patch=16, overlap=0.5).starts) == 2
    assert len(cover(104, size=96, patch=16, overlap=0.5).starts) == 2
    assert len(cover(192, size=96, patch=16, overlap=0.0).starts) == 2
    assert len(cover(192, size=96, patch=16, overlap=0.5).starts) == 4
    assert len(cover(192, size=96, patch=16, overlap=0.75).starts) > 4
    with pytest.raises(UsageError, match="overlap"):
        cover(96, size=96, patch=16, overlap=1.0)


def test_patch_and_window_seams_vanish() -> None:
    method = blocky(model(sequences=("t1n", "t1c"), detail=True))
    batch = volumes(48, 48, 48, names=("t1n",))
    for overlap, low, high in (
        (0.5, 0.0, 1.05),
        (0.8, 0.0, 1.05),
        (0.25, 20.0, float("inf")),
        (0.0, 20.0, float("inf")),
    ):
        volume = complete(method, batch, ["t1c"], overlap=overlap, batch_size=8)["t1c"][0, 0]
        ratio = worst_seam(volume, patch=8, size=32, overlap=overlap)
        assert low <= ratio < high, (overlap, ratio)  # blending windows alone leaves the patches


def test_a_constant_answer_stays_constant() -> None:
    method = model()
    with torch.no_grad():
        method.decoder.inner.head.weight.zero_()
        method.decoder.inner.head.bias.fill_(3.0)
    out = complete(method, volumes(37, 45, 20, names=("t2w",)), ["t1c"], batch_size=8)["t1c"]
    assert out.shape == (1, 1, 37, 45, 20)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


def test_one_window_without_blending_is_the_plain_forward_pass() -> None:
    method, batch = model(), volumes(32, 32, 32)
    n = method.tokenizer.grid.length
    ids = torch.arange(4 * n)[None]
    plan = MaskPlan(torch.cat([ids[:, :n], ids[:, 2 * n :]], 1), ids[:, n : 2 * n])
    expected = method.tokenizer.grid.unpatchify(method.guess(method.tokenizer(batch), plan))
    torch.testing.assert_close(complete(method, batch, ["t1c"], overlap=0.0)["t1c"], expected)


def test_the_truth_of_a_target_is_never_seen() -> None:
    method, batch = model(), volumes(40, 32, 32)
    changed = batch | {"t1c": torch.full_like(batch["t1c"], 1e6)}
    without = {name: image for name, image in batch.items() if name != "t1c"}
    expected = complete(method, batch, ["t1c"], batch_size=4)["t1c"]
    for other in (changed, without):
        assert torch.equal(complete(method, other, ["t1c"], batch_size=4)["t1c"], expected)


def test_missing_sequences_stay_missing_and_samples_do_not_meet() -> None:
    method, batch = model(), volumes(32, 36, 32, b=2)
    present = torch.tensor([[True, True, False, False], [True, False, True, True]])
    both = complete(method, batch | {"present": present}, ["t1c"], batch_size=3)["t1c"]
    first = complete(method, {"t1n": batch["t1n"][:1]}, ["t1c"])["t1c"]
    second = complete(method, {k: batch[k][1:] for k in ("t1n", "t2w", "t2f")}, ["t1c"])["t1c"]
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-4, atol=1e-5)
    noisy = batch | {"t2f": batch["t2f"] + torch.tensor([1e3, 0.0])[:, None, None, None, None]}
    assert torch.equal(complete(method, noisy | {"present": present}, ["t1c"], batch_size=3)["t1c"], both)


def test_several_targets_at_once_and_the_mode_is_put_back() -> None:
    method = model().train()
    out = complete(method, volumes(32, 32, 32, names=("t1n",)), ["t2f", "t1c"])
    assert list(out) == ["t2f", "t1c"]
    assert method.training
    assert not torch.allclose(out["t2f"], out["t1c"])


def test_background_windows_are_left_out_without_touching_the_foreground() -> None:
    method, batch = model(), volumes(80, 32, 32, names=("t1n",))
    foreground = torch.zeros(1, 1, 80, 32, 32)
    foreground[:, :, 3:12] = 1
    some = complete(method, batch | {"foreground": foreground}, ["t1c"], batch_size=4)["t1c"]
    every = complete(method, batch | {"foreground": foreground}, ["t1c"], batch_size=4, everywhere=True)["t1c"]
    torch.testing.assert_close(some[:, :, 3:12], every[:, :, 3:12])
    assert bool((some[:, :, 70:] == 0).all())
    assert not bool((every[:, :, 70:] == 0).all())


def test_coordinates_in_millimeters_need_no_other_code() -> None:
    method, batch = model(coords="mm"), volumes(36, 32, 32, names=("t1n",))
    near = complete(method, batch | {"spacing": torch.ones(1, 3)}, ["t1c"])["t1c"]
    far = complete(method, batch | {"spacing": 3 * torch.ones(1, 3)}, ["t1c"])["t1c"]
    assert not torch.allclose(near, far)


def test_what_cannot_be_meant_is_said() -> None:
    method, batch = model(), volumes(32, 32, 32, names=("t1n",))
    with pytest.raises(UsageError, match=r"t1cc.*did you mean t1c"):
        complete(method, batch, ["t1cc"])
    with pytest.raises(UsageError, match="twice"):
        complete(method, batch, ["t1c", "t1c"])
    with pytest.raises(UsageError, match="no target"):
        complete(method, batch, [])
    with pytest.raises(UsageError, match="sample 0 has no sequence"):
        complete(method, batch, ["t1n"])
    with pytest.raises(UsageError, match="one shape"):
        complete(method, batch | volumes(32, 32, 30, names=("t2w",)), ["t1c"])
    with pytest.raises(CheckpointError, match="normalize_target"):
        complete(model(normalize_target=True), batch, ["t1c"])


def test_preview_shows_what_was_visible_and_never_the_hidden_patch() -> None:
    method, batch = model(), volumes(32, 32, 32) | {"key": torch.tensor([5])}
    plan = method.plan(batch)
    shown = preview(method, batch, plan)
    for name in NAMES:
        torch.testing.assert_close(shown.truth[name], batch[name])
        hidden = shown.asked[name] > 0
        assert bool((shown.visible[name][hidden] == 0).all())
        torch.testing.assert_close(shown.pasted[name][~hidden], batch[name][~hidden])
    noisy = {name: torch.where(shown.asked[name] > 0, 1e4, batch[name]) for name in NAMES}
    again = preview(method, batch | noisy, plan)
    for name in NAMES:
        assert torch.equal(again.pasted[name], shown.pasted[name])


@pytest.mark.slow
def test_seams_of_a_trained_model_vanish() -> None:
    """A little training on smooth images: patches meet badly in one cover, and not at all in the blend."""
    method = model(sequences=("t1n", "t1c"), detail=False, complete=1.0, drop=0.0)
    optimizer = torch.optim.AdamW(method.train().parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)

    def smooth(n: int, *, b: int, sigma: float = 6.0) -> dict[str, Tensor]:
        frequency = torch.fft.fftfreq(n).square()
        low = torch.exp(-2 * (torch.pi * sigma) ** 2 * (frequency[:, None, None] + frequency[:, None] + frequency))
        noise = torch.fft.fftn(torch.randn(b, 1, n, n, n, generator=generator), dim=(2, 3, 4))
        image = torch.fft.ifftn(noise * low, dim=(2, 3, 4)).real
        image = image / image.std()
        return {"t1n": image, "t1c": 1 - image}

    for step in range(400):
        loss = method(smooth(32, b=2) | {"key": torch.arange(2) + 2 * step})["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = smooth(48, b=1)
    ratios = {}
    for overlap in (0.0, 0.5):
        volume = complete(method, batch, ["t1c"], overlap=overlap, batch_size=8)["t1c"][0, 0]
        ratios[overlap] = worst_seam(volume, patch=8, size=32, overlap=overlap)
    assert ratios[0.5] < 1.2, ratios
    assert ratios[0.0] > 2, ratios
