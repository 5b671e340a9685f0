"""Clouds and meshes from files, checked before they are believed.

Readers differ in what they forgive: a text PLY that was cut off comes back with fewer points and no word, a broken STL
as an empty scene, a NaN as a point. Each of these has its own message here. Coordinates stay float64: those of surveys
are millions of meters, and float32 would round their shapes away before they are centered.

No file is trusted further than its own bytes: materials and textures that a mesh names are not opened, and arrays are
read without unpickling.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from medmae.core.errors import DataError, MissingDependency
from medmae.data.layouts import printable

MESHES = (".ply", ".obj", ".stl", ".off")
LIDAR = (".las", ".laz")
ARRAYS = (".npy", ".npz")
SUFFIXES = (*MESHES, *LIDAR, *ARRAYS)
_NAMES = ("points", "xyz", "pos", "vertices")
_HEADER = 1 << 16  # bytes of a PLY file in which its header ends


@dataclass(frozen=True, eq=False)
class Shape:
    """Points in the unit of the file, or the corners of a surface whose triangles ``faces`` are."""

    points: Float64[np.ndarray, "n 3"]
    faces: Int64[np.ndarray, "f 3"] | None = None


def read_shape(path: Path) -> Shape:
    """The cloud or the mesh in a file.

    A mesh is a .ply, .obj, .stl or .off with faces, or an .npz with ``vertices`` and ``faces``. A cloud is any of these
    without faces, a .las or .laz, an .npy [n, 3 or more] or an .npz with ``points`` (or ``xyz``, ``pos``, or one array
    only); columns after the third are left aside.

    Raises:
        DataError: the file is broken, holds no points, or coordinates that are NaN or infinite.
        MissingDependency: the package that reads this format is not installed.
    """
    shown = printable(str(path), limit=400)
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{shown}: an empty file (0 bytes); copy or download it again")
        if suffix in ARRAYS:
            shape = _from_array(path, shown)
        elif suffix in LIDAR:
            shape = _from_lidar(path)
        elif suffix in MESHES:
            shape = _from_mesh(path, shown)
        else:
            raise DataError(f"{shown}: not a format of points; known are {', '.join(SUFFIXES)}")
    except (DataError, MissingDependency):
        raise
    except MemoryError as error:
        raise DataError(
            f"{shown}: {error or 'too large'}; it says it is larger than the memory. Is it whole?"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{shown}: no such file") from error
    except Exception as error:  # readers answer broken files with any exception there is
        raise DataError(
            f"{shown}: cannot be read as {suffix} ({type(error).__name__}: {error}); is it whole?"
        ) from error
    return _checked(shape, shown)


def trimesh() -> Any:
    """The package that reads meshes and samples them; MissingDependency where it is not installed."""
    try:
        import trimesh as package
    except ImportError as error:
        raise MissingDependency(
            f"meshes and .ply files need trimesh ({error}): pip install 'medmae[points]'"
        ) from error
    return package


def _checked(shape: Shape, shown: str) -> Shape:
    count = len(shape.points)
    if count == 0:
        raise DataError(f"{shown}: holds no points")
    broken = int((~np.isfinite(shape.points).all(1)).sum())
    if broken:
        raise DataError(
            f"{shown}: {broken} of {count} points are NaN or infinite; remove them, or export the file again"
        )
    if not np.ptp(shape.points, axis=0).any():
        raise DataError(f"{shown}: all {count} points lie in one place")
    if shape.faces is not None and (shape.faces.min() < 0 or shape.faces.max() >= count):
        raise DataError(f"{shown}: its faces name corners that it does not have ({count} corners); export it again")
    if shape.faces is not None:
        a, b, c = (shape.points[shape.faces[:, i]] for i in range(3))
        if not np.cross(b - a, c - a).any():
            raise DataError(f"{shown}: a mesh whose {len(shape.faces)} faces have no area")
    return shape


def _from_mesh(path: Path, shown: str) -> Shape:
    data = path.read_bytes()
    given: dict[str, Any] = {"skip_materials": True} if path.suffix.lower() == ".obj" else {}
    package = trimesh()
    found = package.load(io.BytesIO(data), file_type=path.suffix.lower()[1:], process=False, **given)
    if isinstance(found, package.Scene):
        if not found.geometry:
            raise DataError(f"{shown}: nothing could be read from it; is it whole, and of the format its name says?")
        found = found.to_geometry()
    points = np.asarray(found.vertices, np.float64).reshape(-1, 3)
    faces = np.asarray(getattr(found, "faces", ()), np.int64).reshape(-1, 3)
    if data[:3] == b"ply":  # a reader that stops at the end of a text says nothing of what is missing
        for element, what, count in ((b"vertex", "points", len(points)), (b"face", "faces", len(faces))):
            promised = re.search(rb"^element " + element + rb" (\d+)", data[:_HEADER], re.MULTILINE)
            if promised is not None and count < int(promised[1]):
                raise DataError(
                    f"{shown}: holds {count} of the {int(promised[1])} {what} that its header promises; it was cut off"
                )
    return Shape(points, faces if len(faces) else None)


def _from_lidar(path: Path) -> Shape:
    try:
        import laspy
    except ImportError as error:
        raise MissingDependency(f".las and .laz files need laspy ({error}): pip install 'medmae[points]'") from error
    with laspy.open(path) as stream:
        found = stream.read()
        if len(found.points) < stream.header.point_count:
            raise ValueError(f"{len(found.points)} of {stream.header.point_count} points")
    return Shape(np.asarray(found.xyz, np.float64))


def _from_array(path: Path, shown: str) -> Shape:
    with np.load(path, allow_pickle=False) if path.suffix.lower() == ".npz" else _single(path) as arrays:
        names = list(arrays)
        chosen = next((name for name in _NAMES if name in names), names[0] if len(names) == 1 else None)
        if chosen is None:
            known = ", ".join(map(printable, names[:8])) or "nothing"
            raise DataError(f"{shown}: holds {known}; call the array of points {_NAMES[0]!r}")
        points = np.asarray(arrays[chosen])
        faces = np.asarray(arrays["faces"]) if "faces" in names else None
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise DataError(
            f"{shown}: {points.dtype} of the shape {list(points.shape)} is no cloud; points are numbers of the shape "
            "[points, 3], further columns are left aside"
        )
    if faces is not None and (faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu"):
        raise DataError(
            f"{shown}: faces of the shape {list(faces.shape)}; triangles are integers of the shape [faces, 3]"
        )
    places = np.ascontiguousarray(points[:, :3], np.float64)
    return Shape(places, faces.astype(np.int64) if faces is not None and len(faces) else None)


class _single:  # noqa: N801 - stands where np.load's own context stands
    """The one array of an .npy file, in the form of an .npz."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> dict[str, np.ndarray]:
        return {"points": np.load(self._path, allow_pickle=False)}

    def __exit__(self, *_: object) -> None:
        return None
