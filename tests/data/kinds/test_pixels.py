"""Image files of every family, whole and broken."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmae.core.errors import DataError, MissingDependency
from medmae.data.kinds.pixels import channels_first, read_pixels

GRAY = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
COLORS = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_photographs_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLORS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_pixels(path)
    assert np.array_equal(image.values, COLORS.transpose(2, 0, 1))
    assert image.photograph


def test_jpeg_is_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.repeat(GRAY[:10, :20], 8, 0), 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_pixels(tmp_path / "a.jpg").values.shape == (1, 160, 80)


def test_modes_of_screens(tmp_path: Path) -> None:
    alpha = np.dstack([COLORS, np.full((20, 30), 9, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_pixels(tmp_path / "alpha.png").values, COLORS.transpose(2, 0, 1))
    Image.fromarray(COLORS).quantize(16).save(tmp_path / "palette.png")
    assert read_pixels(tmp_path / "palette.png").values.shape == (3, 20, 30)
    Image.fromarray(GRAY > 100).save(tmp_path / "bits.png")
    bits = read_pixels(tmp_path / "bits.png")
    assert set(np.unique(bits.values)) == {0, 255}
    Image.fromarray(COLORS).convert("CMYK").save(tmp_path / "print.jpg")
    assert len(read_pixels(tmp_path / "print.jpg").values) == 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_of_gray(tmp_path: Path, suffix: str) -> None:
    values = GRAY.astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_pixels(tmp_path / f"a.{suffix}")
    assert np.array_equal(image.values[0], values)
    assert not image.photograph


def test_16_bits_of_color_are_not_cut_to_8(tmp_path: Path) -> None:
    import SimpleITK

    values = COLORS.astype(np.uint16) * 250 + 3
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values, isVector=True), str(tmp_path / "a.png"))
    image = read_pixels(tmp_path / "a.png")
    assert np.array_equal(image.values, values.transpose(2, 0, 1))
    assert not image.photograph


def test_dicom_is_bright_where_the_screen_is(tmp_path: Path) -> None:
    import SimpleITK

    values = GRAY.astype(np.int16) * 10
    image = SimpleITK.GetImageFromArray(values[None])
    SimpleITK.WriteImage(image, str(tmp_path / "a.dcm"))
    assert np.array_equal(read_pixels(tmp_path / "a.dcm").values, values[None])
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.dcmread(tmp_path / "a.dcm")
    header.PhotometricInterpretation = "MONOCHROME1"
    header.save_as(tmp_path / "b.dcm")
    turned = read_pixels(tmp_path / "b.dcm").values
    assert (turned + values[None]).min() == (turned + values[None]).max()  # dark is bright, in the same steps


def test_many_channels_in_a_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4000, (6, 20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", values, photometric="minisblack")
    tifffile.imwrite(tmp_path / "last.tif", values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    for name in ("pages.tif", "last.tif"):
        assert np.array_equal(read_pixels(tmp_path / name).values, values)
    tifffile.imwrite(tmp_path / "alpha.tif", np.dstack([COLORS, GRAY]), photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_pixels(tmp_path / "alpha.tif").values, COLORS.transpose(2, 0, 1))


def test_without_tifffile_pillow_reads_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4000, (2, 20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", values, photometric="minisblack")
    deep = np.zeros((20, 30, 5), np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="minisblack", planarconfig="contig")
    found = builtins.__import__

    def absent(name: str, *more: Any, **named: Any) -> Any:
        if name == "tifffile":
            raise ImportError(name)
        return found(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert np.array_equal(read_pixels(tmp_path / "pages.tif").values, values)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[image\]'"):
        read_pixels(tmp_path / "deep.tif")


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLORS)
    assert np.array_equal(read_pixels(tmp_path / "a.npy").values, COLORS.transpose(2, 0, 1))
    np.savez(tmp_path / "b.npz", image=GRAY, other=GRAY)
    assert read_pixels(tmp_path / "b.npz").values.shape == (1, 20, 30)
    assert channels_first(np.zeros((5, 64, 64))).shape == (5, 64, 64)
    assert channels_first(np.zeros((64, 64, 5))).shape == (5, 64, 64)
    assert channels_first(np.zeros((4, 8, 8))).shape == (4, 8, 8)
    assert channels_first(np.zeros((1, 4, 8, 8))).shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 2, 2, 2)), "two or three axes"),
        (np.zeros(5), "two or three axes"),
        (np.zeros((0, 5)), "shape"),
        (np.full((4, 4), np.nan), "16 of 16 values are NaN or infinite"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.array([["a"]]), "are no image"),
        (np.array([[{}]], dtype=object), "cannot be read as an image"),
        (np.zeros((600, 601, 602), bool), "no axis"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, values: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=f"^{tmp_path}/a.npy: .*{words}"):
        read_pixels(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "npy", "npz", "dcm"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    big = np.random.default_rng(0).integers(0, 255, (120, 130)).astype(np.uint8)
    if suffix == "npy":
        np.save(path, big)
    elif suffix == "npz":
        np.savez(path, big)
    elif suffix == "dcm":
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(big[None]), str(path))
    else:
        Image.fromarray(big).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=str(path)):
        read_pixels(path)


def test_text_called_an_image(tmp_path: Path) -> None:
    for suffix in ("png", "tif", "npy", "npz", "dcm"):
        path = tmp_path / f"a.{suffix}"
        path.write_text("not an image at all, whatever its name says")
        with pytest.raises(DataError, match=f"a.{suffix}: cannot be read as an image"):
            read_pixels(path)
