"""Files that are whole or not there.

What is written goes to a temporary neighbor first, is flushed to the disk, and only then takes its name. A crash, a
full disk or Ctrl-C leaves the old file as it was and no debris.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``path`` when the block ends without an error.

    The folder is made where it is missing. The file gets the permissions any new file of this user gets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".medmae-", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until what was written to a file, or which names a folder holds, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write ``data`` to ``path``, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` as UTF-8, all or nothing."""
    return write_bytes(path, text.encode("utf-8"))


def write_link(path: Path, source: Path) -> Path:
    """Make ``path`` a symbolic link to ``source``, or a copy where links are not allowed; all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".medmae-{os.getpid()}-{path.name}.part"
    try:
        temporary.unlink(missing_ok=True)
        os.symlink(os.path.abspath(source), temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        with replacing(path) as copy:
            shutil.copyfile(source, copy)
    return path
