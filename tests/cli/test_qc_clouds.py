"""Pictures of clouds: what is in them, from where they are seen, and that samples without a cloud have none."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from medmae.cli.qc_clouds import draw, draws_points, make_on_picture, scenes, seen_from
from medmae.core.tokens import take
from medmae.find import find
from medmae.testing import example_batch


@pytest.fixture
def method() -> Any:
    torch.manual_seed(0)
    return find("point_mae").build(scale="test")


def held(part: np.ndarray, whole: np.ndarray) -> bool:
    """Whether every point of ``part`` is one of ``whole``."""
    return bool((np.linalg.norm(part[:, None] - whole[None], axis=-1).min(1) < 1e-5).all())


def test_visible_points_are_of_the_cloud_and_a_perfect_guess_is_the_rest(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = example_batch(method)
    for scene, points in zip(scenes(method, batch), batch["points"], strict=True):
        assert np.array_equal(scene.cloud, points.numpy())
        assert held(scene.visible, scene.cloud)
        assert (scene.hidden, scene.groups) == (9, 16)
        assert len(scene.visible) == 7 * 8
        assert len(scene.predicted) == 9 * 8
        assert not held(scene.predicted, scene.cloud)
    monkeypatch.setattr(method, "guess", lambda tokens, plan: take(tokens.content, plan.target).flatten(2))
    tokens = method.tokenizer(batch)
    every = (tokens.content + tokens.layout.coords[:, :, None]).flatten(1, 2).numpy()
    for scene, points in zip(scenes(method, batch), every, strict=True):
        assert held(scene.predicted, scene.cloud)
        assert held(points, np.concatenate([scene.visible, scene.predicted]))
    assert method.training


def test_padding_is_no_point_and_an_absent_cloud_no_picture(method: Any, tmp_path: Path) -> None:
    batch = {"points": torch.randn(3, 40, 3), "key": torch.arange(3), "valid": torch.ones(3, 40, dtype=torch.bool)}
    batch["valid"][1, 12:] = False
    batch["points"][1, 12:] = torch.nan
    batch["present"] = torch.tensor([[True], [True], [False]])
    found = scenes(method, batch)
    assert [len(scene.cloud) for scene in found] == [40, 12, 0]
    assert [scene.groups for scene in found] == [16, 12, 0]
    assert all(np.isfinite(part).all() for scene in found for part in (scene.visible, scene.predicted))

    class Source:
        def validation(self, **_: Any) -> Any:
            return iter([batch])

        def finish(self, given: Any, **_: Any) -> Any:
            return given

    source: Any = Source()
    on_picture = make_on_picture(source, method, tmp_path)
    assert on_picture is not None
    on_picture(7, method)
    assert sorted(path.name for path in (tmp_path / "qc").iterdir()) == ["step_000007_1.png", "step_000007_2.png"]


def test_a_guess_is_drawn_in_another_color_and_does_not_move_the_rest(method: Any) -> None:
    scene = scenes(method, example_batch(method))[0]
    without = replace(scene, predicted=scene.predicted[:0])
    far = replace(scene, predicted=scene.predicted * 50)
    one, two, three = (imread(io.BytesIO(draw(s, title="step 1")))[..., :3] for s in (scene, without, far))
    orange = [(picture[..., 0] > picture[..., 2] + 0.3).sum() for picture in (one, two)]
    assert orange[0] > 100
    assert orange[1] == 0
    third = 2 * one.shape[1] // 3
    assert np.array_equal(one[:, :third], two[:, :third])
    assert np.array_equal(one[:, : third - 20], three[:, : third - 20])


def test_a_single_point_can_be_drawn(method: Any) -> None:
    scene = replace(scenes(method, example_batch(method))[0], cloud=np.zeros((1, 3), np.float32))
    assert draw(scene, title="").startswith(b"\x89PNG")


def test_the_third_axis_is_up_and_nothing_is_stretched() -> None:
    axes = seen_from(np.eye(3))
    assert axes[2, 1] > 0.9
    assert axes[2, 0] == pytest.approx(0)
    assert axes[1, 2] < 0 < axes[0, 0]  # the second axis leads away, the first to the right
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)


def test_only_points_of_groups_are_drawn(method: Any) -> None:
    source: Any = None
    assert draws_points(method)
    for name in ("mae", "audio_mae", "bm_mae"):
        other = find(name).build(scale="test")
        assert not draws_points(other)
        assert make_on_picture(source, other, ".") is None
