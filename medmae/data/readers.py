"""Volumes from files, checked before they are believed.

Readers in use differ in what they forgive: SimpleITK fills a truncated NIfTI with zeros without a word and can
crash on odd headers. So nibabel (or, for the ITK formats, a look at the text header) checks header and length
first, and every known way for a medical image file to be broken has its own message. Whatever the format, an array
is indexed (x, y, z) and its affine leads to RAS+ world millimeters, so that the same image in .mha and .nii.gz
agrees in world coordinates.

A path may end in ``#2`` to mean volume 2 of a 4-D file, as Medical Decathlon data lists need.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from medmae.core.errors import DataError
from medmae.data.header import Fault, Header, check_affine, check_axes
from medmae.data.layouts import printable

_CHUNK = 1 << 20
_LFS = b"version https://git-lfs.github.com/spec/"
_MILLIMETERS = {"m": 1000.0, "mm": 1.0, "um": 0.001, "": 1.0}


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel values as float32, indexed (x, y, z), with where they lie. NaN and infinite values are kept as they are."""

    array: Float[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]
    header: Header


def split_channel(path: str | Path) -> tuple[Path, int | None]:
    """``image.nii.gz#2`` -> (``image.nii.gz``, 2); a path that exists as it is written is left alone."""
    path = Path(path)
    match = re.search(r"#(\d{1,4})$", path.name)
    if match is None or os.path.lexists(path):
        return path, None
    return path.with_name(path.name[: match.start()]), int(match.group(1))


def inspect(path: str | Path, *, length: bool = True) -> Header:
    """Header of the volume at ``path``; ``length=False`` skips decompressing the whole file to count its bytes.

    Raises DataError, with the file's name, on everything that :func:`read` would refuse.
    """
    return _open(path, values=False, length=length)[0]


def read(path: str | Path) -> Volume:
    """The volume at ``path`` (.nii, .nii.gz, .mha, .mhd, .nrrd, .nhdr or a folder of one DICOM series)."""
    header, array = _open(path, values=True, length=True)
    if array is None:
        raise DataError(f"{path}: no values were read.")
    return Volume(array, header.affine, header)


def _open(path: str | Path, *, values: bool, length: bool) -> tuple[Header, np.ndarray | None]:
    file, channel = split_channel(path)
    shown = printable(str(file), limit=400)
    try:
        _look(file)
        if file.is_dir():
            from medmae.data.readers_itk import open_dicom

            return open_dicom(file, values=values)
        name = file.name.lower()
        if name.endswith((".mha", ".mhd", ".nrrd", ".nhdr")):
            from medmae.data.readers_itk import open_itk

            return open_itk(file, values=values)
        if name.endswith((".nii", ".nii.gz")):
            return _open_nifti(file, channel, values=values, length=length)
        if name.endswith((".hdr", ".img", ".img.gz")):
            raise Fault("an Analyze or NIfTI pair (.hdr and .img); convert it to one .nii.gz file")
        if name.endswith((".dcm", ".ima")):
            raise Fault("a single DICOM file; give the folder that holds the whole series")
        raise Fault("not a known volume format (.nii, .nii.gz, .mha, .mhd, .nrrd, .nhdr or a DICOM folder)")
    except Fault as fault:
        raise DataError(f"{shown}: {fault}.") from fault
    except MemoryError as error:
        raise DataError(f"{shown}: does not fit into memory.") from error
    except OSError as error:
        raise DataError(f"{shown}: cannot be read ({error.strerror or error}).") from error


def _look(file: Path) -> None:
    """Faults that do not depend on the format."""
    if not file.exists():
        if file.is_symlink():
            raise Fault(
                "a link to a file that is not there; for git-annex or DataLad data run 'datalad get' or 'git annex get'"
            )
        raise Fault("no such file")
    if file.is_dir():
        return
    if not file.is_file():
        raise Fault("not a regular file")
    if file.stat().st_size == 0:
        raise Fault("an empty file (0 bytes); copy or download it again")
    with open(file, "rb") as stream:
        start = stream.read(256)
    if start.startswith(_LFS):
        raise Fault("a Git LFS pointer, not the image itself; run 'git lfs pull' in its repository")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Fault("a web page, not an image: the download failed; fetch it again")


