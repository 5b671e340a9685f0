"""What a training shows of itself: fixed samples, windows that know nothing of what is hidden."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmae.cli.qc import QUALITY, _training_values, make_on_picture
from medmae.find import find

NAMES = ("t1n", "t2w")


class ToySource:
    """Two samples; the second lacks a sequence. ``hidden`` is added to the validation images only."""

    size = 4
    sequences = NAMES

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def _batch(self, *, seed: int, batch: int, shift: float) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        images = {name: torch.randn(batch, 1, 16, 16, 16, generator=generator) + shift for name in NAMES}
        present = torch.ones(batch, 2, dtype=torch.bool)
        present[-1, 1] = False
        images["t2w"][-1] = 0
        foreground = torch.ones(batch, 1, 16, 16, 16)
        return {**images, "present": present, "foreground": foreground, "key": torch.arange(batch)}

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield self._batch(seed=1, batch=batch, shift=0.0)

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        yield self._batch(seed=2, batch=batch, shift=self.shift)

    def finish(self, batch: Any, *, device: Any, training: bool) -> dict[str, torch.Tensor]:
        return {name: value.to(device) for name, value in batch.items()}

    def describe(self) -> dict[str, Any]:
        return {}


def tiny(**options: Any) -> Any:
    return find("bm_mae").build(scale="test", sequences=NAMES, size=(16, 16, 16), patch=(8, 8, 8), **options)


def test_pictures_and_numbers_are_written(tmp_path: Path) -> None:
    """One picture per sample; the baseline beside the model; a repeated step replaces its row."""
    method = tiny(decoder_heads=4)
    callback = make_on_picture(ToySource(), method, tmp_path)
    assert callback is not None
    for step in (5, 10, 15, 10):
        callback(step, method)
    assert len(list((tmp_path / "qc").glob("step_000010_*.png"))) == 2
    rows = [json.loads(line) for line in (tmp_path / "qc" / QUALITY).read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[0]["sequences"] == rows[1]["sequences"], "samples and masks are fixed"
    assert 0.5 < rows[0]["mae_mean"] < 1.1, "normal noise is 0.8 from its mean"


def test_windows_come_from_training_samples() -> None:
    """Whatever the validation images are, the windows stay."""
    one, other = (_training_values(ToySource(shift), device=torch.device("cpu"), seed=0) for shift in (0.0, 100.0))
    assert one == other
    window, mean = one["t1n"]
    assert window.low < -2
    assert window.high > 2
    assert abs(mean) < 0.2
    assert np.isfinite([window.low, window.high]).all()


def test_methods_that_cannot_be_shown_have_no_pictures(tmp_path: Path) -> None:
    """A method for photographs predicts no voxels of a volume."""
    flat = find("mae").build(
        size=(32, 32), patch=(16, 16), width=48, depth=1, heads=4, decoder_width=48, decoder_depth=1, decoder_heads=4
    )
    assert make_on_picture(ToySource(), flat, tmp_path) is None
