"""What the system says when a result cannot be written, as a message a user can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medmae.core.errors import MedmaeError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def writing(where: str | Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``where`` into an error of ours.

    Raises MedmaeError where the disk is full, UsageError for everything else: no permission, a read-only disk, a file
    in place of a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MedmaeError(
                f"{where}: the disk is full ({error.strerror}). Free some space or write elsewhere"
            ) from error
        raise UsageError(f"{where}: cannot be written ({error.strerror or error}); choose another place") from error


def explained(error: OSError) -> MedmaeError | None:
    """What is not our fault among the system's refusals that nobody foresaw; None for everything else.

    A full disk, and a path that is missing, forbidden, read-only or of the wrong kind. A path inside this package is
    our fault.
    """
    name = error.filename
    where = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else None
    if error.errno in _FULL:
        return MedmaeError(
            f"{where + ': ' if where else ''}the disk is full ({error.strerror}). Free some space or write elsewhere"
        )
    home = Path(__file__).resolve().parents[1]
    if where is None or error.errno not in _PATH or Path(os.path.abspath(where)).is_relative_to(home):
        return None
    return UsageError(f"{where}: {error.strerror}; correct the path or its permissions, or choose another place")
