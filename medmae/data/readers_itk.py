"""MetaImage, NRRD and DICOM series through SimpleITK, brought to the same terms as NIfTI.

ITK's world is LPS, its arrays come as (z, y, x), and it is trusting about lengths; here the text header is read
first, the length is checked, and the answer is (x, y, z) with an affine to RAS+ millimeters. Imported only when
such a file is met.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmae.data.header import Fault, Header, check_affine, check_axes
from medmae.data.layouts import printable

_MET = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_NRRD = {
    "char": 1, "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "int64": 8, "int64_t": 8, "ulonglong": 8, "unsigned long long": 8, "uint64": 8,
    "uint64_t": 8, "float": 4, "double": 8,
}  # fmt: skip
_HEADER_LIMIT = 1 << 20


def open_itk(file: Path, *, values: bool) -> tuple[Header, np.ndarray | None]:
    """Header, and values where asked, of a MetaImage or NRRD file; a Fault says why it is refused."""
    import SimpleITK

    is_nrrd = file.name.lower().endswith((".nrrd", ".nhdr"))
    fields, begin = _text_header(file, is_nrrd=is_nrrd)
    if not is_nrrd:
        _check_meta(fields)
    _check_itk_length(file, fields, begin, is_nrrd=is_nrrd)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    try:
        reader.ReadImageInformation()
        size = tuple(int(n) for n in reader.GetSize())
        if reader.GetNumberOfComponents() != 1:
            raise Fault(f"{reader.GetNumberOfComponents()} values per voxel (a color or vector image), not one")
        shape, affine = _grid(size, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
        name = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
        array = _values(reader.Execute(), shape) if values else None
    except RuntimeError as error:
        raise Fault(f"ITK cannot read it ({_reason(error)})") from error
    return _header(shape, affine, name, "nrrd" if is_nrrd else "metaimage"), array


def open_dicom(folder: Path, *, values: bool) -> tuple[Header, np.ndarray | None]:
    """Header, and values where asked, of a folder that holds one DICOM series; a Fault says why it is refused."""
    import SimpleITK

    plain = sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith("."))
    if not plain:
        raise Fault("an empty folder; a folder is read as one DICOM series")
    empty = [item.name for item in plain if item.stat().st_size == 0]
    if empty:
        raise Fault(f"{len(empty)} empty file(s) in the series, first {printable(empty[0])}; copy it again")
    silent = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if not series:
            raise Fault(f"a folder of {len(plain)} file(s) without a DICOM series")
        if len(series) > 1:
            raise Fault(f"{len(series)} DICOM series in one folder; give each series a folder of its own")
        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
        origins, axes, spacing, columns = _slices(names)
        affine_steps = _even_steps(origins, axes)
        rows = (*columns, len(names))
        direction = np.column_stack([axes[0], axes[1], affine_steps / np.linalg.norm(affine_steps)])
        shape, affine = _grid(rows, (*spacing, float(np.linalg.norm(affine_steps))), origins[0], direction.ravel())
        array, name = None, "float32"
        if values:
            reader = SimpleITK.ImageSeriesReader()
            reader.SetFileNames(names)
            image = reader.Execute()
            name = SimpleITK.GetPixelIDValueAsString(image.GetPixelID())
            if image.GetNumberOfComponentsPerPixel() != 1:
                raise Fault("a color series, not one value per voxel")
            array = _values(image, shape)
    except RuntimeError as error:
        raise Fault(f"ITK cannot read the series ({_reason(error)})") from error
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(silent)
    return _header(shape, affine, name, "dicom"), array


def _slices(names):  # type: ignore[no-untyped-def]
    """Origins of all slices in ITK's order, the two in-plane directions, in-plane spacing, and (columns, rows)."""
    origins, first = [], _slice(names[0])
    for name in names:
        here = _slice(name)
        if here.size != first.size or not np.allclose(here.frame, first.frame, atol=1e-4):
            raise Fault(f"slice {printable(Path(name).name)} has another size, spacing or direction than the first")
        origins.append(here.origin)
    return origins, (first.frame[:3], first.frame[3:6]), first.frame[6:], first.size


@dataclass(frozen=True, eq=False)
class _Slice:
    """Where one DICOM slice lies: ``frame`` is its two in-plane directions and its two spacings, in one row."""

    size: tuple[int, int]
    frame: np.ndarray
    origin: np.ndarray


