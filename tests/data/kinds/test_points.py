"""Clouds and meshes from every format, the points that are drawn, and what broken files are told."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medmae.core.errors import DataError, MissingDependency, UsageError
from medmae.data.kinds import kind_of
from medmae.data.kinds.listing import Sample
from medmae.data.kinds.point_files import read_shape
from medmae.data.kinds.points import PointsKind, rotations

RECIPE = {"groups": 16, "group_size": 8}
HEADER = "ply\nformat {}\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


def sample(path: Path) -> Sample:
    return Sample(path.name, path, None, path.name)


@pytest.fixture
def cloud() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)


def sphere(**given: object):
    trimesh = pytest.importorskip("trimesh")
    return trimesh.creation.icosphere(3, **given)


def write(path: Path, points: np.ndarray) -> Path:
    """A cloud in the format that the name says."""
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".npz":
        np.savez(path, points=points, other=np.zeros(2))
    elif path.name.startswith("ascii"):
        rows = "".join(f"{x:.7g} {y:.7g} {z:.7g}\n" for x, y, z in points)
        path.write_text(HEADER.format("ascii 1.0", len(points)) + rows)
    elif path.suffix == ".ply":
        head = HEADER.format("binary_little_endian 1.0", len(points))
        path.write_bytes(head.encode() + points.astype("<f4").tobytes())
    else:
        laspy = pytest.importorskip("laspy")
        header = laspy.LasHeader(point_format=3, version="1.2")
        header.scales, header.offsets = [1e-4] * 3, [500000, 4000000, 0]
        las = laspy.LasData(header)
        las.x, las.y, las.z = (points.astype(np.float64) + FAR).T
        las.write(path)
    return path


FAR = np.array([500000, 4000000, 0])
FORMATS = ["ascii.ply", "binary.ply", "a.npy", "a.npz", "a.las", "a.laz"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_cloud(tmp_path: Path, cloud: np.ndarray, name: str) -> None:
    shape = read_shape(write(tmp_path / name, cloud))
    assert shape.faces is None
    moved = shape.points - (FAR if name.startswith("a.la") else 0)
    assert np.abs(moved - cloud).max() < 1e-3
    read = PointsKind(points=500).read(sample(tmp_path / name), key=3, training=True)["points"]
    assert read.dtype == np.float32
    assert np.abs(read.mean(0)).max() < 1e-6
    assert np.linalg.norm(read, axis=1).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "off"])
def test_meshes_are_sampled_on_their_surface(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    sphere(radius=30).export(path)
    kind = PointsKind(points=2000, scale=30.0)
    points = kind.read(sample(path), key=1, training=True)["points"]
    assert kind.facts(sample(path))["faces"] == 1280
    assert points.shape == (2000, 3)
    assert np.abs(points.mean(0)).max() < 1e-6
    centered = points - points.mean(0)
    assert np.abs(np.linalg.norm(centered, axis=1) - 1).max() < 0.1
    assert len(np.unique(points, axis=0)) > 1990, "corners only"


def test_faces_may_come_as_arrays(tmp_path: Path) -> None:
    mesh = sphere()
    np.savez(tmp_path / "a.npz", vertices=mesh.vertices, faces=mesh.faces)
    assert read_shape(tmp_path / "a.npz").faces.shape == (1280, 3)


def test_draws_are_functions_of_the_key(tmp_path: Path, cloud: np.ndarray) -> None:
    kind = PointsKind(points=100)
    sphere().export(tmp_path / "mesh.ply")
    for path in (write(tmp_path / "a.npy", cloud), tmp_path / "mesh.ply"):
        one = kind.read(sample(path), key=7, training=True)["points"]
        assert (one == kind.read(sample(path), key=7, training=True)["points"]).all()
        assert (one != kind.read(sample(path), key=8, training=True)["points"]).any()
        fixed = kind.read(sample(path), key=7, training=False)["points"]
        assert (fixed == kind.read(sample(path), key=8, training=False)["points"]).all()


def test_a_small_cloud_keeps_all_its_points_and_repeats_some(tmp_path: Path, cloud: np.ndarray) -> None:
    path = write(tmp_path / "a.npy", cloud[:30])
    points = PointsKind(points=64, least=8).read(sample(path), key=0, training=True)["points"]
    assert points.shape == (64, 3)
    assert len(np.unique(points, axis=0)) == 30
    large = PointsKind(points=20).read(sample(path), key=0, training=True)["points"]
    assert len(np.unique(large, axis=0)) == 20, "without replacement where there are enough"


def test_a_given_scale_keeps_sizes(tmp_path: Path, cloud: np.ndarray) -> None:
    small, large = write(tmp_path / "a.npy", cloud), write(tmp_path / "b.npy", cloud * 3)
    kind = kind_of("points", RECIPE, {"points": 500, "scale": "2"})
    sizes = [np.ptp(kind.read(sample(p), key=0, training=True)["points"], axis=0) for p in (small, large)]
    assert np.allclose(sizes[1], 3 * sizes[0], rtol=1e-4)
    assert np.allclose(sizes[0], np.ptp(cloud, axis=0) / 2, rtol=1e-4)


def test_survey_coordinates_keep_their_shape(tmp_path: Path) -> None:
    """Millimeters at four million meters: float32 has steps of 0.25 there."""
    fine = np.random.default_rng(0).uniform(0, 0.01, (200, 3)) + FAR
    np.save(tmp_path / "a.npy", fine)
    points = PointsKind(points=200).read(sample(tmp_path / "a.npy"), key=0, training=True)["points"]
    assert len(np.unique(points[:, 1])) > 190


def test_training_stretches_and_shifts_by_the_key(cloud: np.ndarray) -> None:
    kind = PointsKind()
    points = torch.from_numpy(cloud)[None].repeat(200, 1, 1)
    batch = {"points": points, "key": torch.arange(200)}
    assert torch.equal(kind.finish(batch, training=False)["points"], points)
    out = kind.finish(batch, training=True)["points"]
    factor = (out[:, 1] - out[:, 0]) / (points[:, 1] - points[:, 0])
    assert 2 / 3 - 1e-3 <= factor.min() < 0.7
    assert 1.45 < factor.max() <= 1.5 + 1e-3
    offset = out[:, 0] - factor * points[:, 0]
    assert 0.19 < offset.abs().max() <= 0.2 + 1e-3
    alone = kind.finish({"points": points[:1], "key": torch.tensor([5])}, training=True)["points"]
    assert torch.equal(alone[0], out[5]), "depends on the batch"


@pytest.mark.parametrize("about", ["x", "y", "z", "any"])
def test_turns_are_rotations(about: str) -> None:
    turn = rotations(torch.arange(400), about=about)
    assert torch.allclose(turn @ turn.mT, torch.eye(3).expand(400, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turn), torch.ones(400), atol=1e-5)
    assert turn.mean(0).fill_diagonal_(0).abs().max() < 0.12
    if about != "any":
        axis = "xyz".index(about)
        assert torch.equal(turn[:, axis, axis], torch.ones(400))


def test_options_are_checked() -> None:
    for options, word in (
        ({"pints": 3}, "pints"),
        ({"points": 4}, "8 points"),
        ({"points": "many"}, "whole number"),
        ({"scale": "small"}, "scale"),
        ({"scale": -1}, "scale"),
        ({"turn": "w"}, "turn"),
        ({"stretch": 0.5}, "stretch"),
    ):
        with pytest.raises(UsageError, match=word):
            kind_of("points", RECIPE, options)
    assert kind_of("points", RECIPE, {"points": "512"}).describe()["points"] == 512


def broken(name: str, folder: Path, cloud: np.ndarray) -> tuple[Path, str]:
    """A file with a fault, and a word of the message that must come."""
    path = folder / name
    if name == "nan.ply":
        cloud[[3, 9], 1] = np.nan
        return write(path, cloud), "2 of 500 points are NaN"
    if name == "inf.npz":
        cloud[4] = np.inf
        return write(path, cloud), "1 of 500"
    if name == "few.npy":
        return write(path, cloud[:7]), "7 points, fewer than the 8 of one group"
    if name == "empty.ply":
        path.touch()
        return path, "empty file"
    if name == "none.npy":
        return write(path, cloud[:0]), "no points"
    if name == "same.npy":
        return write(path, np.ones_like(cloud)), "in one place"
    if name == "flat.npy":
        np.save(path, cloud[:, :2])
        return path, r"\[500, 2\]"
    if name == "names.npz":
        np.savez(path, a=cloud, b=cloud)
        return path, "holds a, b"
    if name == "object.npy":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        return path, "cannot be read"
    if name == "garbage.las":
        path.write_bytes(b"garbage" * 100)
        return path, "cannot be read"
    if name == "faces.obj":
        path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
        return path, "cannot be read|faces name"
    if name == "area.off":
        path.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
        return path, "no area"
    if name == "ascii-cut.ply":
        path.write_text("\n".join(write(folder / "ascii.ply", cloud).read_text().splitlines()[:-50]))
        return path, "450 of the 500 points that its header promises"
    if name == "ascii-faces.ply":
        text = sphere().export(file_type="ply", encoding="ascii").decode()
        path.write_text("\n".join(text.splitlines()[:-50]))
        return path, "of the 1280 faces that its header promises"
    if name == "binary-cut.ply":
        path.write_bytes(write(folder / "b.ply", cloud).read_bytes()[:-100])
        return path, "cannot be read"
    if name == "cut.laz":
        path.write_bytes(write(folder / "b.laz", cloud).read_bytes()[:-100])
        return path, "cannot be read"
    if name == "huge.npy":  # a header that promises more than any memory holds
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50, 3)})
            file.write(bytes(100))
        return path, "larger than the memory"
    if name == "cut.stl":
        data = io.BytesIO(sphere().export(file_type="stl")).getvalue()
        path.write_bytes(data[: len(data) // 2])
        return path, "nothing could be read|cannot be read"
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    ["nan.ply", "inf.npz", "few.npy", "empty.ply", "none.npy", "same.npy", "flat.npy", "names.npz", "object.npy",
     "garbage.las", "faces.obj", "area.off", "ascii-cut.ply", "ascii-faces.ply", "binary-cut.ply",
     "cut.laz", "cut.stl", "huge.npy"],
)  # fmt: skip
def test_broken_files_are_named_with_what_is_wrong(tmp_path: Path, cloud: np.ndarray, name: str) -> None:
    path, word = broken(name, tmp_path, cloud)
    kind = kind_of("points", RECIPE, {})
    with pytest.raises(DataError, match=word) as caught:
        kind.facts(sample(path))
    assert name in str(caught.value)
    with pytest.raises(DataError, match=word):
        kind.read(sample(path), key=0, training=True)


def test_a_mesh_does_not_open_what_it_names(tmp_path: Path) -> None:
    """A material library is a file name in a file that somebody else wrote."""
    (tmp_path / "a.obj").write_text("mtllib ../secret.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    read_shape(tmp_path / "a.obj")
    assert not [name for name in opened if name.endswith(".mtl")]


@pytest.mark.parametrize(("name", "package"), [("a.ply", "trimesh"), ("a.las", "laspy")])
def test_missing_packages_come_with_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[points\]'"):
        PointsKind().facts(sample(tmp_path / name))


def test_toys_need_no_files() -> None:
    toy = Sample("toy-points/000003", Path("toy-points/000003"), "cylinder", "s", None, {"toy": 3})
    kind = PointsKind()
    assert kind.facts(toy) == {"points": 2048, "faces": 0}
    assert kind.read(toy, key=0, training=False)["points"].shape == (1024, 3)
