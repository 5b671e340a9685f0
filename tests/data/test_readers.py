"""Readers: formats agree in world coordinates, and every broken file gets its own message."""

from __future__ import annotations

import contextlib
import gzip
import locale
import os
import struct

import nibabel as nib
import numpy as np
import pytest

from medmae.core.errors import DataError
from medmae.data.fingerprint import Fingerprints
from medmae.data.readers import inspect, read, split_channel

AFFINE = np.array([[-1.9, 0.3, 0.0, 30.0], [0.3, 1.9, 0.0, -20.0], [0.0, 0.0, 2.5, 5.0], [0, 0, 0, 1.0]])


def volume(shape=(6, 7, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(path, array=None, affine=AFFINE, maker=nib.Nifti1Image):
    nib.save(maker(volume() if array is None else array, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("maker", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_round_trip(tmp_path, suffix, maker):
    path = save(tmp_path / f"a{suffix}", maker=maker)
    found = read(path)
    np.testing.assert_array_equal(found.array, volume())
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)
    assert found.array.dtype == np.float32
    assert found.array.flags.c_contiguous
    assert found.header.kind == ("nifti1" if maker is nib.Nifti1Image else "nifti2")
    np.testing.assert_allclose(found.header.spacing, np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-6)
    header = inspect(path)
    assert header.shape == (6, 7, 5)
    assert header.sform_code == 2


def test_slope_big_endian_and_singleton_axes(tmp_path):
    raw = np.arange(6 * 7 * 5, dtype=np.int16).reshape(6, 7, 5, 1, 1)
    image = nib.Nifti1Image(raw, AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    found = read(tmp_path / "a.nii.gz")
    assert found.array.shape == (6, 7, 5)
    reference = nib.load(tmp_path / "a.nii.gz").get_fdata(dtype=np.float32)[..., 0, 0]
    np.testing.assert_allclose(found.array, reference)
    big = nib.Nifti1Image(volume().astype(">f4"), AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    np.testing.assert_array_equal(read(tmp_path / "b.nii").array, volume())
    assert inspect(tmp_path / "b.nii").qform_code == big.header["qform_code"]


def itk_image(array, affine):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    steps = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(steps.tolist())
    image.SetDirection((lps[:, :3] / steps).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_itk_formats_agree_with_nifti_in_world_coordinates(tmp_path, suffix, packed):
    import SimpleITK as sitk

    image = itk_image(volume(), AFFINE)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), packed)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    one, two = read(tmp_path / f"a{suffix}"), read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(one.array, two.array)
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-5)
    np.testing.assert_allclose(one.affine, AFFINE, atol=1e-5)
    assert inspect(tmp_path / f"a{suffix}").shape == (6, 7, 5)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_itk_files(tmp_path, suffix, packed):
    import SimpleITK as sitk

    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(itk_image(volume((20, 20, 20)), AFFINE), str(path), packed)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 4000])
    with pytest.raises(DataError, match="truncated"):
        inspect(path)


def test_vector_and_flat_itk_images_are_refused(tmp_path):
    import SimpleITK as sitk

    vector = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "v.mha"))
    with pytest.raises(DataError, match="3 values per voxel"):
        read(tmp_path / "v.mha")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.float32)), str(tmp_path / "f.nrrd"))
    with pytest.raises(DataError, match="2-D"):
        read(tmp_path / "f.nrrd")
    (tmp_path / "x.nrrd").write_bytes(b"hello world, no image at all")
    with pytest.raises(DataError, match="wrong magic"):
        read(tmp_path / "x.nrrd")
    (tmp_path / "x.mhd").write_text(
        "NDims = 3\nDimSize = 2 2 2\nElementType = MET_FLOAT\nElementDataFile = ../../secret.raw\n"
    )
    with pytest.raises(DataError, match="outside its folder"):
        read(tmp_path / "x.mhd")


def write_dicom(folder, array, spacing=(1.5, 1.2, 3.0), origin=(-10.0, 20.0, 7.0), skip=(), series="1.2.3.4"):
    import SimpleITK as sitk

    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(array.shape[2]):
        if z in skip:
            continue
        plane = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, z].T))
        plane.SetSpacing(spacing[:2])
        place = (origin[0], origin[1], origin[2] + z * spacing[2])
        for tag, value in {
            "0008|0060": "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{series}.{z + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0032": "\\".join(f"{p:.6f}" for p in place),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z + 1),
            "0018|0050": str(spacing[2]),
        }.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}_{99 - z:03d}.dcm"))
        writer.Execute(plane)
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # writing DICOM leaves it at C


