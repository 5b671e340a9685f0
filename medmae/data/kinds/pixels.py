"""From an image file to an array, channels first, whatever wrote the file.

Pillow reads photographs and the 16-bit gray images of X-ray archives, but hands colors of 16 bits back as 8 and knows
no file of five channels; tifffile reads what microscopes and satellites write, SimpleITK reads DICOM. Each reads what
it reads without loss, and nothing is unpickled.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmae.core.errors import DataError, MissingDependency

PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TIFF = (".tif", ".tiff")
ARRAYS = (".npy", ".npz")
DICOM = (".dcm", ".dicom")
SUFFIXES = (*PHOTOGRAPHS, *TIFF, *ARRAYS, *DICOM)
_MOST_CHANNELS = 512  # an array whose smallest axis is longer is no image
# What decoders raise on damaged files, apart from their own classes, which all derive from one of these.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, RuntimeError, LookupError, TypeError, AssertionError, ArithmeticError,
    MemoryError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Pixels:
    """One image.

    Attributes:
        values: [channels height width].
        photograph: 8 bits of one or three channels: gray or colors as screens show them.
    """

    values: np.ndarray
    photograph: bool


def read_pixels(path: Path) -> Pixels:
    """The image in a file; an alpha channel is dropped, a palette looked up, and a photograph turned upright.

    Arrays and TIFF files of three axes have their channels first, or last where that axis is the shortest.

    Raises:
        DataError: no image, broken, empty, or with values that are no numbers; names the file.
        MissingDependency: a TIFF that only tifffile can read, which is not installed.
    """
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: an empty file (0 bytes); copy or download it again")
        if suffix in ARRAYS:
            values = channels_first(_array(path))
        elif suffix in TIFF:
            values = _tiff(path)
        elif suffix in DICOM:
            values = _itk(
                path
            )  # rescaled, and MONOCHROME1 turned round, so that bright is what the screen shows bright
        else:
            values = _photograph(path)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    except MissingDependency:
        raise
    except FileNotFoundError as error:
        what = "a link to what is not there" if path.is_symlink() else "no such file"
        raise DataError(f"{path}: {what}") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give yourself access, or leave it out") from error
    except _DAMAGE as error:
        what = " ".join(str(error).replace(str(path), "the file").split())[:160]
        raise DataError(
            f"{path}: cannot be read as an image ({what or type(error).__name__}); is it whole, and an image?"
        ) from error
    return checked(values, name=str(path))


def checked(values: np.ndarray, *, name: str) -> Pixels:
    """``values`` [channels height width] as an image; DataError with ``name`` where they are none."""
    if values.ndim != 3 or 0 in values.shape:
        raise DataError(f"{name}: an image has height, width and perhaps channels; this has shape {values.shape}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise DataError(f"{name}: values of type {values.dtype} are no image")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise DataError(f"{name}: {count} of {values.size} values are NaN or infinite; replace them or leave it out")
    return Pixels(values, values.dtype == np.uint8 and len(values) in (1, 3))


def channels_first(values: np.ndarray) -> np.ndarray:
    """[height width], [channels height width] or [height width channels] as [channels height width].

    Channels are last where that axis is shorter than both others, as in files of colors; otherwise they are first.
    """
    values = values.squeeze(0) if values.ndim == 4 and values.shape[0] == 1 else values
    if values.ndim == 2:
        return values[None]
    if values.ndim != 3:
        raise DataError(f"an image has two or three axes, and this has shape {values.shape}")
    if values.shape[2] < min(values.shape[:2]):
        values = values.transpose(2, 0, 1)
    if values.shape[0] > _MOST_CHANNELS:
        raise DataError(f"no axis of {values.shape} can be the channels: all are longer than {_MOST_CHANNELS}")
    return values


def _array(path: Path) -> np.ndarray:
    loaded: Any = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return np.asarray(loaded)
    with loaded:
        names = list(loaded.files)
        if len(names) != 1 and "image" not in names:
            raise DataError(f"it holds {', '.join(names) or 'nothing'}; one array is wanted, or one called 'image'")
        return np.asarray(loaded["image" if "image" in names else names[0]])


def _photograph(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large X-rays; larger ones are refused
    try:
        with Image.open(path) as opened:
            if opened.format == "PNG" and opened.mode in ("RGB", "RGBA", "LA") and _png_bits(path) == 16:
                return _without_alpha(_itk(path))
            image = ImageOps.exif_transpose(opened)
            return _pillow(image)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(f"more than {most:,} pixels; cut it into parts, or save it as .npy") from error


def _pillow(image: Any) -> np.ndarray:
    if image.mode == "1" or image.mode == "LA":
        image = image.convert("L")
    elif image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")  # palettes, printing colors, alpha
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _png_bits(path: Path) -> int:
    """Bits per channel as the header of a PNG says: its 25th byte."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _without_alpha(values: np.ndarray) -> np.ndarray:
    return values[: {2: 1, 4: 3}.get(len(values), len(values))]


def _tiff(path: Path) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        return _tiff_by_pillow(path)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is told once, by us
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        values = np.asarray(series.asarray())
        alpha = bool(getattr(file.pages[0], "extrasamples", ())) and values.shape[-1] in (2, 4)
    values = np.squeeze(values) if values.ndim > 3 else values
    if alpha and values.ndim == 3 and series.axes.endswith("S"):
        return values.transpose(2, 0, 1)[: values.shape[-1] - 1]
    return channels_first(values)


def _tiff_by_pillow(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pages = []
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                pages.append(_pillow(image))
    except UnidentifiedImageError as error:
        raise MissingDependency(
            f"{path}: Pillow cannot read this TIFF. tifffile may: pip install 'medmae[image]'"
        ) from error
    return np.concatenate(pages)


def _itk(path: Path) -> np.ndarray:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    image = reader.Execute()
    values = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = np.moveaxis(values, -1, 0)
        values = values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    elif values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or (image.GetNumberOfComponentsPerPixel() == 1 and len(values) != 1):
        raise DataError(f"it holds {math.prod(values.shape[:-2])} images; one is wanted")
    return np.asarray(values)