def _slice(name: str) -> _Slice:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(name)
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise Fault(f"slice {printable(Path(name).name)} cannot be read ({_reason(error)})") from error
    size = reader.GetSize()
    if len(size) == 3 and size[2] > 1:
        raise Fault("a multi-frame DICOM file; convert it to NIfTI (dcm2niix does it)")
    axes = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(len(size), len(size))
    frame = np.concatenate([axes[:, 0], axes[:, 1], np.asarray(reader.GetSpacing()[:2], dtype=np.float64)])
    if len(frame) != 8:
        raise Fault(f"slice {printable(Path(name).name)} has no position in space")
    return _Slice((int(size[0]), int(size[1])), frame, np.asarray(reader.GetOrigin(), dtype=np.float64))


def _even_steps(origins: list[np.ndarray], axes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The step from slice to slice (LPS millimeters); a Fault where slices are missing, doubled or uneven."""
    if len(origins) < 2:
        raise Fault("2-D: a DICOM series of one slice is no volume")
    steps = np.diff(np.stack(origins), axis=0)
    lengths = np.abs(steps @ np.cross(*axes))
    middle = float(np.median(lengths))
    if middle < 1e-3 or (lengths < 1e-3).any():
        raise Fault("two slices at one position (several time points or echoes?); give each its own folder")
    worst = int(np.abs(lengths - middle).argmax())
    if abs(lengths[worst] - middle) > 0.02 * middle + 1e-3:
        raise Fault(
            f"slices missing or uneven: {lengths[worst]:.2f} mm after slice {worst + 1}, {middle:.2f} mm elsewhere"
        )
    return (origins[-1] - origins[0]) / (len(origins) - 1)


def _grid(size, spacing, origin, direction) -> tuple[tuple[int, int, int], np.ndarray]:  # type: ignore[no-untyped-def]
    """(x, y, z) shape and RAS+ affine of ITK's size, spacing, origin and direction (LPS)."""
    axes, full = len(size), tuple(size)
    if any(n < 1 for n in full):
        raise Fault(f"a damaged header: shape {full} with an axis that is not positive")
    sizes = full
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    shape, _ = check_axes(sizes, full, None)
    steps = np.asarray(spacing, dtype=np.float64)[:3]
    if not np.isfinite(steps).all() or (steps == 0).any():
        raise Fault(f"voxel sizes {tuple(steps.tolist())} contain zero or no number; correct the header")
    matrix = np.asarray(direction, dtype=np.float64).reshape(axes, axes)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = matrix * steps
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)[:3]
    affine[:2] *= -1
    return shape, affine


def _values(image, shape: tuple[int, int, int]) -> np.ndarray:  # type: ignore[no-untyped-def]
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(image)
    if array.dtype.kind == "c":
        raise Fault("complex values; write the magnitude as a volume of its own")
    return np.ascontiguousarray(array.reshape(shape[::-1]).transpose(2, 1, 0), dtype=np.float32)


def _header(shape: tuple[int, int, int], affine: np.ndarray, dtype: str, kind: str) -> Header:
    return Header(shape=shape, affine=affine, spacing=check_affine(affine), dtype=dtype, kind=kind)


def _reason(error: Exception) -> str:
    """The last informative line of one of ITK's long messages, without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return printable(re.sub(r"(/[^\s:]+)+", "...", text), limit=160)


def _text_header(file: Path, *, is_nrrd: bool) -> tuple[dict[str, str], int]:
    """Fields of the text header in lower case, and the byte where data would begin in the same file."""
    with open(file, "rb") as stream:
        start = stream.read(_HEADER_LIMIT)
    fields: dict[str, str] = {}
    position = 0
    if is_nrrd and not start.startswith(b"NRRD000"):
        raise Fault(f"wrong magic: begins with {start[:8]!r}, and an NRRD file begins with NRRD000")
    while True:
        end = start.find(b"\n", position)
        if end < 0:
            if is_nrrd and ("data file" in fields or "datafile" in fields):
                return fields, len(start)
            raise Fault("truncated or damaged: the text header has no end")
        line = start[position:end].decode("latin-1").strip()
        position = end + 1
        if is_nrrd and not line:
            return fields, position
        separator = ":" if is_nrrd else "="
        if separator in line and not line.startswith("#"):
            name, _, value = line.partition(separator)
            fields[name.strip().lower()] = value.lstrip("=").strip()
        if not is_nrrd and "elementdatafile" in fields:
            if "dimsize" not in fields:
                raise Fault("wrong magic: no MetaImage header (DimSize is missing)")
            return fields, position


def _check_meta(fields: dict[str, str]) -> None:
    """A Fault where a MetaImage header does not add up; ITK's parser overruns its buffers on some of those."""
    try:
        axes = int(fields.get("ndims", "0"))
        counts = {
            "dimsize": axes, "elementspacing": axes, "elementsize": axes, "offset": axes, "position": axes,
            "origin": axes, "centerofrotation": axes, "transformmatrix": axes**2, "rotation": axes**2,
            "orientation": axes**2,
        }  # fmt: skip
        damaged = [name for name, count in counts.items() if name in fields and not _numbers(fields[name], count)]
    except ValueError:
        axes, damaged = 0, []
    if not 1 <= axes <= 6:
        raise Fault(f"a damaged header: NDims is {printable(fields.get('ndims', 'missing'))!r}")
    if damaged:
        raise Fault(f"a damaged header: {damaged[0]} does not hold the numbers that {axes} axes need")
    if next(iter(fields)) not in ("objecttype", "ndims", "comment") or list(fields).index("ndims") > 3:
        raise Fault("a damaged header: NDims does not come first")
    if fields.get("elementtype", "").upper() not in _MET:
        raise Fault(f"values of type {printable(fields.get('elementtype', 'unknown'))!r}, which is not supported")
    if fields.get("objecttype", "image").lower() != "image" or fields.get("headersize", "0") not in ("0", "-1"):
        raise Fault("a MetaImage that is not a plain image, or that hides its data behind another header")


