"""Metrics against the implementations others trust."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from medmae.evaluate.metrics import Ssim, Truth, data_range, mae, measure, psnr, r2

SIZE = (22, 26, 18)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=SIZE).astype(np.float32)
    guess = truth + 0.3 * rng.normal(size=SIZE).astype(np.float32)
    x, y, z = np.indices(SIZE)
    inside = (x - 11) ** 2 / 81 + (y - 13) ** 2 / 100 + (z - 9) ** 2 / 64 < 1
    return truth, guess, inside


def test_psnr_mae_r2_are_the_usual_ones_over_the_region(case) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    truth, guess, inside = case
    assert psnr(guess, truth, inside, width=3.0) == pytest.approx(
        peak_signal_noise_ratio(truth[inside].astype(float), guess[inside].astype(float), data_range=3.0), abs=1e-5
    )
    assert mae(guess, truth, inside) == pytest.approx(np.abs(guess - truth)[inside].mean(), rel=1e-6)
    assert r2(guess, truth, inside) == pytest.approx(r2_score(truth[inside], guess[inside]), abs=1e-6)


def test_ssim_map_is_monai_s(case) -> None:
    from monai.metrics.regression import compute_ssim_and_cs

    truth, guess, _ = case
    everywhere = np.ones(SIZE, bool)
    ours = Ssim(truth, everywhere, width=2.5).map(guess)
    theirs, _ = compute_ssim_and_cs(
        torch.from_numpy(guess)[None, None].double(),
        torch.from_numpy(truth)[None, None].double(),
        spatial_dims=3,
        kernel_size=(11, 11, 11),
        kernel_sigma=(1.5, 1.5, 1.5),
        data_range=2.5,
    )
    inner = tuple(slice(5, n - 5) for n in SIZE)  # MONAI gives no values on the border
    np.testing.assert_allclose(ours[inner], theirs[0, 0].numpy(), atol=1e-5)


def test_ssim_agrees_with_scikit_image_inside(case) -> None:
    from skimage.metrics import structural_similarity

    truth, guess, _ = case
    ours = Ssim(truth, np.ones(SIZE, bool), width=2.5).map(guess)
    _, theirs = structural_similarity(
        truth, guess, data_range=2.5, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ours[5:-5, 5:-5, 5:-5], theirs[5:-5, 5:-5, 5:-5], atol=1e-4)


def test_background_counts_for_nothing(case) -> None:
    truth, guess, inside = case
    expected = measure(guess, Truth.of(truth, inside))
    other = np.where(inside, guess, 1e3).astype(np.float32)
    assert measure(other, Truth.of(truth, inside)) == expected
    assert Ssim(truth, inside, width=1.0).map(other)[inside].mean() == pytest.approx(
        Ssim(truth, inside, width=1.0).map(guess)[inside].mean()
    )


def test_a_cropped_background_changes_nothing(case) -> None:
    truth, guess, inside = case
    wide = [np.pad(a, 12, mode="edge") for a in (truth, guess)] + [np.pad(inside, 12)]
    narrow, padded = measure(guess, Truth.of(truth, inside)), measure(wide[1], Truth.of(wide[0], wide[2]))
    assert padded == pytest.approx(narrow, rel=1e-9)


def test_perfect_and_mean_guesses(case) -> None:
    truth, _, inside = case
    perfect = measure(truth, Truth.of(truth, inside))
    assert perfect == pytest.approx({"psnr": 100.0, "ssim": 1.0, "mae": 0.0, "r2": 1.0})
    flat = measure(np.full(SIZE, truth[inside].mean(), np.float32), Truth.of(truth, inside))
    assert flat["r2"] == pytest.approx(0.0, abs=1e-6)


def test_label_region_has_its_own_numbers_and_the_same_range(case) -> None:
    truth, guess, inside = case
    label = np.zeros(SIZE, bool)
    label[9:14, 10:16, 7:11] = True
    worse = np.where(label, truth + 5, guess).astype(np.float32)
    values = measure(worse, Truth.of(truth, inside, label=label))
    assert values["mae_label"] == pytest.approx(5.0, rel=1e-5)
    assert values["psnr_label"] == pytest.approx(20 * math.log10(data_range(truth, inside) / 5), abs=1e-4)
    assert values["ssim_label"] < values["ssim"]
    outside = np.zeros(SIZE, bool)
    outside[0, 0, 0] = True  # not in the foreground: no region, no numbers
    assert "mae_label" not in measure(guess, Truth.of(truth, inside, label=outside))


def test_faults_are_said(case) -> None:
    truth, _, inside = case
    with pytest.raises(ValueError, match="empty"):
        Truth.of(truth, np.zeros(SIZE, bool))
    with pytest.raises(ValueError, match="one shape"):
        Truth.of(truth, inside[1:])
    assert data_range(np.ones(SIZE, np.float32), inside) == 1.0
    assert math.isnan(r2(truth, np.ones(SIZE, np.float32), inside))
