"""What the device does to a batch, held against MONAI's transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmae.core.errors import UsageError
from medmae.core.random import mix
from medmae.data.artifacts import KINDS, Artifacts, apply_artifacts
from medmae.data.augment import (
    Augmentation,
    AugmentationDraws,
    adjust_contrast,
    draw_augmentation,
    finish_batch,
    flip,
    normalize,
)

SEQUENCES = ("t1n", "t1c", "t2w")


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([mix(seed, i) for i in range(n)])


def make_batch(b: int = 3, *, size: tuple[int, int, int] = (10, 12, 8)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    volumes = torch.randint(-300, 2000, (b, 3, *size), generator=generator).short()
    foreground = (torch.rand(b, 1, *size, generator=generator) < 0.6).to(torch.uint8)
    row = torch.tensor([[1.0, 0.0, 820.0, 410.0], [0.02, 31.0, 40.0, 9.0], [1.0, 0.0, -20.0, 55.5]])
    calibration = row.expand(b, 3, 4).clone()
    calibration[1, 2] = 0  # the second case lacks the third sequence
    volumes[1, 2] = 0
    return {
        "volumes": volumes,
        "foreground": foreground,
        "calibration": calibration,
        "present": calibration[..., 3] != 0,
        "key": keys(b),
        "spacing": torch.ones(b, 3),
        "index": torch.arange(b),
    }


def units(batch: dict[str, torch.Tensor], i: int, m: int) -> np.ndarray:
    slope, inter = batch["calibration"][i, m, :2].tolist()
    return batch["volumes"][i, m].numpy().astype(np.float32) * np.float32(slope) + np.float32(inter)


def fixed(b: int, m: int, **changes: torch.Tensor) -> AugmentationDraws:
    plain = {
        "flips": torch.zeros(b, 3, dtype=torch.bool),
        "factor": torch.ones(b, m),
        "offset": torch.zeros(b, m),
        "gamma": torch.ones(b, m),
        "noise": torch.zeros(b, m),
        "key": keys(b),
    }
    return AugmentationDraws(**{**plain, **changes})


def test_zscore_scale_and_shift_are_monais():
    from monai.transforms import NormalizeIntensity, ScaleIntensity, ShiftIntensity

    batch = make_batch()
    factor, offset = torch.linspace(0.9, 1.1, 9).view(3, 3), torch.linspace(-0.1, 0.1, 9).view(3, 3)
    draws = fixed(3, 3, factor=factor, offset=offset)
    done = normalize(batch["volumes"], batch["foreground"].bool(), batch["calibration"], draws)
    for i, m in [(0, 0), (0, 1), (1, 1), (2, 2)]:
        mean, std = batch["calibration"][i, m, 2:].tolist()
        value = NormalizeIntensity(subtrahend=mean, divisor=std)(units(batch, i, m))
        value = ScaleIntensity(minv=None, maxv=None, factor=float(factor[i, m]) - 1)(value)
        value = ShiftIntensity(offset=float(offset[i, m]))(value)
        truth = np.where(batch["foreground"][i, 0].numpy(), np.asarray(value), 0)
        assert np.allclose(done[i, m].numpy(), truth, atol=2e-6, rtol=1e-6)


def test_contrast_is_monais_on_the_foreground():
    from monai.transforms import AdjustContrast

    batch = make_batch()
    inside = batch["foreground"].bool()
    values = normalize(batch["volumes"], inside, batch["calibration"])
    gamma = torch.tensor([[0.7, 1.0, 1.4]]).expand(3, 3).contiguous()
    bent = adjust_contrast(values, inside, gamma)
    for m in range(2):
        truth = AdjustContrast(float(gamma[0, m]))(values[0, m][inside[0, 0]][None])
        assert torch.allclose(bent[0, m][inside[0, 0]], torch.as_tensor(truth)[0], atol=2e-5)
    assert torch.equal(bent[:, 1], values[:, 1])


def test_flips_are_monais_and_shared_by_everything():
    from monai.transforms import Flip

    batch = {**make_batch(), "label": torch.randint(0, 4, (3, 1, 10, 12, 8)).short()}
    flips = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    done = finish_batch(batch, sequences=SEQUENCES, device="cpu", draws=fixed(3, 3, flips=flips))
    plain = finish_batch(batch, sequences=SEQUENCES, device="cpu", draws=None)
    for name in (*SEQUENCES, "foreground", "label"):
        for i, axes in ((0, (0, 2)), (1, ()), (2, (1,))):
            truth = Flip(spatial_axis=axes)(plain[name][i].float()) if axes else plain[name][i].float()
            assert torch.equal(done[name][i].float(), torch.as_tensor(truth)), name


def test_the_background_is_zero_whatever_is_drawn():
    batch = make_batch()
    settings = Augmentation(gamma=1.5, gamma_probability=1.0, noise=0.3, noise_probability=1.0, per_sequence=True)
    draws = draw_augmentation(batch["key"], settings, sequences=3)
    done = finish_batch(batch, sequences=SEQUENCES, device="cpu", draws=draws)
    for name in SEQUENCES:
        assert (done[name][~done["foreground"]] == 0).all()
        assert torch.isfinite(done[name]).all()
    assert (done["t2w"][1] == 0).all()  # absent
    assert done["present"].tolist() == [[True] * 3, [True, True, False], [True] * 3]


def test_what_a_method_gets():
    batch = make_batch()
    done = finish_batch(batch, sequences=SEQUENCES, device="cpu", draws=None)
    assert set(done) == {*SEQUENCES, "foreground", "present", "key", "spacing", "index"}
    assert done["t1n"].shape == (3, 1, 10, 12, 8)
    assert done["t1n"].dtype == torch.float32
    assert done["foreground"].dtype == torch.bool
    whole = {name: value[::2] for name, value in batch.items()}
    assert "present" not in finish_batch(whole, sequences=SEQUENCES, device="cpu", draws=None)


def test_rows_share_a_crop():
    batch = make_batch()
    row = torch.tensor([0, 0, 2, 1])
    many = {name: value[row] for name, value in batch.items()}
    shared = {**many, "volumes": batch["volumes"], "foreground": batch["foreground"], "row": row}
    draws = draw_augmentation(keys(4, seed=5), Augmentation(), sequences=3)
    one = finish_batch(many, sequences=SEQUENCES, device="cpu", draws=draws)
    two = finish_batch(shared, sequences=SEQUENCES, device="cpu", draws=draws)
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(two["t1n"][0], two["t1n"][1])


def test_a_sample_is_treated_the_same_in_any_batch():
    batch = make_batch()
    settings = Augmentation(gamma=1.5, noise=0.2, noise_probability=1.0)
    whole = finish_batch(
        batch, sequences=SEQUENCES, device="cpu", draws=draw_augmentation(batch["key"], settings, sequences=3)
    )
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        alone = finish_batch(
            one, sequences=SEQUENCES, device="cpu", draws=draw_augmentation(one["key"], settings, sequences=3)
        )
        for name in SEQUENCES:
            assert torch.equal(alone[name][0], whole[name][i])


def test_draws_follow_their_law():
    settings = Augmentation(flip=(0.5, 0.0, 1.0), scale=0.1, shift=0.2, gamma=2.0, gamma_probability=0.3, noise=0.5)
    draws = draw_augmentation(keys(4000), settings, sequences=2)
    rate = draws.flips.float().mean(0)
    assert abs(rate[0] - 0.5) < 0.03
    assert rate[1:].tolist() == [0.0, 1.0]
    assert draws.factor.min() >= 0.9
    assert draws.factor.max() <= 1.1
    assert abs(draws.factor.mean() - 1) < 0.005
    assert draws.offset.abs().max() <= 0.2
    assert abs((draws.gamma != 1).float().mean() - 0.3) < 0.03
    assert draws.gamma.min() >= 0.5
    assert draws.gamma.max() <= 2
    assert abs((draws.noise > 0).float().mean() - 0.15) < 0.02
    assert draws.noise.max() <= 0.5
    assert draws.noise.max() > 0.45
    assert torch.equal(draws.factor[:, 0], draws.factor[:, 1])  # shared by the sequences
    apart = draw_augmentation(keys(50), Augmentation(per_sequence=True), sequences=2)
    assert not torch.equal(apart.factor[:, 0], apart.factor[:, 1])


def test_noise_has_the_drawn_strength():
    batch = make_batch(2, size=(24, 24, 24))
    noise = torch.tensor([[0.5, 0.0, 0.0], [0.25, 0.0, 0.0]])
    inside = torch.ones(2, 1, 24, 24, 24, dtype=torch.bool)
    plain = normalize(batch["volumes"], inside, batch["calibration"])
    noisy = normalize(batch["volumes"], inside, batch["calibration"], fixed(2, 3, noise=noise))
    assert (noisy - plain)[0, 0].std().item() == pytest.approx(0.5, rel=0.03)
    assert (noisy - plain)[1, 0].std().item() == pytest.approx(0.25, rel=0.03)
    assert torch.equal(noisy[:, 1:], plain[:, 1:])


def test_no_augmentation_changes_nothing():
    batch = make_batch()
    draws = draw_augmentation(batch["key"], Augmentation.none(), sequences=3)
    inside = batch["foreground"].bool()
    assert torch.equal(
        normalize(batch["volumes"], inside, batch["calibration"], draws),
        normalize(batch["volumes"], inside, batch["calibration"]),
    )
    assert flip(batch["volumes"], draws.flips) is batch["volumes"]


@pytest.mark.parametrize(
    "wrong", [{"flip": (2.0, 0.0, 0.0)}, {"scale": -0.1}, {"gamma": 0.5}, {"noise_probability": 7.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]):
    with pytest.raises(UsageError, match="augmentation"):
        Augmentation(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_artifacts_are_functions_of_the_key(kind: str):
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 1500, (2, 24, 24, 16)).astype(np.int16)
    rows = np.array([[1, 0, 700, 400], [0, 0, 0, 0]], np.float32)
    settings = Artifacts(probability=1.0, kinds=(kind,))
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)
        changed, calibration = volumes.copy(), rows.copy()
        apply_artifacts(changed, calibration, key=77, settings=settings)
        results.append((changed, calibration))
        assert torch.initial_seed() == state
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])
    changed, calibration = results[0]
    assert not np.array_equal(changed[0] * calibration[0, 0] + calibration[0, 1], volumes[0])
    assert np.array_equal(changed[1], volumes[1])  # absent
    assert np.array_equal(calibration[:, 2:], rows[:, 2:])  # the statistics stay those of the volume


def test_unknown_artifacts_are_refused():
    with pytest.raises(UsageError, match="zipper"):
        Artifacts(kinds=("zipper",))
