"""What a demo makes, and which of it is there already.

The demo shows the main job from beginning to end on made-up patients, or, of another kind of data, pre-training and a
probe on toys. Its stages leave stamps made of their settings and those of the stages before them: run again, what
exists is reused, and what was made with other settings is made anew.
How the stages are carried out is wired in ``medmae.cli.demo_stages`` and ``medmae.cli.demo_samples``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmae import __version__
from medmae.atomic import write_text
from medmae.core.errors import UsageError

STAMPS = "demo.json"
VERSION = 1  # of what the stages do: raise it when the same settings give other results
OURS = (
    "cohort", "cache", "run", "evaluation", "reconstructed", "data.yaml", "picture.png", "probe.json", "report.html",
    STAMPS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo makes.

    ``cases`` patients at ``spacing`` millimeters, of which each lacks each sequence with probability ``missing``; a
    share ``test`` of them is held out. ``size`` is the window of the model in voxels, about a whole brain at 4 mm.
    """

    cases: int = 64
    spacing: float = 4.0
    missing: float = 0.25
    test: float = 0.15
    val: float = 0.1
    steps: int = 2000
    batch: int = 2
    lr: float = 2e-3
    seed: int = 0
    size: tuple[int, int, int] = (40, 48, 40)
    patch: tuple[int, int, int] = (8, 8, 8)
    width: int = 96
    depth: int = 4
    shown: int = 3

    def __post_init__(self) -> None:
        if self.cases < 6 or self.steps < 1:
            raise UsageError(f"the demo needs at least 6 cases and 1 step, not {self.cases} and {self.steps}")


FAST = {"cases": 20, "steps": 150, "shown": 2}
"""A demo that shows the way in under a minute, with a model that has hardly learned."""


@dataclass(frozen=True, kw_only=True)
class ToyDemo:
    """What the demo of another kind of data makes.

    ``samples`` toys of a ``kind``, of which the share ``test`` is held out; a method, small enough for two cores, is
    pre-trained for ``steps`` of ``batch`` samples; then a linear probe learns the classes from its features.
    ``recipe`` is what the method has other than its defaults, ``reading`` the same of the kind.
    """

    kind: str
    method: str
    recipe: Mapping[str, Any]
    reading: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1000
    steps: int = 1000
    batch: int = 32
    lr: float = 1e-3
    test: float = 0.4
    val: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 60 or self.steps < 1:
            raise UsageError(f"this demo needs at least 60 samples and 1 step, not {self.samples} and {self.steps}")


_SMALL: Mapping[str, Any] = {
    "width": 128,
    "depth": 4,
    "heads": 4,
    "decoder_width": 64,
    "decoder_depth": 2,
    "decoder_heads": 4,
}
# Most of a toy image and clip is smooth ground with noise; normalized per patch, the noise would be all that counts.
_PLAIN = {"normalize_target": False}
TOY_DEMOS: Mapping[str, ToyDemo] = {
    "image": ToyDemo(
        kind="image", method="mae", recipe={**_SMALL, **_PLAIN, "size": [64, 64], "patch": [8, 8]},
        reading={"area": [0.5, 1.0]}, steps=1500, batch=64,
    ),
    "video": ToyDemo(
        kind="video", method="videomae",
        recipe={**_SMALL, **_PLAIN, "size": [8, 64, 64], "patch": [2, 16, 16], "mask_ratio": 0.75},
        reading={"stride": 2, "smallest": 0.8}, steps=1200, batch=32,
    ),
    "points": ToyDemo(
        kind="points", method="point_mae",
        recipe={"groups": 32, "group_size": 16, "width": 96, "depth": 4, "heads": 4, "decoder_depth": 2,
                "decoder_heads": 4, "hidden": [32, 64, 128]},
        steps=600, batch=32,
    ),
    "audio": ToyDemo(
        kind="audio", method="audio_mae",
        recipe={**_SMALL, "size": [192, 64], "patch": [16, 16]},
        steps=1000, batch=32,
    ),
}  # fmt: skip
"""The demo of each kind of data that is no volume."""


@dataclass
class Stages:
    """Which stages of a demo folder are complete, and with which settings."""

    folder: Path
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, *, overwrite: bool) -> Stages:
        """Claim ``folder``; with ``overwrite`` what an earlier demo made there (and nothing else) is removed.

        Raises UsageError where the folder holds something that is not a demo.
        """
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; --out names a folder")
        stamps = folder / STAMPS
        holds = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if holds and not stamps.is_file():
            raise UsageError(f"{folder} is not empty and holds no demo (it holds {holds[0]}); choose another --out")
        if overwrite:
            for name in OURS:
                remove(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        known = json.loads(stamps.read_text("utf-8")) if stamps.is_file() else {}
        stages = cls(folder, known if isinstance(known, dict) else {})
        stages._write()
        return stages

    def state(self, name: str, key: str) -> str:
        """``done``, ``begun`` with the same settings, or ``new`` (never begun, or with other settings)."""
        entry = self.known.get(name, {})
        if entry.get("key") != key:
            return "new"
        return "done" if entry.get("done") else "begun"

    def mark(self, name: str, key: str, *, done: bool, seconds: float = 0.0) -> None:
        """Note that a stage has begun or is complete."""
        self.known[name] = {"key": key, "done": done, "seconds": round(seconds, 1)}
        self._write()

    def seconds(self) -> dict[str, float]:
        """How long each complete stage took when it was made."""
        return {name: entry["seconds"] for name, entry in self.known.items() if entry.get("done")}

    def _write(self) -> None:
        write_text(self.folder / STAMPS, json.dumps(self.known, indent=2) + "\n")


def key_of(values: Mapping[str, Any]) -> str:
    """A short name of settings: another one for other settings or another version."""
    text = json.dumps({"medmae": __version__, "version": VERSION, **values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
