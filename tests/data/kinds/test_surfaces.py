"""Surfaces of segmentations: where they lie, how large they are, and which data set they become."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmae.cli import main
from medmae.core.errors import DataError, MissingDependency, UsageError
from medmae.data.kinds import surfaces
from medmae.data.kinds.listing import list_samples
from medmae.data.kinds.point_files import read_shape
from medmae.data.kinds.surfaces import ply, surface, write_surfaces

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

AXES = np.array([30.0, 20.0, 25.0])
ISO, THICK = (1.0, 1.0, 1.0), (0.8, 1.5, 3.0)


def ellipsoid(spacing: tuple[float, float, float], *, flip: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels, affine, and the center in the world, of an ellipsoid of known half axes in millimeters."""
    affine = np.diag([*spacing, 1.0])
    affine[0, 0] *= -1 if flip else 1
    affine[:3, 3] = [40, -30, 10]
    grid = np.stack(np.meshgrid(*(np.arange(int(70 / s) + 8) for s in spacing), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    center = world.reshape(-1, 3).mean(0)
    return (((world - center) / AXES) ** 2).sum(-1) <= 1, affine, center


@pytest.mark.parametrize(("spacing", "off"), [(ISO, 0.015), (THICK, 0.05)])
@pytest.mark.parametrize("flip", [False, True])
def test_an_ellipsoid_has_its_area_volume_and_place(
    spacing: tuple[float, float, float], off: float, flip: bool
) -> None:
    voxels, affine, center = ellipsoid(spacing, flip=flip)
    true = trimesh.creation.icosphere(5)
    true.apply_scale(AXES)
    corners, faces = surface(voxels, affine)
    mesh = trimesh.Trimesh(corners, faces, process=False)
    assert mesh.is_watertight
    assert mesh.area == pytest.approx(true.area, rel=off)
    assert mesh.volume == pytest.approx(true.volume, rel=0.01), "or the faces look inward"
    assert np.allclose(mesh.extents, 2 * AXES, rtol=0.04)
    assert np.allclose(mesh.bounds.mean(0), center, atol=0.2)
    stairs = trimesh.Trimesh(*surface(voxels, affine, smoothing=0), process=False)
    assert stairs.area > 1.08 * true.area, "smoothing does nothing here"


def test_what_touches_the_border_is_closed() -> None:
    voxels = np.ones((4, 5, 6), bool)
    mesh = trimesh.Trimesh(*surface(voxels, np.eye(4), smoothing=0), process=False)
    assert mesh.is_watertight
    assert np.allclose(mesh.bounds, [[-0.5] * 3, [3.5, 4.5, 5.5]])
    with pytest.raises(DataError, match="no voxel"):
        surface(~voxels, np.eye(4))


def test_a_ply_file_holds_the_mesh(tmp_path: Path) -> None:
    corners, faces = surface(*ellipsoid(THICK)[:2])
    (tmp_path / "a.ply").write_bytes(ply(corners, faces))
    shape = read_shape(tmp_path / "a.ply")
    assert np.abs(shape.points - corners).max() < 1e-4
    assert (shape.faces == faces).all()


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five patients, one of them twice, with an organ and a lesion that one lacks and one has a single voxel of."""
    for i, name in enumerate(["p0-a", "p0-b", "p1-a", "p2-a", "p3-a"]):
        label = np.zeros((14, 15, 16), np.uint8)
        label[2:10, 3 : 9 + i, 4:12] = 1
        label[5:8, 5:8, 5:8] = 0 if name == "p2-a" else 4
        if name == "p3-a":
            label[label == 4] = 1
            label[6, 6, 6] = 4
        folder = tmp_path / "cohort" / name
        folder.mkdir(parents=True)
        affine = np.diag([1, 2, 3, 1.0])
        nib.save(
            nib.Nifti1Image(np.random.default_rng(i).random(label.shape, np.float32), affine), folder / "t1n.nii.gz"
        )
        nib.save(nib.Nifti1Image(label, affine), folder / "seg.nii.gz")
    spec = tmp_path / "cohort" / "spec.yaml"
    spec.write_text(
        "medmae: 1\nname: five\npattern: '{case}/{seq}.nii.gz'\nsequences: [t1n]\nsubject: '^(p\\d)'\nlicense: mine\n"
        "label: {file: '{case}/seg.nii.gz', classes: {background: 0, organ: 1, lesion: 3}, remap: {4: 3},\n"
        "        regions: {whole: [1, 3]}}\nsplit: {val: 0.25, test: 0.25}\n"
    )
    return spec


def test_a_cohort_becomes_a_data_set_that_keeps_patients_together(cohort: Path, tmp_path: Path) -> None:
    made = write_surfaces(cohort, tmp_path / "out")
    assert made.counts == {"organ": 5, "lesion": 3}
    assert made.notes == ("p3-a: lesion has 1 voxel(s) only and is left out",)
    listing = list_samples(made.spec, kind="points")
    assert listing.classes == ("lesion", "organ")
    assert listing.license == "mine"
    parts = {s.key: part for part, samples in listing.split().items() for s in samples}
    with open(tmp_path / "out" / surfaces.TABLE, newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {key: row["split"] for key, row in rows.items()} == parts
    assert len({parts[key] for key, row in rows.items() if row["subject"] == "p0"}) == 1
    shape = read_shape(tmp_path / "out" / "organ" / "p0-a.ply")
    assert np.allclose(np.ptp(shape.points, axis=0), [8, 12, 24], rtol=0.06), "millimeters"


def test_regions_and_processes(cohort: Path, tmp_path: Path) -> None:
    one = write_surfaces(cohort, tmp_path / "one", classes=["whole"], smoothing=0)
    assert one.counts == {"whole": 5}
    write_surfaces(cohort, tmp_path / "two", classes=["whole"], smoothing=0, workers=1)
    names = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_what_is_there_is_replaced_only_when_told(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_surfaces(cohort, out)
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="--overwrite"):
        write_surfaces(cohort, out)
    write_surfaces(cohort, out, classes=["whole"], overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [surfaces.MARK, "mine.txt", surfaces.SPEC, surfaces.TABLE, "whole"]
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        write_surfaces(cohort, other, overwrite=True)


def test_a_broken_label_leaves_nothing_behind(cohort: Path, tmp_path: Path) -> None:
    bad = cohort.parent / "p1-a" / "seg.nii.gz"
    bad.write_bytes(bad.read_bytes()[:80])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"(?s)1 label.*p1-a"):
        write_surfaces(cohort, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_wishes_are_named(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"liver.*organ, lesion, whole"):
        write_surfaces(cohort, tmp_path / "out", classes=["liver"])
    text = cohort.read_text()
    cohort.write_text(text[: text.index("label:")])
    with pytest.raises(UsageError, match="no 'label'"):
        write_surfaces(cohort, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_comes_with_the_pip_line(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[points\]'"):
        write_surfaces(cohort, tmp_path / "out")


def test_the_command_prints_the_spec(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = ["data", "surfaces", "--data", str(cohort), "--out", str(out)]
    assert main([*line, "--classes", "organ, lesion"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out / surfaces.SPEC)
    assert "5 of organ, 3 of lesion" in said.err
    assert main(line) == 2
    assert main([*line, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["surfaces"] == {"organ": 5, "lesion": 3}
