"""One patient: read, complete, write every target with a sidecar that says how it was made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.core.errors import DataError, UsageError

from .console import flags, say
from .units import Scale

if TYPE_CHECKING:
    import numpy as np

    from medmae.data.inference import InferenceCase

    from .completion import Completes
    from .synthesizer import Synthesizer

DESCRIPTION = "synthetic {target} by medmae, not acquired, not for diagnosis"
SPREAD = "deviation of synthetic {target} by medmae, not for diagnosis"


@dataclass(frozen=True)
class Job:
    """One case: inputs by sequence, and a file to write per target. ``name`` is the case's own name, in cohorts; with
    ``spread`` a deviation is written beside every target."""

    inputs: Mapping[str, Path]
    mask: Path | None
    targets: Sequence[str]
    files: Mapping[str, Path]
    name: str | None
    spread: bool = False

    @property
    def written(self) -> tuple[Path, ...]:
        """Every image that it writes."""
        return (*self.files.values(), *(deviation(path) for path in self.files.values() if self.spread))

    def run(
        self,
        completer: Completes,
        scales: Mapping[str, Scale],
        *,
        reference: str | None,
        identify: bool,
        resample: bool = False,
        passes: int = 0,
    ) -> list[dict[str, Any]]:
        """Reconstruct and write; returns what the sidecars say, with the path of each file."""
        from medmae.data.inference import load_case

        first = [name for name in self.inputs if name == reference]
        order = [*first, *(name for name in self.inputs if name not in first)]
        settings = {**completer.preprocess, **({"on_mismatch": "resample"} if resample else {})}
        case = load_case({name: self.inputs[name] for name in order}, settings, mask=self.mask)
        _refuse_twins(case.files)
        if not case.images:
            raise DataError(f"none of the images can be used ({'; '.join(case.odd.values())})")
        for name in case.odd:
            what = "has NaN or infinite voxels: background" if name in case.images else "has one value only: left out"
            say(f"{self.name + ': ' if self.name else ''}{name} {what}", style="yellow")
        how: Any = {"spacing": case.spacing, "targets": self.targets}
        deviations: Mapping[str, np.ndarray] = {}
        if self.spread:
            guesses, deviations = synthesizer_in(completer).spread(case.images, case.foreground, **how, passes=passes)
        else:
            with _bar(self.name or ", ".join(self.targets)) as bar:
                guesses = completer.guess(case.images, case.foreground, **how, on_windows=bar)
        told = []
        for name in self.targets:
            image, about = self._image(name, guesses[name], case, completer, scales[name], identify=identify)
            if self.spread:
                about["uncertainty"] = {"passes": passes, "models": len(synthesizer_in(completer).members),
                                        "file": deviation(self.files[name]).name,
                                        "warning": "spread of the model's own answers; not calibrated"}  # fmt: skip
            told.append((name, image, about))
        return [self._write(*one, case, deviations.get(one[0]), scales[one[0]]) for one in told]

    def _image(
        self, target: str, guess: np.ndarray, case: InferenceCase, completer: Completes, scale: Scale, *, identify: bool
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The target on the grid of the reference, in its units, and what the sidecar says."""
        import numpy as np

        from medmae.data.inference import to_input_grid

        values = guess.astype(np.float32) * np.float32(scale.std) + np.float32(scale.mean)
        if not np.isfinite(values[case.foreground]).all():
            raise DataError(
                f"the model's {target} is not finite; try --precision fp32, and check the model with `medmae info`"
            )
        background = min(0.0, float(values[case.foreground].min()))
        values = np.where(case.foreground, values, np.float32(background))
        about = self._about(target, case, completer, scale, background, identify=identify)
        return to_input_grid(values, case, fill=background), about

    def _write(
        self,
        target: str,
        image: np.ndarray,
        about: dict[str, Any],
        case: InferenceCase,
        spread: np.ndarray | None,
        scale: Scale,
    ) -> dict[str, Any]:
        import numpy as np

        from medmae.data.inference import to_input_grid
        from medmae.data.nifti import write_like
        from medmae.data.writing import writing

        path = self.files[target]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_like(path, image, case.header, description=DESCRIPTION.format(target=target))
            if spread is not None:
                width = np.where(case.foreground, spread * np.float32(scale.std), np.float32(0)).astype(np.float32)
                write_like(
                    deviation(path), to_input_grid(width, case), case.header, description=SPREAD.format(target=target)
                )
            _write_json(sidecar(path), about)
        return {"file": os.fspath(path), **about}

    def _about(
        self, target: str, case: InferenceCase, completer: Completes, scale: Scale, background: float, *, identify: bool
    ) -> dict[str, Any]:
        import torch

        from medmae import __version__

        about: dict[str, Any] = {
            "synthetic": True,
            "warning": "Made by a model, not acquired. Not for diagnosis.",
            "target": target,
            "inputs": {name: f"sha256:{digest}" for name, digest in case.files.items()},
            "reference": case.present[0],
            "units": {"kind": scale.kind, "mean": scale.mean, "std": scale.std, "source": scale.source,
                      "rule": "value = normalized * std + mean inside the foreground"},
            "background": background,
            "foreground": "given mask" if self.mask is not None else "estimated from the inputs",
            "model": {"method": completer.config["method"], "weights": f"sha256:{completer.weights}",
                      "license": completer.config.get("license") or completer.data.get("license")},
            "overlap": completer.overlap,
            "precision": completer.precision,
            "medmae": __version__,
            "torch": torch.__version__,
        }  # fmt: skip
        if identify:
            about["files"] = {name: os.fspath(path) for name, path in self.inputs.items()}
            about["case"] = self.name
        return about


def sidecar(path: Path) -> Path:
    """The .json beside an image."""
    name = path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem
    return path.with_name(name + ".json")


def deviation(path: Path) -> Path:
    """The image of the standard deviation beside an image."""
    stem = sidecar(path).name.removesuffix(".json")
    return path.with_name(stem + "_std" + path.name[len(stem) :])


def synthesizer_in(completer: Completes) -> Synthesizer:
    """A model that knows how sure it is. Raises UsageError where it does not."""
    from .synthesizer import Synthesizer

    if not isinstance(completer, Synthesizer):
        raise UsageError("--uncertainty needs a model that was fine-tuned to synthesize")
    return completer


def _refuse_twins(files: Mapping[str, str]) -> None:
    """One image under two names is a slip, and its reconstruction would look as good as any."""
    first: dict[str, str] = {}
    for name, digest in files.items():
        if first.setdefault(digest, name) != name:
            raise DataError(f"{first[digest]} and {name} are the same image; give each sequence its own file")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    import json

    from medmae.atomic import write_text

    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    """A progress bar over windows; silent when not a terminal or under --quiet."""
    import sys

    if flags().quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    from .console import console

    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task(what.replace("[", r"\["), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
