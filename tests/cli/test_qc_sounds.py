"""Pictures of sound: time to the right, frequency upward, gray where nothing was seen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from medmae.cli import qc_samples, qc_sounds
from medmae.cli.qc_views import View
from medmae.core.sound import Frontend
from medmae.find import find
from medmae.testing import example_batch

FRONTEND = Frontend(16000, 200, 64, 0.0, 1.0)


def picture(panel: np.ndarray) -> np.ndarray:
    png = qc_sounds.montage([panel], names=["original"], frontend=FRONTEND, title="step 1")
    return np.asarray(imread(io.BytesIO(png))[..., :3])


def test_a_late_high_tone_is_at_the_top_right() -> None:
    panel = np.zeros((200, 64), np.float32)
    panel[150:, 48:] = 1
    rows, columns = np.nonzero(np.abs(picture(panel) - [0.987, 0.991, 0.750]).max(-1) < 0.02)  # the end of magma
    height, width = picture(panel).shape[:2]
    assert len(rows) > 500
    assert rows.mean() < 0.45 * height
    assert columns.mean() > 0.75 * width


def test_what_was_not_seen_is_gray() -> None:
    panel = np.full((200, 64), np.nan, np.float32)
    panel[:100] = 0.2
    gray = np.abs(picture(panel) - 0.5).max(-1) < 0.01
    half = gray.shape[1] // 2
    assert gray[:, half + 60 :].mean() > 0.3
    assert gray[:, : half - 20].mean() < 0.02


def test_what_fills_a_sound_up_is_left_out() -> None:
    whole = torch.randn(2, 1, 20, 8)
    truth = whole.clone()
    truth[1, :, 14:] = 3.0
    view, note = qc_sounds.without_filling(View("spectrogram", truth, truth, truth), 1)
    assert view.truth.shape == view.visible.shape == view.pasted.shape == (2, 1, 14, 8)
    assert "ends after 0.1 s" in note
    for nothing_to_cut in (whole, torch.ones(2, 1, 20, 8)):
        view, note = qc_sounds.without_filling(View("spectrogram", nothing_to_cut, whole, whole), 1)
        assert (tuple(view.truth.shape), note) == ((2, 1, 20, 8), "")


def test_frequencies_that_are_marked_are_where_they_are() -> None:
    where, told = qc_sounds._marks(FRONTEND, 64)
    assert told == ["4k", "2k", "1k", "500", "100"]
    assert where == sorted(where, reverse=True)
    wave = torch.sin(2 * torch.pi * 2000 * torch.arange(33000) / 16000)
    loudest = int(FRONTEND(wave)[0].mean(0).argmax())
    assert abs(where[1] - loudest) <= 1


@pytest.mark.parametrize("name", ["audio_mae", "bird_mae"])
def test_methods_of_sound_have_such_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = find(name).build(scale="test")
    batch = example_batch(method)
    seen: list[Any] = []

    class Source:
        def validation(self, **_: Any) -> Any:
            return iter([batch])

        def finish(self, given: Any, **_: Any) -> Any:
            return given

    def montage(panels: Any, **more: Any) -> bytes:
        seen.append((panels, more))
        return b"png"

    monkeypatch.setattr(qc_sounds, "montage", montage)
    source: Any = Source()
    on_picture = qc_samples.make_on_picture(source, method, tmp_path)
    assert on_picture is not None
    on_picture(3, method)
    assert len(seen) == len(batch["key"]) == len(list((tmp_path / "qc").glob("*.png")))
    panels, more = seen[0]
    assert [panel.shape for panel in panels] == [(64, 32)] * 3
    assert np.isnan(panels[1]).any()
    assert more["names"][2] == "reconstruction (mean and contrast of true patches)"
