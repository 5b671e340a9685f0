"""What is written overlays on what it is like, to the bit, or is not written at all."""

from __future__ import annotations

import os
import stat

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medmae.core.errors import UsageError
from medmae.data.nifti import write_affine, write_bytes, write_like
from medmae.data.readers import inspect, read

SHAPE = (5, 6, 7)


def affine_of(seed, flip):
    draw = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ np.diag(draw.uniform(0.3, 6, 3))
    affine[:3, 3] = draw.uniform(-150, 150, 3)
    if flip:
        affine[:3, 0] *= -1
    return affine


def source(path, affine, *, qform, sform, unit, maker=nib.Nifti1Image):
    image = maker(np.arange(210, dtype=np.int16).reshape(SHAPE), None)
    image.header.set_qform(affine, qform)
    image.header.set_sform(affine, sform)
    image.header.set_xyzt_units(unit)
    image.header["descrip"] = b"scanner and patient text"
    image.header["aux_file"] = b"name"
    nib.save(image, path)
    return path


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    flip=st.booleans(),
    codes=st.sampled_from([(1, 1), (0, 2), (3, 0), (1, 4)]),
    unit=st.sampled_from(["mm", "unknown"]),
    maker=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
def test_geometry_is_kept_to_the_bit(tmp_path_factory, seed, flip, codes, unit, maker):
    folder = tmp_path_factory.mktemp("n")
    old = nib.load(
        source(folder / "a.nii", affine_of(seed, flip), qform=codes[0], sform=codes[1], unit=unit, maker=maker)
    )
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    write_like(folder / "b.nii.gz", values, inspect(folder / "a.nii"), description="synthetic")
    new = nib.load(folder / "b.nii.gz")
    assert type(new) is maker
    np.testing.assert_array_equal(new.affine, old.affine)
    for name in ("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "qoffset_x", "quatern_b"):
        np.testing.assert_array_equal(new.header[name], old.header[name])
    np.testing.assert_array_equal(new.header["pixdim"][:4], old.header["pixdim"][:4])
    np.testing.assert_array_equal(np.asarray(new.dataobj), values)
    assert new.get_data_dtype() == np.float32
    assert new.header["descrip"].item() == b"synthetic"
    assert new.header["aux_file"].item() == b""


def test_without_any_code(tmp_path):
    old = nib.load(source(tmp_path / "a.nii", np.diag([2.0, 3.0, 4.0, 1]), qform=0, sform=0, unit="mm"))
    write_like(tmp_path / "b.nii", np.zeros(SHAPE, np.float32), inspect(tmp_path / "a.nii"))
    new = nib.load(tmp_path / "b.nii")
    np.testing.assert_array_equal(new.affine, old.affine)
    assert int(new.header["qform_code"]) == int(new.header["sform_code"]) == 0


def test_trailing_axes_slope_and_big_endian_sources(tmp_path):
    image = nib.Nifti1Image(np.zeros((*SHAPE, 1), np.int16), affine_of(3, False), nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(3.0, 7.0)
    nib.save(image, tmp_path / "a.nii")
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_like(tmp_path / "b.nii", values, inspect(tmp_path / "a.nii"))
    np.testing.assert_array_equal(read(tmp_path / "b.nii").array, values)
    np.testing.assert_allclose(read(tmp_path / "b.nii").affine, image.affine, atol=1e-5)


def test_from_an_affine_and_like_another_format(tmp_path):
    import SimpleITK

    affine = affine_of(5, True)
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_affine(tmp_path / "a.nii.gz", values, affine)
    np.testing.assert_allclose(read(tmp_path / "a.nii.gz").affine, affine, atol=1e-4)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / "a.mha"))
    write_like(tmp_path / "b.nii.gz", values, inspect(tmp_path / "a.mha"))
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, affine, atol=1e-4)
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").get_qform(), affine, atol=1e-3)


def test_equal_images_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_affine(tmp_path / f"{name}.nii.gz", np.ones(SHAPE, np.float32), np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_refusals(tmp_path):
    header = inspect(write_affine(tmp_path / "a.nii", np.zeros(SHAPE, np.float32), np.eye(4)))
    with pytest.raises(UsageError, match=r"shape \(5, 6, 8\) cannot be written on a grid of shape \(5, 6, 7\)"):
        write_like(tmp_path / "b.nii", np.zeros((5, 6, 8), np.float32), header)
    with pytest.raises(UsageError, match=r"ends in \.nii\.gz or \.nii"):
        write_like(tmp_path / "b.mha", np.zeros(SHAPE, np.float32), header)
    with pytest.raises(UsageError, match="values do not fit uint8"):
        write_like(tmp_path / "b.nii", np.full(SHAPE, 300.0, np.float32), header, dtype="uint8")
    write_like(tmp_path / "c.nii", np.full(SHAPE, 3.0, np.float32), header, dtype="uint8", description="é" * 200)
    assert inspect(tmp_path / "c.nii").dtype == "uint8"


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    write_bytes(tmp_path / "sub" / "a.bin", b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "sub" / "a.bin", b"new")
    assert [item.name for item in (tmp_path / "sub").iterdir()] == ["a.bin"]
    assert (tmp_path / "sub" / "a.bin").read_bytes() == b"old"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "sub" / "a.bin").stat().st_mode) == 0o666 & ~umask
