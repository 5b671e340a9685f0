"""What a synthetic case is: brain-like, different every time, and the same every time."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("nilearn", reason="extra demo")

from medmae.core.errors import MissingDependency
from medmae.data.synthetic import anatomy
from medmae.data.synthetic.case import SyntheticCase, make_case, present_sequences
from medmae.data.synthetic.clinical import risk
from medmae.data.synthetic.noise import smooth_noise
from medmae.data.synthetic.signal import SEQUENCES, TISSUES, Scan, _signal, draw_scans
from medmae.data.synthetic.tumor import LABELS

SPACING = 4.0


@pytest.fixture(scope="module")
def cases() -> list[SyntheticCase]:
    return [make_case(index, seed=3, spacing=SPACING) for index in range(6)]


def test_images_share_a_grid_and_are_black_outside_the_brain(cases: list[SyntheticCase]) -> None:
    for case in cases:
        assert tuple(case.images) == SEQUENCES
        for image in (*case.images.values(), case.label, case.mask):
            assert image.shape == case.mask.shape
        for image in case.images.values():
            assert image.dtype == np.int16
            assert not image[~case.mask].any()
            assert (image[case.mask] > 0).mean() > 0.98
        assert not case.label[~case.mask].any()
        assert 0.8e6 < case.mask.sum() * SPACING**3 < 2.6e6  # cubic millimeters


def test_brain_does_not_touch_the_border(cases: list[SyntheticCase]) -> None:
    for case in cases:
        for axis in range(3):
            edges = np.moveaxis(case.mask, axis, 0)[[0, -1]]
            assert edges.mean() < 0.1


def test_correlations_have_the_signs_of_real_brains(cases: list[SyntheticCase]) -> None:
    tables = [np.corrcoef([case.images[name][case.mask] for name in SEQUENCES]) for case in cases]
    mean = {
        (a, b): np.mean([table[i, j] for table in tables])
        for i, a in enumerate(SEQUENCES)
        for j, b in enumerate(SEQUENCES)
    }
    assert 0.4 < mean["t1n", "t1c"] < 0.9
    assert -0.85 < mean["t1n", "t2w"] < -0.3
    assert -0.85 < mean["t1c", "t2w"] < -0.2
    assert 0.1 < mean["t1n", "t2f"] < 0.9
    assert -0.5 < mean["t2w", "t2f"] < 0.5


def test_tumor_looks_like_one_in_every_sequence(cases: list[SyntheticCase]) -> None:
    brighter = []
    for case in cases:
        healthy = case.mask & (case.label == 0)
        row = {name: np.median(image[healthy]) for name, image in case.images.items()}
        edema, enhancing = case.label == LABELS["ed"], case.label == LABELS["et"]
        assert edema.any()
        assert np.median(case.images["t2f"][edema]) > 1.1 * row["t2f"]
        if enhancing.sum() > 10:
            brighter.append(
                np.median(case.images["t1c"][enhancing])
                / row["t1c"]
                / (np.median(case.images["t1n"][enhancing]) / row["t1n"])
            )
    assert len(brighter) >= 2
    assert np.mean(brighter) > 1.15


def test_a_case_is_a_function_of_seed_and_index(cases: list[SyntheticCase]) -> None:
    again = make_case(4, seed=3, spacing=SPACING)
    for name in SEQUENCES:
        np.testing.assert_array_equal(again.images[name], cases[4].images[name])
    np.testing.assert_array_equal(again.label, cases[4].label)
    assert again.describe() == cases[4].describe()
    other = make_case(4, seed=4, spacing=SPACING)
    assert (other.mask != cases[4].mask).any()


def test_cases_differ(cases: list[SyntheticCase]) -> None:
    assert len({case.mask.tobytes() for case in cases}) == len(cases)
    assert len({case.images["t2w"].max() for case in cases}) > 1
    assert len({case.patient for case in cases}) == len(cases)


def test_description_is_json(cases: list[SyntheticCase]) -> None:
    facts = json.loads(json.dumps(cases[0].describe()))
    assert set(facts) == {"patient", "tumor", "volumes_ml", "scans"}
    assert facts["volumes_ml"]["ed"] == pytest.approx((cases[0].label == 2).sum() * SPACING**3 / 1000, abs=1e-3)


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_missing_sequences(missing: float) -> None:
    present = [present_sequences(index, seed=0, missing=missing) for index in range(2000)]
    assert all(present)
    assert all(names == tuple(name for name in SEQUENCES if name in names) for names in present)
    kept = np.mean([len(names) for names in present]) / len(SEQUENCES)
    assert kept == pytest.approx(1 - missing + missing**4 / 4, abs=0.02)


def test_noise_has_unit_variance_and_its_width() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_noise(rng, shape=(20, 24, 22), sigma=2.5) for _ in range(60)])
    assert fields.mean() == pytest.approx(0, abs=0.05)
    assert fields.std() == pytest.approx(1, abs=0.05)
    lag = (fields[:, :-5] * fields[:, 5:]).mean() / fields.var()
    assert lag == pytest.approx(np.exp(-(5**2) / (4 * 2.5**2)), abs=0.06)
    assert smooth_noise(rng, shape=(6, 5, 4), sigma=0.2).shape == (6, 5, 4)


def _scan(**overrides: object) -> Scan:
    plain = {"name": "t1n", "tr": 600.0, "te": 10.0, "ti": None, "gadolinium": False, "thickness": 1.0, "axis": 2}
    return Scan(**{**plain, "offset": (0.0, 0.0, 0.0), **overrides})  # type: ignore[arg-type]


def test_signal_equations() -> None:
    one = np.ones(3, np.float32)
    pd, t1, t2 = one, np.array([500, 1000, 4000], np.float32), np.array([50, 100, 2000], np.float32)
    spin = _signal(pd, t1, t2, _scan(tr=600.0, te=10.0))
    np.testing.assert_allclose(spin, (1 - np.exp(-600 / t1)) * np.exp(-10 / t2), rtol=1e-5)
    null = float(4000 * np.log(2 / (1 + np.exp(-9000 / 4000))))  # where the fluid's magnetization crosses zero
    assert _signal(pd, t1, t2, _scan(tr=9000.0, te=120.0, ti=null))[2] == pytest.approx(0, abs=1e-4)


def test_scans_of_a_case_make_sense() -> None:
    for seed in range(20):
        scans = {scan.name: scan for scan in draw_scans(np.random.default_rng(seed))}
        assert tuple(scans) == SEQUENCES
        assert [scan.gadolinium for scan in scans.values()] == [False, True, False, False]
        assert scans["t1n"].offset == (0.0, 0.0, 0.0)
        assert abs(scans["t1c"].tr / scans["t1n"].tr - 1) < 0.051
        assert scans["t2f"].ti is not None


def test_gadolinium_only_where_it_leaks() -> None:
    assert {name for name, tissue in TISSUES.items() if tissue.t1_gadolinium is not None} == {"et", "vessel", "dura"}


def test_risk_follows_the_tumor() -> None:
    small, large = {"ncr": 1.0, "ed": 10.0, "et": 2.0}, {"ncr": 20.0, "ed": 90.0, "et": 25.0}
    lateral, midline = (40.0, 0.0, 20.0), (3.0, 0.0, 20.0)
    assert risk(volumes=large, site=lateral, mutant=False, age=60) > risk(
        volumes=small, site=lateral, mutant=False, age=60
    )
    assert risk(volumes=small, site=midline, mutant=False, age=60) > risk(
        volumes=small, site=lateral, mutant=False, age=60
    )
    assert risk(volumes=small, site=lateral, mutant=True, age=60) < risk(
        volumes=small, site=lateral, mutant=False, age=60
    )


def test_template_is_centered_on_the_brain_and_in_millimeters() -> None:
    template = anatomy.load_template(SPACING)
    brain = template.gray + template.white + template.csf > 0.5
    low, high = (
        template.to_mm(np.argwhere(brain).T.astype(np.float32)).min(1),
        template.to_mm(np.argwhere(brain).T.astype(np.float32)).max(1),
    )
    assert np.all(low > [-90, -125, -85])
    assert np.all(high < [90, 90, 100])
    assert abs(low[0] + high[0]) <= 2 * SPACING  # left and right are alike
    assert np.abs(template.affine[:3, :3] - np.eye(3) * SPACING).max() == 0


def test_without_nilearn_the_pip_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy.load_template.cache_clear()
    monkeypatch.setattr(anatomy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[demo\]'"):
        anatomy.load_template(SPACING)


def _predictability(images: dict[str, np.ndarray], inside: np.ndarray) -> dict[str, float]:
    """R2 of each sequence predicted from the others at the same voxel; fitted on even slices, tested on odd ones."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    voxels = np.stack([images[name][inside] for name in SEQUENCES], 1).astype(np.float32)
    odd = np.nonzero(inside)[2] % 2 == 1
    scores = {}
    for column, name in enumerate(SEQUENCES):
        others = np.delete(voxels, column, 1)
        model = HistGradientBoostingRegressor(max_iter=60, random_state=0).fit(others[~odd], voxels[~odd, column])
        scores[name] = float(model.score(others[odd], voxels[odd, column]))
    return scores


@pytest.mark.slow
def test_sequences_are_as_hard_to_predict_as_real_ones() -> None:
    """Real brains: t1n 0.83 to 0.90, t1c 0.46 to 0.76, t2w 0.41 to 0.66, t2f 0.62 to 0.83."""
    cases = [make_case(index, seed=0, spacing=2.0) for index in range(3)]
    scores = [_predictability(dict(case.images), case.mask) for case in cases]
    mean = {name: np.mean([score[name] for score in scores]) for name in SEQUENCES}
    assert 0.70 < mean["t1n"] < 0.92
    assert 0.40 < mean["t1c"] < 0.76
    assert 0.40 < mean["t2w"] < 0.72
    assert 0.55 < mean["t2f"] < 0.88