def _open_nifti(file: Path, channel: int | None, *, values: bool, length: bool) -> tuple[Header, np.ndarray | None]:
    packed = _is_gzip(file)
    with gzip.open(file, "rb") if packed else open(file, "rb") as stream:
        try:
            start = stream.read(540)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Fault(
                f"truncated or damaged: the compressed stream breaks off inside the header ({error})"
            ) from error
        kind, native, little = _parse_header(start)
        shape, pick = _check_shape(native, channel)
        dtype = native.get_data_dtype().newbyteorder("<" if little else ">")
        affine, spacing, units = _check_geometry(native)
        slope, inter = _scaling(native)
        offset, stored = (
            int(native["vox_offset"]),
            int(np.prod(native.get_data_shape(), dtype=object)) * dtype.itemsize,
        )
        least = 352 if kind == "nifti1" else 544
        if offset < least:
            offset = least
        if offset > (1 << 31):
            raise Fault(f"voxel data would begin at byte {offset}: a damaged header")
        header = Header(
            shape=shape,
            affine=affine,
            spacing=spacing,
            dtype=dtype.name,
            qform_code=int(native["qform_code"]),
            sform_code=int(native["sform_code"]),
            units=units,
            kind=kind,
            slope=slope,
            inter=inter,
            raw=native.binaryblock,
        )
        if not values and not length:
            return header, None
        size = file.stat().st_size
        if not packed and size < offset + stored:
            raise Fault(_short(offset + stored, size))
        if not values and not packed:
            return header, None
        data = _stream_voxels(stream, len(start), offset, stored, keep=values, packed=packed)
    if data is None:
        return header, None
    count = int(np.prod(shape))
    raw = np.frombuffer(data, dtype=dtype, count=count, offset=pick * count * dtype.itemsize).reshape(shape, order="F")
    return header, _scaled(raw, slope, inter)


def _is_gzip(file: Path) -> bool:
    with open(file, "rb") as stream:
        magic = stream.read(2) == b"\x1f\x8b"
    if file.name.lower().endswith(".gz") and not magic:
        raise Fault("named .gz but not compressed with gzip; rename it to .nii or download it again")
    return magic


def _parse_header(start: bytes):  # type: ignore[no-untyped-def]
    """(kind, nibabel header in native byte order, whether the file is little-endian) of a NIfTI file's start."""
    import nibabel as nib
    from nibabel.spatialimages import HeaderDataError

    if len(start) < 348:
        raise Fault(f"truncated: {len(start)} bytes, and a NIfTI header alone has 348")
    sizes = {348: ("little", 1), 540: ("little", 2)}
    size = int.from_bytes(start[:4], "little")
    little = size in sizes
    if not little:
        size = int.from_bytes(start[:4], "big")
    if size not in sizes:
        raise Fault(
            f"wrong magic: begins with {start[:4].hex()}, which is no NIfTI header (348 or 540); is it another format?"
        )
    magic = start[344:348] if size == 348 else start[4:8]
    if magic[:3] in (b"ni1", b"ni2"):
        raise Fault("the header half of a NIfTI pair (.hdr and .img); convert it to one .nii.gz file")
    if magic[:3] not in (b"n+1", b"n+2"):
        known = (
            "an Analyze 7.5 file, whose orientation is unknown" if size == 348 and magic[:1] == b"\0" else "not NIfTI"
        )
        raise Fault(f"wrong magic: {magic!r} where 'n+1' or 'n+2' belongs, {known}; convert it to NIfTI")
    kind, maker, block = ("nifti1", nib.Nifti1Header, 348) if size == 348 else ("nifti2", nib.Nifti2Header, 540)
    if len(start) < block:
        raise Fault(f"truncated: {len(start)} bytes, and a NIfTI-2 header alone has {block}")
    try:
        parsed = maker(start[:block], endianness="<" if little else ">", check=False)
        native = parsed if parsed.endianness == _native() else parsed.as_byteswapped(_native())
        code = int(native["datatype"])
        if code in (128, 2304):
            raise Fault("an RGB or RGBA picture, not a volume of one value per voxel; convert it to gray values")
        if code in (32, 1792, 2048):
            raise Fault("complex values; write the magnitude as a volume of its own")
        if code not in (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280):
            raise Fault(
                f"values of data type code {code}, which is not supported (integers and floats of up to 64 bits are)"
            )
        native.get_data_dtype()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise Fault(f"a damaged NIfTI header ({error})") from error
    return kind, native, little


