"""Gray 8-bit PNG files from arrays, without an imaging library.

A report needs a few dozen of them; the format is four chunks around a zlib stream. Volumes are stored as one image
with their slices side by side, which compresses well and which every browser decodes.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np
from jaxtyping import Shaped, UInt8

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def gray_png(image: UInt8[np.ndarray, "rows columns"]) -> bytes:
    """The image as a PNG file; the first row is the top."""
    rows, columns = image.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    data = min((zlib.compress(lines, 9) for lines in _filtered(image)), key=len)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _filtered(image: UInt8[np.ndarray, "rows columns"]) -> tuple[bytes, bytes, bytes]:
    """The lines of the file under three of PNG's filters: none, difference to the left, difference to above."""
    left, above = image.copy(), image.copy()
    left[:, 1:] -= image[:, :-1]
    above[1:] -= image[:-1]
    parts = []
    for kind, lines in ((0, image), (1, left), (2, above)):
        parts.append(np.concatenate([np.full((len(image), 1), kind, np.uint8), lines], 1).tobytes())
    return parts[0], parts[1], parts[2]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def to_gray(values: Shaped[np.ndarray, "*any"], *, low: int | float, high: int | float) -> UInt8[np.ndarray, "*any"]:
    """Values to 0..255 between ``low`` and ``high``; what is not finite is black."""
    finite = np.nan_to_num(np.asarray(values, np.float32), nan=low, posinf=high, neginf=low)
    return np.rint(np.clip((finite - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def mosaic(volume: UInt8[np.ndarray, "x y z"]) -> tuple[UInt8[np.ndarray, "rows columns"], int]:
    """All slices along z in one image, and the number of slices per row.

    Slice k is at row k // per_row, column k % per_row; inside it, x runs right and y runs down.
    """
    x, y, z = volume.shape
    per_row = max(1, math.ceil(math.sqrt(z * y / x)))
    rows = math.ceil(z / per_row)
    full = np.zeros((rows * per_row, y, x), np.uint8)
    full[:z] = volume.transpose(2, 1, 0)
    return full.reshape(rows, per_row, y, x).transpose(0, 2, 1, 3).reshape(rows * y, per_row * x), per_row


def data_uri(png: bytes) -> str:
    """The file as text that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
