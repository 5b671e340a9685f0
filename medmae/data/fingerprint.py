"""Who a file is: content hashes, and the names that are made of them.

Names made of content serve two ends. A cache entry can never be stale, because other content has another name; and a
case can be spoken of in logs and model folders without a file name or patient id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat as modes
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.core.errors import DataError
from medmae.data.readers import split_channel

_RACY_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its time stamp


class Fingerprints:
    """Content hashes of files, remembered by size, times and inode so that unchanged files are not read again.

    A file whose change time is less than two seconds old is hashed again next time: within one tick of the clock two
    different contents can carry the same time stamp.
    """

    def __init__(self, folder: Path | None) -> None:
        """``folder`` keeps ``files.json``; with None nothing is remembered."""
        self._path = None if folder is None else folder / "files.json"
        self._known: dict[str, list[Any]] = {} if self._path is None else read_json(self._path, {})
        self._changed = False

    def of(self, path: str | Path) -> str:
        """SHA-256 of a file; of names and files for a folder (a DICOM series); the ``#channel`` of a 4-D file counts,
        and so does the data file that a detached header names. DataError where something cannot be read."""
        file, channel = split_channel(path)
        if file.is_dir():
            parts = [child.name + self.of(child) for child in sorted(file.iterdir()) if child.is_file()]
        else:
            parts = [self._of_file(part) for part in (file, *_detached(file))]
            if len(parts) == 1 and channel is None:
                return parts[0]
        return hashlib.sha256(f"{channel}:{':'.join(parts)}".encode(errors="surrogatepass")).hexdigest()

    def _of_file(self, path: Path) -> str:
        try:
            stat = path.stat()
            if not modes.S_ISREG(stat.st_mode):  # a named pipe would be waited for, forever
                raise DataError(f"{path}: cannot be read (not a regular file)")
            name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            known = self._known.get(name)
            if known is not None and known[:4] == mark:
                return str(known[4])
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if time.time_ns() - stat.st_ctime_ns > _RACY_NS:
            self._known[name] = [*mark, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Remember the hashes for the next run."""
        if self._changed and self._path is not None:
            write_json(self._path, {**read_json(self._path, {}), **self._known})
            self._changed = False


def _detached(file: Path) -> list[Path]:
    """The data file that a text header (.mhd, .nhdr) points to."""
    if file.suffix.lower() not in (".mhd", ".nhdr") or not file.is_file():
        return []
    with file.open("rb") as stream:
        text = stream.read(1 << 16).decode("latin-1")
    found = re.search(r"^(?:ElementDataFile\s*=|data\s?file\s*:)\s*(.+?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    beside = file.parent / found.group(1) if found else file
    return [beside] if beside != file and beside.is_file() else []


def entry_key(files: Mapping[str, str], settings: Mapping[str, Any], remap: Mapping[int, int], *, version: int) -> str:
    """The name of an entry: a hash of everything its content depends on."""
    identity = {
        "version": version,
        "files": dict(files),  # in the order of the sequences: the first one is the reference grid
        "order": list(files),
        "settings": dict(settings),
        "remap": {str(k): v for k, v in sorted(remap.items())},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def case_hash(files: Mapping[str, str]) -> str:
    """A short name for a case that tells nothing about the patient: a hash of its images' content."""
    images = sorted(digest for name, digest in files.items() if name not in ("mask", "label"))
    return hashlib.sha256("".join(images).encode()).hexdigest()[:16]


def case_files(case: Any, prints: Fingerprints) -> dict[str, str]:
    """Content hash of every file of a case: by sequence, then "mask" and "label"."""
    files = {name: prints.of(path) for name, path in case.images.items()}
    for name in ("mask", "label"):
        path = getattr(case, name)
        if path is not None:
            files[name] = prints.of(path)
    return files


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value))


def read_json(path: Path, default: Any) -> Any:
    """A JSON file's value; ``default`` where there is none or it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return default