def _native() -> str:
    return "<" if np.little_endian else ">"


def _check_shape(native, channel: int | None) -> tuple[tuple[int, int, int], int]:  # type: ignore[no-untyped-def]
    """(x, y, z) and the number of the volume to take; trailing axes of length one do not count."""
    axes = int(native["dim"][0])
    if not 1 <= axes <= 7:
        raise Fault(f"a damaged header: {axes} axes")
    sizes = tuple(int(size) for size in native["dim"][1 : axes + 1])
    if any(size < 1 for size in sizes):
        raise Fault(f"a damaged header: shape {sizes} with an axis that is not positive")
    full = sizes
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return check_axes(sizes, full, channel)


def _check_geometry(native) -> tuple[np.ndarray, tuple[float, float, float], str]:  # type: ignore[no-untyped-def]
    zooms = np.asarray(native["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(zooms).all() or (zooms == 0).any():
        raise Fault(
            f"voxel sizes (zooms) {tuple(float(z) for z in zooms)} contain zero or no number; correct the header"
        )
    try:
        affine = np.asarray(native.get_best_affine(), dtype=np.float64)
    except Exception as error:  # nibabel raises its own kinds here, all of them about the header
        raise Fault(f"an affine that cannot be computed ({error}); correct the header") from error
    try:
        units = {"meter": "m", "mm": "mm", "micron": "um"}.get(native.get_xyzt_units()[0], "")
    except KeyError:
        units = ""
    affine[:3] *= _MILLIMETERS[units]
    return affine, check_affine(affine), units


def _scaling(native) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    slope, inter = float(native["scl_slope"]), float(native["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise Fault(f"a scale offset (scl_inter) that is {inter}; correct the header")
    return slope, inter


def _scaled(raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if slope == 1.0 and inter == 0.0:
        return np.ascontiguousarray(raw, dtype=np.float32)
    wide = np.dtype(np.float32 if raw.dtype.itemsize <= 2 else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(raw.astype(wide) * wide.type(slope) + wide.type(inter), dtype=np.float32)


def _short(needed: int, there: int) -> str:
    return f"truncated: {there} bytes of the {needed} that its header promises; copy or download it again"


def _stream_voxels(stream, begun: int, offset: int, stored: int, *, keep: bool, packed: bool) -> bytes | None:  # type: ignore[no-untyped-def]
    """The voxel bytes (or None after only counting them); never takes more memory than the file really fills."""
    total, parts = begun, []
    end = offset + stored
    try:
        if begun > offset:
            stream.seek(offset)
            total = offset
        while total < end:
            chunk = stream.read(min(_CHUNK, end - total))
            if not chunk:
                raise Fault(_short(end, total))
            if keep:
                parts.append(chunk[max(0, offset - total) :])
            total += len(chunk)
        if packed:
            for _ in range(64):  # to the end mark, where gzip verifies its checksum; a longer tail is none of ours
                if not stream.read(_CHUNK):
                    break
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if total >= end:
            raise Fault(f"damaged: {printable(str(error))}; copy or download it again") from error
        raise Fault(f"{_short(end, total)} ({printable(str(error))})") from error
    return b"".join(parts) if keep else None