def test_dicom_series(tmp_path):
    array = np.random.default_rng(1).integers(0, 900, (9, 8, 6)).astype(np.int16)
    write_dicom(tmp_path / "t1", array)
    found = read(tmp_path / "t1")
    np.testing.assert_array_equal(found.array, array)
    assert found.header.kind == "dicom"
    np.testing.assert_allclose(
        found.affine, [[-1.5, 0, 0, 10], [0, -1.2, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]], atol=1e-4
    )
    assert inspect(tmp_path / "t1").shape == (9, 8, 6)


def test_dicom_faults(tmp_path):
    array = np.zeros((9, 8, 6), np.int16)
    write_dicom(tmp_path / "gap", array, skip=(3,))
    with pytest.raises(DataError, match="slices missing or uneven"):
        read(tmp_path / "gap")
    write_dicom(tmp_path / "two", array)
    write_dicom(tmp_path / "two", array, series="1.2.3.5")
    with pytest.raises(DataError, match="2 DICOM series"):
        read(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="empty folder"):
        read(tmp_path / "none")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no dicom")
    with pytest.raises(DataError, match="without a DICOM series"):
        read(tmp_path / "text")


def edited(path, **fields):
    """A sound NIfTI-1 file with single header fields overwritten, past nibabel's own guards."""
    image = nib.Nifti1Image(volume(), AFFINE)
    data = bytearray(image.to_bytes())
    places = {"dim": (40, "<8h"), "datatype": (70, "<h"), "pixdim": (76, "<8f"),
              "srow_x": (280, "<4f"), "srow_y": (296, "<4f"),
              "magic": (344, "4s"), "size": (0, "<i"), "sform_code": (254, "<h"), "scl": (112, "<2f")}  # fmt: skip
    for name, value in fields.items():
        offset, form = places[name]
        packed = struct.pack(form, *value) if isinstance(value, tuple) else struct.pack(form, value)
        data[offset : offset + len(packed)] = packed
    path.write_bytes(bytes(data))
    return path