def _numbers(text: str, count: int) -> bool:
    """Whether ``text`` is ``count`` finite numbers."""
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        return False
    return len(values) == count and bool(np.isfinite(values).all())


def _check_itk_length(file: Path, fields: dict[str, str], begin: int, *, is_nrrd: bool) -> None:
    """A Fault where the file is shorter than its header promises; formats kept in several files are left to ITK."""
    try:
        sizes = [int(word) for word in fields["sizes" if is_nrrd else "dimsize"].split()]
    except (KeyError, ValueError) as error:
        raise Fault("a damaged header: the size of the image is missing") from error
    width = (
        _NRRD.get(fields.get("type", "").lower(), 0) if is_nrrd else _MET.get(fields.get("elementtype", "").upper(), 0)
    )
    channels = 1 if is_nrrd else int(fields.get("elementnumberofchannels", "1") or 1)
    needed = int(np.prod(sizes, dtype=object)) * width * channels
    data = _other_file(file, fields, is_nrrd=is_nrrd)
    if data is None:
        data = file
    else:
        begin = 0
    packed = (
        fields.get("encoding", "raw").lower() in ("gzip", "gz")
        if is_nrrd
        else fields.get("compresseddata", "").lower() == "true"
    )
    if is_nrrd and not packed and fields.get("encoding", "raw").lower() != "raw":
        return
    there = _unpacked_length(data, begin, needed) if packed else data.stat().st_size - begin
    if there < needed:
        raise Fault(f"truncated: {there} bytes of the {needed} that its header promises; copy or download it again")


def data_file(file: Path) -> Path | None:
    """The file that holds the values of a detached header; None where the header's own file does."""
    is_nrrd = file.name.lower().endswith((".nrrd", ".nhdr"))
    return _other_file(file, _text_header(file, is_nrrd=is_nrrd)[0], is_nrrd=is_nrrd)


def _other_file(file: Path, fields: dict[str, str], *, is_nrrd: bool) -> Path | None:
    other = fields.get("data file", fields.get("datafile")) if is_nrrd else fields.get("elementdatafile")
    if other is None or other.upper() == "LOCAL":
        return None
    if re.search(r"%|\bLIST\b", other):
        raise Fault("data in many files; write it as one .nrrd or .mha file")
    if Path(other).is_absolute() or ".." in Path(other).parts or "\0" in other:
        raise Fault(f"its data file {printable(other)!r} leads outside its folder; keep both in one folder")
    data = file.parent / other
    if not data.is_file():
        raise Fault(f"its data file {printable(other)!r} is not there")
    return data


def _unpacked_length(data: Path, begin: int, needed: int) -> int:
    """How many bytes the compressed stream at ``begin`` really yields, counted up to ``needed``."""
    total, machine = 0, zlib.decompressobj(wbits=47)
    with open(data, "rb") as stream:
        stream.seek(begin)
        while total < needed and not machine.eof and (chunk := stream.read(1 << 18)):
            try:
                while chunk and total < needed:
                    total += len(machine.decompress(chunk, 1 << 22))
                    chunk = machine.unconsumed_tail
            except zlib.error:
                break
    return total
