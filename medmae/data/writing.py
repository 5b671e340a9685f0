"""What the system says when a result cannot be written, as a message a user can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medmae.core.errors import MedmaeError, UsageError


@contextmanager
def writing(where: str | Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``where`` into an error of ours.

    Raises MedmaeError where the disk is full, UsageError for everything else: no permission, a read-only disk, a file
    in place of a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MedmaeError(
                f"{where}: the disk is full ({error.strerror}). Free some space or write elsewhere"
            ) from error
        raise UsageError(f"{where}: cannot be written ({error.strerror or error}); choose another place") from error