BROKEN = {
    "2-D: shape": {"dim": (2, 6, 7, 1, 1, 1, 1, 1)},
    "one slice": {"dim": (3, 6, 7, 1, 1, 1, 1, 1)},
    "4-D: shape .* holds 5 volumes": {"dim": (4, 6, 7, 5, 5, 1, 1, 1)},
    "5-D: shape": {"dim": (5, 2, 2, 2, 3, 2, 1, 1)},
    "not positive": {"dim": (3, 6, -7, 5, 1, 1, 1, 1)},
    "axes": {"dim": (90, 6, 7, 5, 1, 1, 1, 1)},
    "RGB": {"datatype": 128},
    "complex": {"datatype": 32},
    "data type code 77": {"datatype": 77},
    "zooms.* zero": {"pixdim": (1.0, 0.0, 1.0, 1.0, 0, 0, 0, 0)},
    "zooms.* no number": {"pixdim": (1.0, float("nan"), 1.0, 1.0, 0, 0, 0, 0)},
    "singular affine": {"srow_x": (0.0, 0.0, 0.0, 0.0)},
    "NaN or infinite": {"srow_x": (float("inf"), 0.0, 0.0, 0.0)},
    "sheared affine": {"srow_y": (0.9, 1.9, 0.0, -20.0)},
    "wrong magic.*Analyze": {"magic": b"\0\0\0\0"},
    "wrong magic.*no NIfTI header": {"size": 1234},
    "NIfTI pair": {"magic": b"ni1\0"},
    "scl_inter": {"scl": (2.0, float("nan"))},
    "truncated: .* bytes of the": {"dim": (3, 6000, 7000, 5000, 1, 1, 1, 1)},
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_headers_have_their_own_message(tmp_path, message):
    path = edited(tmp_path / "bad name.nii", **BROKEN[message])
    for reader in (inspect, read):
        with pytest.raises(DataError, match=message) as caught:
            reader(path)
        assert "bad name.nii" in str(caught.value)


def test_four_dimensional_needs_a_channel(tmp_path):
    array = volume((6, 7, 5, 3))
    save(tmp_path / "a.nii.gz", array)
    with pytest.raises(DataError, match=r"4-D.*3 volumes"):
        read(tmp_path / "a.nii.gz")
    for index in range(3):
        np.testing.assert_array_equal(read(f"{tmp_path}/a.nii.gz#{index}").array, array[..., index])
    with pytest.raises(DataError, match="volume #3"):
        inspect(f"{tmp_path}/a.nii.gz#3")
    assert Fingerprints(None).of(f"{tmp_path}/a.nii.gz#0") != Fingerprints(None).of(f"{tmp_path}/a.nii.gz#1")
    (tmp_path / "x#2").write_text("")
    assert split_channel(tmp_path / "x#2") == (tmp_path / "x#2", None)


@pytest.mark.parametrize("keep", [0.97, 0.5, 0.02])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_nifti(tmp_path, keep, suffix):
    path = save(tmp_path / f"a{suffix}", volume((16, 16, 16)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    for reader in (inspect, read):
        with pytest.raises(DataError, match="truncated"):
            reader(path)


def test_damaged_gzip_checksum(tmp_path):
    path = save(tmp_path / "a.nii.gz", volume((16, 16, 16)))
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r": damaged: CRC check failed"):
        read(path)


def test_files_that_are_something_else(tmp_path):
    cases = {
        "empty.nii.gz": (b"", "empty file"),
        "lfs.nii.gz": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "Git LFS pointer",
        ),
        "page.nii.gz": (b"<!DOCTYPE html><html>sorry</html>", "web page"),
        "plain.nii.gz": (nib.Nifti1Image(volume(), AFFINE).to_bytes(), "not compressed"),
        "tiny.nii": (b"abc", "truncated: 3 bytes"),
        "text.nii": (b"x" * 600, "wrong magic"),
        "a.png": (b"\x89PNG", "not a known volume format"),
        "a.dcm": (b"\0" * 128 + b"DICM", "folder that holds the whole series"),
        "a.img": (b"\0" * 400, "pair"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            inspect(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.nii.gz")
    os.symlink(tmp_path / "gone", tmp_path / "annex.nii.gz")
    with pytest.raises(DataError, match="git annex get"):
        read(tmp_path / "annex.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path / "pipe.nii.gz")


def test_gzipped_bytes_named_nii_are_read(tmp_path):
    (tmp_path / "a.nii").write_bytes(gzip.compress(nib.Nifti1Image(volume(), AFFINE).to_bytes()))
    np.testing.assert_array_equal(read(tmp_path / "a.nii").array, volume())


def test_units_are_brought_to_millimeters(tmp_path):
    image = nib.Nifti1Image(volume(), np.diag([2e-3, 2e-3, 2e-3, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert inspect(tmp_path / "a.nii").spacing == pytest.approx((2, 2, 2))
    assert inspect(tmp_path / "a.nii").units == "m"


def test_nan_and_infinity_are_kept(tmp_path):
    array = volume()
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    found = read(save(tmp_path / "a.nii.gz", array)).array
    assert np.isnan(found[0, 0, 0])
    assert np.isinf(found[1, 1, 1])


def test_a_detached_header_is_hashed_with_its_data(tmp_path):
    import SimpleITK

    SimpleITK.WriteImage(itk_image(volume(), AFFINE), str(tmp_path / "a.mhd"))
    before = Fingerprints(None).of(tmp_path / "a.mhd")
    data = bytearray((tmp_path / "a.raw").read_bytes())
    data[0] ^= 1
    (tmp_path / "a.raw").write_bytes(bytes(data))
    assert Fingerprints(None).of(tmp_path / "a.mhd") != before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_random_damage_to_a_header_is_a_message_or_a_volume(tmp_path, suffix, capfd):
    """Nothing but DataError may come out, and no library may crash (ITK's MetaImage parser did)."""
    import SimpleITK

    path = tmp_path / f"a{suffix}"
    if "nii" in suffix:
        save(path)
    else:
        SimpleITK.WriteImage(itk_image(volume(), AFFINE), str(path))
    sound = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(draw.integers(1, 6)):
            data[draw.integers(0, min(len(data), 352))] = draw.integers(0, 256)
        path.write_bytes(bytes(data))
        for reader in (inspect, read):
            with contextlib.suppress(DataError):
                reader(path)
