"""Surfaces of anatomy, from segmentations: one mesh per case and class, in millimeters.

Marching cubes on the voxels of one class, placed by the image's affine, so that spacing, direction and origin are those
of the patient and sizes of different scanners can be compared. A border between voxels is a staircase, which makes any
surface too large by a tenth and more; Taubin's smoothing takes the steps off without shrinking what is inside, and
where blurring the voxels would lose parts that are thin, they only get thinner (a rod of two voxels by a tenth). Faces
look outward whatever the direction of the axes.

The result is a data set like any other: PLY files in one folder per class, a table, and a spec that names it. The table
keeps each patient's surfaces, and the parts of the cohort's own split, together.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from medmae.atomic import write_bytes, write_text
from medmae.core.errors import DataError, MissingDependency, UsageError
from medmae.data.cohort import Case, open_cohort, safe_stem
from medmae.data.kinds.point_files import trimesh
from medmae.data.labels import read_label
from medmae.data.layouts import inside
from medmae.data.spec import Label
from medmae.data.workers import each, progress

SPEC, TABLE, MARK = "surfaces.yaml", "surfaces.csv", ".medmae-surfaces.json"
SMOOTHING = 10  # pairs of passes: leaves an ellipsoid of 1 mm voxels 1.2 % too much area, where the stairs have 9 %
FEWEST = 27  # voxels of which a surface is made (three across); what has fewer is left out and named


@dataclass(frozen=True)
class Made:
    """What was written: the spec to give as ``--data``, how many surfaces per class, and what was left out."""

    spec: Path
    counts: Mapping[str, int]
    notes: tuple[str, ...] = field(default=())


def surface(
    voxels: Bool[np.ndarray, "x y z"], affine: Float64[np.ndarray, "4 4"], *, smoothing: int = SMOOTHING
) -> tuple[Float64[np.ndarray, "n 3"], Int64[np.ndarray, "f 3"]]:
    """Corners, in the world the affine leads to (RAS+ millimeters), and triangles around some voxels.

    The surface is closed also where the voxels touch the border of the image. ``smoothing`` is the number of pairs of
    Taubin passes, 0 for the staircase itself.

    Raises:
        DataError: there is no voxel.
        MissingDependency: scikit-image or trimesh is not installed.
    """
    if not voxels.any():
        raise DataError("no voxel is inside, so there is no surface")
    cubes = _marching_cubes()
    places = np.argwhere(voxels)
    low, high = places.min(0), places.max(0) + 1
    box = voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    corners, faces, _, _ = cubes(np.pad(box, 1).astype(np.float32), 0.5)
    corners = (np.asarray(corners, np.float64) + low - 1) @ affine[:3, :3].T + affine[:3, 3]
    package = trimesh()
    mesh = package.Trimesh(corners, np.asarray(faces, np.int64), process=False)
    if smoothing:
        # One positive and one negative pass together let shapes through and take steps away (Taubin, 1995).
        package.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=2 * smoothing)
    triangles = np.asarray(mesh.faces, np.int64)
    if mesh.volume < 0:
        triangles = np.ascontiguousarray(triangles[:, ::-1])
    return np.asarray(mesh.vertices, np.float64), triangles


def write_surfaces(
    data: str | Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    smoothing: int = SMOOTHING,
    workers: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> Made:
    """Write the surface of every class of every labeled case of a cohort below ``out``.

    ``classes`` are those wanted, by the names in the spec's ``label.classes`` or ``label.regions``; none means every
    class but the background. ``workers`` processes work; 0 works in this one.

    Raises:
        UsageError: the data has no labels, no such class, or ``out`` holds something else.
        DataError: a label cannot be read, or nothing was found to make a surface of.
        MissingDependency: scikit-image or trimesh is not installed.
    """
    _marching_cubes()
    trimesh()
    cohort = open_cohort(data)
    label = cohort.spec.label
    if label is None:
        raise UsageError(f"{data}: no 'label' says where segmentations are and what their values mean")
    wanted = _wanted(label, classes, str(data))
    cases = [case for case in cohort.cases if case.label is not None]
    if not cases:
        raise UsageError(f"{data}: none of {len(cohort.cases)} case(s) has a label file to make surfaces of")
    part = {case.key: name for name, members in cohort.split().items() for case in members}
    with _staged(out, overwrite=overwrite) as stage:
        voxels = _all_cases(cases, stage, wanted, label, smoothing=smoothing, workers=workers, quiet=quiet)
        rows, notes = [], []
        for case in cases:
            for name, count in voxels[case.key].items():
                if count >= FEWEST:
                    path = f"{_folder(name)}/{case.file_stem}.ply"
                    rows.append({"path": path, "label": name, "subject": case.subject, "split": part[case.key],
                                 "case": case.key, "voxels": count})  # fmt: skip
                elif count:
                    notes.append(f"{case.key}: {name} has {count} voxel(s) only and is left out")
        if not rows:
            raise DataError(f"{data}: no label holds {FEWEST} voxels of {', '.join(wanted)}")
        counts = {name: sum(row["label"] == name for row in rows) for name in wanted}
        notes += [f"no case has a surface of {name}" for name, count in counts.items() if not count]
        write_text(stage / TABLE, _table(rows))
        write_text(stage / SPEC, _spec(cohort.spec.name, cohort.spec.license))
    return Made(out / SPEC, counts, tuple(notes))


def _all_cases(
    cases: Sequence[Case], stage: Path, wanted: Mapping[str, tuple[int, ...]], label: Label, *, smoothing: int,
    workers: int, quiet: bool,
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Write the surfaces of all cases; voxels by case and class. DataError with every label that cannot be read."""
    found: dict[str, dict[str, int]] = {}
    faults: list[str] = []
    mapping = {value: label.remap.get(value, value) for value in sorted(label.file_values | {0})}
    jobs = [(case.key, case.label, stage, case.file_stem, wanted, mapping, smoothing) for case in cases]
    with progress("making surfaces", len(jobs), quiet=quiet) as advance:
        for job, outcome in each(_one_case, jobs, workers=workers, preload=("medmae.data.kinds.surfaces",)):
            advance()
            if isinstance(outcome.error, DataError):
                faults.append(str(outcome.error))
            elif outcome.error is not None:
                raise outcome.error
            elif outcome.died:
                faults.append(f"{job[1]}: the process that worked on it died, most often for want of memory")
            else:
                found[job[0]] = outcome.value
    if faults:
        raise DataError(f"{len(faults)} label(s) cannot be used:" + "".join(f"\n  - {text}" for text in sorted(faults)))
    return found


def _one_case(
    key: str, path: Path, out: Path, stem: str, wanted: Mapping[str, tuple[int, ...]], mapping: Mapping[int, int],
    smoothing: int,
) -> dict[str, int]:  # fmt: skip
    """In a worker: write the surfaces of one case; voxels per class."""
    volume, label, _ = read_label(path, mapping)
    counts = {}
    for name, values in wanted.items():
        chosen = np.isin(label, values)
        counts[name] = int(chosen.sum())
        if counts[name] >= FEWEST:
            corners, faces = surface(chosen, np.asarray(volume.affine, np.float64), smoothing=smoothing)
            write_bytes(out / _folder(name) / f"{stem}.ply", ply(corners, faces))
    return counts


def ply(corners: Float64[np.ndarray, "n 3"], faces: Int64[np.ndarray, "f 3"]) -> bytes:
    """A binary PLY file, corners in float32; equal meshes are equal bytes."""
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment millimeters, RAS+\n"
        f"element vertex {len(corners)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), dtype=[("count", "u1"), ("corner", "<i4", (3,))])
    rows["count"], rows["corner"] = 3, faces
    return header.encode("ascii") + corners.astype("<f4").tobytes() + rows.tobytes()


def _marching_cubes() -> Any:
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise MissingDependency(
            f"surfaces of labels need scikit-image ({error}): pip install 'medmae[points]'"
        ) from error
    return marching_cubes


def _wanted(label: Label, classes: Sequence[str], data: str) -> dict[str, tuple[int, ...]]:
    """Class or region name -> its values."""
    known: dict[str, tuple[int, ...]] = {name: (value,) for name, value in label.classes.items()}
    known |= {name: tuple(values) for name, values in label.regions.items()}
    if strange := [name for name in classes if name not in known]:
        raise UsageError(f"{data}: no class or region is called {', '.join(strange)}; there are {', '.join(known)}")
    chosen = classes or [name for name, value in label.classes.items() if value != 0]
    return {name: known[name] for name in chosen}


def _folder(name: str) -> str:
    return safe_stem(name)


@contextmanager
def _staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, whose files come into ``out`` when the block ends without an error.

    With ``overwrite`` the surfaces that were there before go then, and nothing else does.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file. Give the name of a folder.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise UsageError(f"{out}: holds other files. Give a folder that is new or empty.")
        if not overwrite:
            raise UsageError(f"{out}: holds surfaces already. Give another name, or --overwrite.")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".part", dir=out.parent))
    try:
        yield stage
        files = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
        if out.is_dir():
            _remove_old(out)
        for file in sorted(files, key=lambda file: file.name == SPEC):  # the spec last: with it the data set is there
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file, out / file)
        write_text(out / MARK, json.dumps({"made by": "medmae data surfaces", "files": [f.as_posix() for f in files]}))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _remove_old(out: Path) -> None:
    """Remove the files that an earlier call wrote, and folders that are empty then."""
    try:
        names = json.loads((out / MARK).read_text(encoding="utf-8"))["files"]
        files = [inside(out, name) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for file in files:
        file.unlink(missing_ok=True)
    for folder in {file.parent for file in files} - {out}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _spec(name: str, rights: str) -> str:
    import yaml

    values = {"medmae": 1, "kind": "points", "name": f"{name}-surfaces", "table": TABLE}
    return yaml.safe_dump({**values, **({"license": rights} if rights else {})}, sort_keys=False, allow_unicode=True)
